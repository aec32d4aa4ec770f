"""Completion of the command line in bash, zsh and fish: scripts that hold every verb, option and fixed choice.

Nothing is asked of qarat while a person types, which would take half a second a key. Given up: a script is of the
version that wrote it.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from qarat.surfaces.options.arguments import Leaf, describe_fields, leaves
from qarat.surfaces.words import first_line

_BASH = """_qarat() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" verb="${{COMP_WORDS[1]}}" words=""
    case "$verb" in {families}) [ "$COMP_CWORD" -gt 2 ] && verb="$verb ${{COMP_WORDS[2]}}" ;; esac
    [ "$COMP_CWORD" -eq 1 ] && verb=""
    case "$verb $cur" in
{words}
    esac
    case "$verb $prev" in
{choices}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o default -F _qarat qarat"""
_ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit"


def script_for(shell: str, verbs: Mapping[str, type[msgspec.Struct]]) -> str:
    """The script that a shell reads to complete `qarat`.

    Args:
        shell: bash, zsh or fish.
        verbs: Name to options.
    """
    if shell == "fish":
        return "\n".join(_fish(verbs))
    return _bash(verbs) if shell == "bash" else f"{_ZSH}\n{_bash(verbs)}"


def _bash(verbs: Mapping[str, type[msgspec.Struct]]) -> str:
    """Where nothing fits, bash goes on with files."""
    seconds = _families(verbs)
    firsts = " ".join(dict.fromkeys(verb.split()[0] for verb in verbs))
    words = {f'"{verb} "-*': " ".join(leaf.typed for leaf in _flags(verbs[verb])) for verb in verbs}
    words |= {'" "*': firsts} | {f'"{family} "*': " ".join(second) for family, second in seconds.items()}
    named = {verb: [c for leaf in leaves(verbs[verb]) if leaf.positional for c in _choices(leaf)] for verb in verbs}
    words |= {f'"{verb} "*': " ".join(fixed) for verb, fixed in named.items() if fixed}
    choices = {
        f'"{verb} {leaf.typed}"': " ".join(fixed)
        for verb in verbs
        for leaf in _flags(verbs[verb])
        if (fixed := _choices(leaf))
    }
    lines = [[f'        {case}) words="{offered}" ;;' for case, offered in some.items()] for some in (words, choices)]
    return _BASH.format(families="|".join(seconds), words="\n".join(lines[0]), choices="\n".join(lines[1]))


def _fish(verbs: Mapping[str, type[msgspec.Struct]]) -> Iterable[str]:
    """One line a verb and option; a condition tells where it may stand."""
    seconds = _families(verbs)
    yield "complete -c qarat -n __fish_use_subcommand -f"
    for first in dict.fromkeys(verb.split()[0] for verb in verbs):
        told = _quoted(first_line(verbs[first])) if first in verbs else "''"
        yield f"complete -c qarat -n __fish_use_subcommand -a {first} -d {told}"
    for family, words in seconds.items():
        yield f"complete -c qarat -n '__fish_seen_subcommand_from {family}' -a '{' '.join(words)}'"
    for verb, options in verbs.items():
        where = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in verb.split())
        for leaf in _flags(options):
            told = describe_fields(leaf.group).get(leaf.path[-1], "").partition(". ")[0].partition(" (default")[0]
            words = f" -x -a '{' '.join(choices)}'" if (choices := _choices(leaf)) else ""
            yield f"complete -c qarat -n '{where}' -l {leaf.typed.removeprefix('--')}{words} -d {_quoted(told)}"


def _families(verbs: Iterable[str]) -> dict[str, list[str]]:
    """First words of verbs that are two words, to the second ones."""
    pairs = [verb.split() for verb in verbs if " " in verb]
    return {first: [second for other, second in pairs if other == first] for first, _ in pairs}


def _flags(verb: type[msgspec.Struct]) -> list[Leaf]:
    return [leaf for leaf in leaves(verb) if not leaf.positional]


def _choices(leaf: Leaf) -> tuple[str, ...]:
    """What an option can be, where that is a fixed list; empty where it is not."""
    kind: Any = leaf.kind
    if listed := getattr(leaf.group, "LISTED", {}).get(leaf.path[-1]):  # a folder that is its own list
        return tuple(listed.names())
    return tuple(map(str, typing.get_args(kind))) if typing.get_origin(kind) is typing.Literal else ()


def _quoted(text: str) -> str:
    """Text as fish takes it between single quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

"""Words to options: verbs, their options from the command line and a config file, and what is wrong with them."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import typing
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any, cast

import msgspec
import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff, OmitArgPrefixes

from qarat.ground.errors import ArgumentError
from qarat.ground.registry import near, nearest_names
from qarat.surfaces.options import VERBS
from qarat.surfaces.options.arguments import build, flags_of, leaves, rules, spell_flags, stand_for
from qarat.values.budgets import parse_share


def split_verb(typed: Sequence[str]) -> tuple[str, list[str]]:
    """The verb, which may be two words as `law fit` is, and the words behind it."""
    length = 2 if typed[0] in families() else 1
    return " ".join(typed[:length]), list(typed[length:])


def families() -> set[str]:
    """First words of verbs that are two words."""
    return {verb.split()[0] for verb in VERBS if " " in verb}


def parse(typed: Sequence[str]) -> Any:
    """The options of a verb, from a config file and the words behind the verb, which win.

    Raises:
        ArgumentError: No such verb or option, or a value that is none; or as `_read_config`.
        SystemExit: After tyro has printed help.
    """
    verb, rest = split_verb(typed)
    if verb not in VERBS:
        if verb.startswith("-"):
            raise ArgumentError(f"options stand behind the verb: qarat VERB {verb}; see qarat --help")
        raise ArgumentError(f"there is no verb {verb!r}; {nearest_names(verb, list(VERBS))}; see qarat --help")
    rest, config = _take_config(rest)
    given = tyro.MISSING if config is None else _read_config(config, verb)
    boxed = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxed):
            options, unknown = tyro.cli(
                stand_for(VERBS[verb], given),
                prog=f"qarat {verb}",
                description=first_line(VERBS[verb]),
                args=rest,
                return_unknown_args=True,
                registry=rules(VERBS[verb]),
                config=(OmitArgPrefixes, FlagCreatePairsOff, DisallowNone),
            )
    except SystemExit as error:
        if not error.code:
            raise
        raise ArgumentError(f"{_unboxed(boxed.getvalue())}; see qarat {verb} --help") from None
    if unknown:
        raise ArgumentError(f"{_unknown(verb, unknown)}; see qarat {verb} --help")
    return options


_PLAINLY = {
    r"Missing value for argument '(\S+)'.*": r"\1 needs a value",
    r"invalid choice '(.*)' for argument '(\S+)'. Expected one of \((.*)\)": r"\2 \1 is none of \3",
    r"Missing from qarat [a-z ]+: (\S+) (.*?)\.? \(required\)": r"give \1: \2",
    r"Error parsing (\S+): (?:no type matching .* Got errors:)?": r"\1: ",
    r"- <class '\w+'>: ": "",
    r": it needs": " needs",
    r" - typing.*does not match choices \((.*?),?\)": r", nor \1",
}
"""What tyro says is wrong, and how it is said here."""


def _unboxed(text: str) -> str:
    """What tyro says is wrong, in a line as every other error: its first paragraph, out of the frame it is drawn in."""
    lines = [line.strip(" │|") for line in text.splitlines()[1:]]
    body = dropwhile(_is_rule, lines)  # without colours there is one under the title
    words = " ".join(" ".join(takewhile(lambda line: not _is_rule(line), body)).split())
    for pattern, plain in _PLAINLY.items():
        words = re.sub(pattern, plain, words)
    return " ".join(words.split()).rstrip(".")


def _is_rule(line: str) -> bool:
    return bool(line) and not set(line) - set("─-╰╯")


def _unknown(verb: str, words: Sequence[str]) -> str:
    """What to say of words that a verb does not take: its nearest options, where they look like some."""
    known = [f"--{leaf.flag}" for leaf in leaves(VERBS[verb])]
    flags = [word.partition("=")[0] for word in words if word.startswith("-")]
    if not flags:
        return f"`qarat {verb}` does not take {shlex.join(words)} as well"
    told = (f"{flag} ({', '.join(close)}?)" if (close := near(flag, known)) else flag for flag in flags)
    return f"`qarat {verb}` has no option {', '.join(told)}"


def spell(text: str, typed: Sequence[str]) -> str:
    """A message of the library with flags for the arguments that it names, as the verb of a command line has them."""
    return spell_flags(text, _flags(split_verb(typed)[0] if typed else ""))


@cache
def _flags(verb: str) -> dict[str, str]:
    return flags_of(VERBS.get(verb), VERBS)


def first_line(options: type) -> str:
    """What a verb does, in a line."""
    return (options.__doc__ or "").partition("\n")[0]


def _take_config(typed: Sequence[str]) -> tuple[list[str], Path | None]:
    """The words without ``--config FILE``, and the file."""
    rest: list[str] = []
    files: list[str] = []
    left = iter(typed)
    for word in left:
        name, equals, value = word.partition("=")
        if name != "--config":
            rest.append(word)
        elif value := value if equals else next(left, ""):
            files.append(value)
        else:
            raise ArgumentError("--config needs a file")
    if len(files) > 1:
        raise ArgumentError(f"--config is given {len(files)} times; give one file")
    return rest, Path(files[0]) if files else None


def _read_config(path: Path, verb: str) -> Any:
    """The options of a verb as a YAML file has them; the others at their defaults.

    Raises:
        ArgumentError: File missing or malformed, an option that the verb does not have, or a value that is none.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        given, node = yaml.safe_load(text), cast(Any, yaml.compose(text, yaml.SafeLoader))
    except OSError as error:
        raise ArgumentError(f"--config {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArgumentError(f"--config {path} is no YAML: {error}") from error
    if not isinstance(given, dict):
        raise ArgumentError(f"--config {path} holds no `name: value` lines, with the names of options")
    names = [str(key.value).replace("_", "-") for key, _ in node.value]  # of a name given twice YAML keeps the last
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ArgumentError(f"--config {path} gives {', '.join(twice)} more than once")
    known = {leaf.flag: leaf for leaf in leaves(VERBS[verb])}
    config = known.pop("config")
    values: dict[tuple[str, ...], Any] = {config.path: str(path)}
    for name, value in given.items():
        leaf = known.get(str(name).replace("_", "-"))
        if leaf is None:
            nearest = nearest_names(str(name).replace("_", "-"), list(known))
            raise ArgumentError(f"--config {path}: `qarat {verb}` has no option {name!r}; {nearest}")
        values[leaf.path] = _convert(path, name, value, leaf.kind)
    return build(VERBS[verb], values)


def _convert(path: Path, name: str, value: Any, kind: Any) -> Any:
    """A value of YAML as an option's type: lists may be a single entry, numbers may be text and text numbers."""
    if typing.get_origin(kind) is tuple:
        # `a: b` without quotes is a mapping to YAML; as an entry of `set` it is what the flag takes as 'a: b'.
        entries = value if isinstance(value, list) else [value]
        rows = [list(e.items()) if isinstance(e, dict) else [e] for e in entries]
        value = [f"{e[0]}: {e[1]}" if isinstance(e, tuple) else e for row in rows for e in row]
    if "float" in str(kind):
        value = [parse_share(entry) for entry in value] if isinstance(value, list) else parse_share(value)
    numbers = isinstance(value, int | float) and not isinstance(value, bool)
    if numbers and kind in (str, str | None):
        value = str(value)
    try:
        return msgspec.convert(value, kind, strict=False, dec_hook=lambda wanted, x: wanted(x))
    except (msgspec.ValidationError, TypeError) as error:
        raise ArgumentError(f"--config {path}: {name}: {error}") from None

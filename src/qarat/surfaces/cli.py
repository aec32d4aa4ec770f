"""The command line: words to options, options to commands, answers to tables or JSON, errors to plain words.

A command is imported only once the words are understood, and no command but that one: torch and transformers take
seconds, and neither help, nor a mistyped option, nor what only reads should wait for them.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import re
import shlex
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import msgspec
import tyro
from rich.console import Console
from rich.text import Text
from tyro.conf import DisallowNone, FlagCreatePairsOff, OmitArgPrefixes

from qarat import __version__
from qarat.ground.errors import ArgumentError, NotPassedError, UserError, local_cause
from qarat.ground.registry import near, nearest_names
from qarat.surfaces.commands import Lines, Screen
from qarat.surfaces.options import VERBS
from qarat.surfaces.options.arguments import build, flags_of, leaves, rules, spell_flags
from qarat.surfaces.progress import StageProgress
from qarat.surfaces.tables.data import respelled
from qarat.values.budgets import parse_share

ABOUT = "Find where a LLaMA-family model needs precision, keep it there, quantize the rest, and measure the cost."
FAILED, MISUSED, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141  # the last two as a shell reports SIGINT and SIGPIPE
WIDTH = 100  # of tables, where stdout is no terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: Default: those of the process.

    Returns:
        The exit code: 0, 1 for an error that the user can mend, 2 for words that make no sense, 3 for no verdict, 130
        after Ctrl-C.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    with _plain_errors(typed) as outcome:
        if typed[:1] == ["help"]:
            typed = [*typed[1:3], "--help"]
        if not typed or typed[0] in ("-h", "--help"):
            print(_overview(VERBS))
        elif typed[0] in _families() and typed[1:] in ([], ["-h"], ["--help"]):
            print(_overview(verb for verb in VERBS if verb.startswith(f"{typed[0]} ")))
        elif typed[0] in ("-V", "--version"):
            print(f"qarat {__version__}")
        else:
            _run(typed, outcome)
    return outcome.code


def _run(typed: list[str], outcome: _Outcome) -> None:
    options = parse(typed)
    outcome.verbose = options.general.verbose
    options.check()
    command = load_command(_split_verb(typed)[0])
    with StageProgress(Console(stderr=True, quiet=options.general.quiet)) as bars:
        screen = _Json(typed, bars) if options.general.json else _Tables(typed, bars)
        try:
            ending = command(options, screen)
        except NotPassedError:
            screen.close(())
            raise
    screen.close(ending)


def load_command(verb: str) -> Callable[[Any, Screen], Lines]:
    """The function behind a verb; it and what it needs are imported now."""
    module = VERBS[verb].__module__.rpartition(".")[2]
    return getattr(importlib.import_module(f"qarat.surfaces.commands.{module}"), verb.replace(" ", "_"))


def _split_verb(typed: Sequence[str]) -> tuple[str, list[str]]:
    """The verb, which may be two words as `law fit` is, and the words behind it."""
    length = 2 if typed[0] in _families() else 1
    return " ".join(typed[:length]), list(typed[length:])


def _families() -> set[str]:
    """First words of verbs that are two words."""
    return {verb.split()[0] for verb in VERBS if " " in verb}


def _flags_of(typed: Sequence[str]) -> dict[str, str]:
    """How the arguments that messages name are spelled, for the verb of a command line."""
    return flags_of(VERBS.get(_split_verb(typed)[0]) if typed else None, VERBS)


def _overview(verbs: Iterable[str]) -> str:
    """What `qarat` alone prints, or `qarat law` of its family."""
    lines = [f"qarat {__version__}: {ABOUT[0].lower()}{ABOUT[1:]}", "", "usage: qarat VERB [MODEL] [options]", ""]
    lines += [f"  {verb:<13}{_first_line(VERBS[verb])}" for verb in verbs]
    lines += ["", "qarat VERB --help explains every option of a verb. To begin, with the model that ships: qarat run"]
    return "\n".join(lines)


class _Screen:
    """What both kinds of screen share: progress and notes, on stderr."""

    def __init__(self, typed: Sequence[str], bars: StageProgress) -> None:
        self.command = shlex.join(["qarat", *typed])
        self.progress = bars
        self._bars = bars
        self._words = typed

    def note(self, text: str) -> None:
        with self._bars.aside():
            self._bars.console.print(Text(f"note: {self._spell(text)}"), soft_wrap=True)

    def _spell(self, text: str) -> str:
        """A message of the library, with flags for the arguments that it names."""
        return spell_flags(text, self._flags)

    @cached_property
    def _flags(self) -> dict[str, str]:
        return _flags_of(self._words)  # of every verb, so once is enough


class _Tables(_Screen):
    """Shows records as tables on stdout, as they come."""

    def __init__(self, typed: Sequence[str], bars: StageProgress) -> None:
        super().__init__(typed, bars)
        self._console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
        self._terminal = importlib.import_module("qarat.surfaces.terminal")
        self._report_of = importlib.import_module("qarat.surfaces.tables.reports").report_of

    def show(self, *records: object, title: str = "", **context: Any) -> None:
        # A bar and a table would meet on one line: the bars step aside.
        with self._bars.aside():
            if title:
                self._console.print(f"\n[bold]{title}[/bold]")
            self._console.print(self._terminal.draw(respelled(self._report_of(*records, **context), self._spell)))

    def close(self, ending: Sequence[str]) -> None:
        """Say what was written, and what to do next."""
        if ending:
            self._console.print()
            self._console.print(self._terminal.ending(ending), soft_wrap=True)


class _Json(_Screen):
    """Keeps what is shown, and prints one JSON document at the end: a record, or the list of several."""

    def __init__(self, typed: Sequence[str], bars: StageProgress) -> None:
        super().__init__(typed, bars)
        self._shown: list[object] = []
        self._several = typed[0] == "models"  # a list also where there is but one
        self._describe = importlib.import_module("qarat.values.records.files").describe_record

    def show(self, *records: object, **_: Any) -> None:
        self._shown += map(self._describe, records)

    def close(self, ending: Sequence[str]) -> None:
        whole = self._shown if self._several or len(self._shown) != 1 else self._shown[0]
        print(msgspec.json.format(msgspec.json.encode(whole), indent=1).decode())


class _Outcome:
    code, verbose = 0, False


@contextlib.contextmanager
def _plain_errors(typed: Sequence[str]) -> Iterator[_Outcome]:
    """Turn errors that a user can mend into words on stderr, with their arguments as flags, and an exit code."""
    outcome = _Outcome()

    def fail(code: int, text: str) -> None:
        if outcome.verbose:
            traceback.print_exc()
        print(f"qarat: {spell_flags(text, _flags_of(typed))}", file=sys.stderr)
        outcome.code = code

    try:
        yield outcome
        sys.stdout.flush()
    except UserError as error:
        fail(error.code, str(error))
    except KeyboardInterrupt:
        fail(INTERRUPTED, "interrupted; nothing is half-written, and the same command goes on from what is done")
    except SystemExit:  # from tyro, after help
        pass
    except BrokenPipeError:  # whoever read stdout has had enough
        outcome.code = PIPE_CLOSED
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        full = "; free some space and run the same command again" if error.errno == errno.ENOSPC else ""
        fail(FAILED, f"{where}{error.strerror or error}{full}")
    except (MemoryError, RuntimeError) as error:
        if not (cause := local_cause(error)):
            raise
        fail(FAILED, f"{cause}; give less with `memory` or `threads`, or free some, and run the same command again")


def parse(typed: Sequence[str]) -> Any:
    """The options of a verb, from a config file and the words behind the verb, which win.

    Raises:
        ArgumentError: No such verb or option, or a value that is none; or as `_read_config`.
        SystemExit: After tyro has printed help.
    """
    verb, rest = _split_verb(typed)
    if verb not in VERBS:
        if verb.startswith("-"):
            raise ArgumentError(f"options stand behind the verb: qarat VERB {verb}; see qarat --help")
        raise ArgumentError(f"there is no verb {verb!r}; {nearest_names(verb, list(VERBS))}; see qarat --help")
    rest, config = _take_config(rest)
    given = {} if config is None else {"default": _read_config(config, verb)}
    boxed = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxed):
            options, unknown = tyro.cli(
                VERBS[verb],
                prog=f"qarat {verb}",
                description=_first_line(VERBS[verb]),
                args=rest,
                return_unknown_args=True,
                registry=rules(VERBS[verb]),
                config=(OmitArgPrefixes, FlagCreatePairsOff, DisallowNone),
                **given,
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
    r" - typing.*does not match choices \((.*?),?\)": r", nor \1",
}
"""What tyro says is wrong, and how it is said here."""


def _unboxed(text: str) -> str:
    """What tyro says is wrong, in a line as every other error: its first paragraph, out of the frame it is drawn in."""
    lines = [line.strip(" │|") for line in text.splitlines()[1:]]
    body = dropwhile(_is_rule, lines)  # without colours there is one under the title
    words = " ".join(" ".join(takewhile(lambda line: not _is_rule(line), body)).split())
    for said, plain in _PLAINLY.items():
        words = re.sub(said, plain, words)
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


def _first_line(options: type) -> str:
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
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError(f"--config {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArgumentError(f"--config {path} is no YAML: {error}") from error
    if not isinstance(given, dict):
        raise ArgumentError(f"--config {path} holds no `name: value` lines, with the names of options")
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


if __name__ == "__main__":
    sys.exit(main())

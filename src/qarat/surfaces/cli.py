"""The command line: words to options, options to commands, answers to tables or JSON, errors to plain words.

A command is imported only once the words are understood, and no command but that one: torch and transformers take
seconds, and neither help, nor a mistyped option, nor what only reads should wait for them.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

from qarat import __version__
from qarat.ground.errors import NotPassedError, UserError, local_cause
from qarat.surfaces.commands import Lines, Screen
from qarat.surfaces.options import VERBS
from qarat.surfaces.options.arguments import flags_of, spell_flags
from qarat.surfaces.progress import StageProgress
from qarat.surfaces.tables.data import respelled
from qarat.surfaces.words import families, first_line, parse, split_verb

ABOUT = "Find where a LLaMA-family model needs precision, keep it there, quantize the rest, and measure the cost."
FAILED, INTERRUPTED, PIPE_CLOSED = 1, 130, 141  # the last two as a shell reports SIGINT and SIGPIPE
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
        elif typed[0] in families() and typed[1:] in ([], ["-h"], ["--help"]):
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
    command = load_command(split_verb(typed)[0])
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


def _flags_of(typed: Sequence[str]) -> dict[str, str]:
    """How the arguments that messages name are spelled, for the verb of a command line."""
    return flags_of(VERBS.get(split_verb(typed)[0]) if typed else None, VERBS)


def _overview(verbs: Iterable[str]) -> str:
    """What `qarat` alone prints, or `qarat law` of its family."""
    lines = [f"qarat {__version__}: {ABOUT[0].lower()}{ABOUT[1:]}", "", "usage: qarat VERB [MODEL] [options]", ""]
    lines += [f"  {verb:<13}{first_line(VERBS[verb])}" for verb in verbs]
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


if __name__ == "__main__":
    sys.exit(main())

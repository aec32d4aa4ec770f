"""The command line: words to options, options to commands, answers to tables or JSON, errors to plain words.

A command is imported only once the words are understood, and no command but that one: torch and transformers take
seconds, and neither help, nor a mistyped option, nor what only reads should wait for them.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from qarat import __version__
from qarat.ground.errors import NotPassedError, UserError, local_cause
from qarat.surfaces.commands import Lines, Screen
from qarat.surfaces.options import VERBS
from qarat.surfaces.words import families, first_line, parse, spell, split_verb

ABOUT = "Find where a LLaMA-family model needs precision, keep it there, quantize the rest, and measure the cost."
FAILED, INTERRUPTED, PIPE_CLOSED = 1, 130, 141  # the last two as a shell reports SIGINT and SIGPIPE


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
    screens = importlib.import_module("qarat.surfaces.screens")  # with rich, which no refusal waits for
    with screens.begin(options.general, typed) as screen:
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


_WIDEST = max(map(len, VERBS)) + 1


def _overview(verbs: Iterable[str]) -> str:
    """What `qarat` alone prints, or `qarat law` of its family."""
    lines = [f"qarat {__version__}: {ABOUT[0].lower()}{ABOUT[1:]}", "", "usage: qarat VERB [MODEL] [options]", ""]
    lines += [f"  {verb:<{_WIDEST}}{first_line(VERBS[verb])}" for verb in verbs]
    lines += ["", "qarat VERB --help explains every option of a verb. To begin, with the model that ships: qarat run"]
    return "\n".join(lines)


class _Outcome:
    code, verbose = 0, False


@contextlib.contextmanager
def _plain_errors(typed: Sequence[str]) -> Iterator[_Outcome]:
    """Turn errors that a user can mend into words on stderr, with their arguments as flags, and an exit code."""
    outcome = _Outcome()

    def fail(code: int, text: str) -> None:
        if outcome.verbose:
            traceback.print_exc()
        print(f"qarat: {spell(text, typed)}", file=sys.stderr)
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

"""The command line: verbs from `qarat.commands`, progress bars, tables or JSON, and errors in plain words."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import tyro
import yaml
from rich.console import Console

from qarat import __version__, commands
from qarat.errors import UserError
from qarat.formats import nearest_names
from qarat.recordfiles import describe_record
from qarat.report.progress import StageProgress
from qarat.report.terminal import render_all

__all__ = ["main"]

VERBS = {
    "run": commands.RunAll,
    "profile": commands.Profile,
    "damage": commands.Damage,
    "plan": commands.PlanSites,
    "quantize": commands.Quantize,
    "evaluate": commands.Evaluate,
    "show": commands.Show,
    "models": commands.Models,
}
INTERRUPTED = 130  # what a shell reports for Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code is 0, 1 for an error the user can mend, or 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        print(f"qarat {__version__}")
        return 0
    with _plain_errors() as outcome:
        verb = tyro.extras.subcommand_cli_from_dict(
            VERBS,
            prog="qarat",
            description="Find where a LLaMA-family model needs precision, keep it there, quantize the rest, and measure the cost.",
            args=_with_config(given),
            config=(tyro.conf.OmitArgPrefixes,),
        )
        with StageProgress() as bars:
            screen = _Json() if verb.json else _Tables(bars)
            verb(bars, screen.show)
        screen.close()
    return outcome.code


class _Tables:
    """Shows records as tables on stdout, as they come."""

    def __init__(self, bars: StageProgress) -> None:
        self._bars = bars
        self._console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)

    def show(self, *records: object, title: str = "", **context: Any) -> None:
        # A bar and a table would meet on one line: the bars step aside.
        with self._bars.aside():
            if title:
                self._console.print(f"\n[bold]{title}[/bold]")
            self._console.print(render_all(records, **context))

    def close(self) -> None:
        """Nothing is held back."""


class _Json:
    """Keeps what is shown, and prints one JSON document at the end: the record, or a list of several."""

    def __init__(self) -> None:
        self._shown: list[object] = []

    def show(self, *records: object, **_: Any) -> None:
        self._shown += map(describe_record, records)

    def close(self) -> None:
        whole = self._shown[0] if len(self._shown) == 1 else self._shown
        print(msgspec.json.format(msgspec.json.encode(whole), indent=1).decode())


class _Outcome:
    code = 0


@contextlib.contextmanager
def _plain_errors() -> Iterator[_Outcome]:
    """Turn errors that a user can mend into words on stderr and an exit code."""
    outcome = _Outcome()
    try:
        yield outcome
    except UserError as error:
        print(f"qarat: {error}", file=sys.stderr)
        outcome.code = 1
    except KeyboardInterrupt:
        print("qarat: interrupted; nothing is half-written. `qarat run` continues with the same command", file=sys.stderr)
        outcome.code = INTERRUPTED


def _with_config(given: list[str]) -> list[str]:
    """The arguments with a ``--config`` file's options put in front of the flags, so that flags win.

    Raises:
        UserError: File missing or malformed, or an option that the verb does not have.
    """
    if "--config" not in given or not given:
        return given
    place = given.index("--config")
    if place + 1 >= len(given):
        raise UserError("--config needs a file")
    path = Path(given[place + 1])
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {error}") from error
    if not isinstance(options, dict):
        raise UserError(f"{path} must hold `name: value` lines, with the names of the options")
    verb, *flags = given
    known = _option_names(verb)
    words: list[str] = []
    for name, value in options.items():
        option = str(name).replace("_", "-")
        if option not in known:
            raise UserError(f"{path}: `qarat {verb}` has no option {name!r}; {nearest_names(option, sorted(known))}")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif option == "set":
            words += [word for rule in value for word in ("--set", str(rule))]
        elif value is not None:
            words += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
    return [verb, *words, *flags[: place - 1], *flags[place + 1 :]]


def _option_names(verb: str) -> set[str]:
    """The options of a verb, as the command line spells them."""
    if verb not in VERBS:
        raise UserError(f"unknown verb {verb!r}; {nearest_names(verb, list(VERBS))}")
    return {name.replace("_", "-") for name in VERBS[verb].__dataclass_fields__}


if __name__ == "__main__":
    sys.exit(main())

"""Screens: how a command's records are answered, as tables while they come or as one JSON document at the end.

They draw with rich; they are imported once a command runs, so that help and refusals need not wait for it.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

from qarat.surfaces import terminal
from qarat.surfaces.options.groups import Printing
from qarat.surfaces.progress import StageProgress
from qarat.surfaces.tables.data import respelled
from qarat.surfaces.tables.reports import report_of
from qarat.surfaces.words import spell
from qarat.values.records.files import describe_record

WIDTH = 100  # of tables, where stdout is no terminal


@contextmanager
def begin(printing: Printing, typed: Sequence[str]) -> Iterator[Tables | Json]:
    """The screen of a command line; its bars are gone when the context ends."""
    with StageProgress(Console(stderr=True, quiet=printing.quiet)) as bars:
        yield Json(typed, bars) if printing.json else Tables(typed, bars)


class _Screen:
    """What both kinds of screen share: progress and notes, on stderr."""

    def __init__(self, typed: Sequence[str], bars: StageProgress) -> None:
        self.command = shlex.join(["qarat", *typed])
        self.progress = bars
        self._bars = bars
        self._words = typed

    def note(self, text: str) -> None:
        """Say what a person should know and a program need not."""
        with self._bars.aside():
            self._bars.console.print(Text(f"note: {self._spell(text)}"), soft_wrap=True)

    def _spell(self, text: str) -> str:
        return spell(text, self._words)


class Tables(_Screen):
    """Shows records as tables on stdout, as they come."""

    def __init__(self, typed: Sequence[str], bars: StageProgress) -> None:
        super().__init__(typed, bars)
        self._console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)

    def show(self, *records: object, title: str = "", **context: Any) -> None:
        """Draw records now."""
        with self._bars.aside():  # a bar and a table would meet on one line
            if title:
                self._console.print(f"\n[bold]{title}[/bold]")
            self._console.print(terminal.draw(respelled(report_of(*records, **context), self._spell)))

    def close(self, ending: Sequence[str]) -> None:
        """Say what was written, and what to do next."""
        if ending:
            self._console.print()
            self._console.print(terminal.ending(ending), soft_wrap=True)


class Json(_Screen):
    """Keeps what is shown, and prints one JSON document at the end: a record, or the list of several."""

    def __init__(self, typed: Sequence[str], bars: StageProgress) -> None:
        super().__init__(typed, bars)
        self._shown: list[object] = []
        self._several = typed[0] == "models"  # a list also where there is but one

    def show(self, *records: object, **_: Any) -> None:
        """Keep records for the end."""
        self._shown += map(describe_record, records)

    def close(self, ending: Sequence[str]) -> None:
        """Print the document; what is said to people is left out."""
        whole = self._shown if self._several or len(self._shown) != 1 else self._shown[0]
        print(msgspec.json.format(msgspec.json.encode(whole), indent=1).decode())

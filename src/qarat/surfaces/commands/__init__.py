"""Commands: one function per verb, paths in, paths out; each puts stages together and holds no logic of its own.

A command takes the options of its verb and a screen, and returns the last lines to be said: what was written, and what
to try next. It stands in the module that is called as the one of its options (`qarat.surfaces.options`), so that a verb
imports what it needs and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

Lines = Sequence[str]


class Screen(Protocol):
    """Where a command is answered.

    Attributes:
        command: As it was typed.
    """

    command: str

    def progress(self, stage: str, done: int, total: int) -> None:
        """A stage has done so many of so many units."""
        ...

    def show(self, *records: object, title: str = "", **context: Any) -> None:
        """Show records; the context says what to set beside them."""
        ...

    def note(self, text: str) -> None:
        """Say what a person should know and a program need not."""
        ...

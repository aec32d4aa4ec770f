"""What a command sees of whoever asked it: a place for progress, records and notes."""

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

"""What a section of a page is made of, beside figures; `parts.html` has a macro for each, called as its class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from qarat.surfaces.page.figures.base import Figure
from qarat.surfaces.tables.data import DataTable, Passages


class Titled(NamedTuple):
    """A table with a heading."""

    title: str
    table: DataTable


class Listed(NamedTuple):
    """A list of sentences."""

    lines: Sequence[str]


class Terms(NamedTuple):
    """Terms, each with one description or more."""

    name: str
    rows: Sequence[Sequence[str]]


class Command(NamedTuple):
    """Lines to type, and what they are called where they are not seen."""

    name: str
    text: str


class Folded(NamedTuple):
    """Parts that a reader opens before they are drawn."""

    title: str
    parts: tuple[Part, ...]


Part = Figure | Folded | Titled | Listed | Terms | Command | Passages | str
"""A string is a paragraph."""


def figures_in(parts: Iterable[Part]) -> Iterator[Figure]:
    """Every figure, folded or not."""
    for part in parts:
        if isinstance(part, Folded):
            yield from figures_in(part.parts)
        elif isinstance(part, Figure):
            yield part

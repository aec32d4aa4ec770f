"""What a report is made of: lines, tables whose cells are written once, and texts side by side.

A record becomes a sequence of such parts, and knows nothing of how they are drawn: `qarat.surfaces.terminal` draws them
with rich, `qarat.surfaces.tables.html` writes them for a page or a notebook, and a figure shows a row of its table on
hover. Cells are strings, since every renderer is to show the same digits; what a number is in full, the record says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from qarat.surfaces.tables.wording import GAP, visible
from qarat.values.fingerprints import transforms_of


class Line(NamedTuple):
    """One paragraph: words in a style, then the rest in none.

    Attributes:
        text: Of the paragraph.
        style: ``bold``, ``dim``, or none.
        rest: What follows on the same line.
        indent: Blanks in front of it.
    """

    text: str
    style: str = ""
    rest: str = ""
    indent: int = 0


class Marked(str):
    """A cell with a style of its own."""

    style: str

    def __new__(cls, text: str, style: str) -> Marked:
        """The text, with the style beside it."""
        cell = super().__new__(cls, text)
        cell.style = style
        return cell


class Quoted(Marked):
    """A cell of somebody's text, which is never spelled otherwise."""


class Passage(NamedTuple):
    """A text beside others that begin alike.

    Attributes:
        label: Whose it is.
        note: What is to be said of it.
        lead: What it continues: the last line of the prompt; the whole prompt, where that is the passage.
        shared: How it begins like the first.
        rest: How it goes on from where it departs.
    """

    label: str
    note: str
    lead: str
    shared: str = ""
    rest: str = ""


class Passages(NamedTuple):
    """Texts one below the other, the prompt first."""

    title: str
    texts: tuple[Passage, ...]


class Column(NamedTuple):
    """A column.

    Attributes:
        header: With its unit in brackets, broken into lines where a terminal is narrow.
        number: Whether it holds numbers, which are aligned to the right and never broken.
        wrap: Whether words may be broken.
        style: Of its cells.
    """

    header: str
    number: bool = False
    wrap: bool = True
    style: str = ""

    @property
    def name(self) -> str:
        """The header on one line."""
        return self.header.strip().replace("\n", " ")


@dataclass(frozen=True)
class DataTable:
    """A table; make one with `table`.

    Attributes:
        columns: From left to right.
        rows: One cell a column; some are `Marked`.
        total: Whether the last row sums up the others.
        headed: Whether the columns' headers are shown.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    total: bool = False
    headed: bool = True

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"rows that do not have the {len(self.columns)} columns {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The headers, each on one line."""
        return tuple(column.name for column in self.columns)

    def used(self) -> DataTable:
        """The table without the columns in which nothing stands."""
        return self.only(i for i in range(len(self.columns)) if any(row[i] for row in self.rows))

    def only(self, places: Iterable[int]) -> DataTable:
        """Some of its columns."""
        kept = tuple(places)
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return DataTable(tuple(self.columns[i] for i in kept), rows, self.total, self.headed)

    def details(self, row: int) -> Mapping[str, str]:
        """One row by column, as fields of a chart's data."""
        return {field_name(name): visible(cell) for name, cell in zip(self.names, self.rows[row], strict=True)}


Part = str | Line | DataTable | Passages
"""A string is a paragraph; an empty one a gap where a renderer has lines."""
Parts = Iterator[Part]


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], *, total: bool = False) -> DataTable:
    """A table of columns as `texts` and `numbers` make them."""
    return DataTable(tuple(columns), tuple(map(tuple, rows)), total)


def pairs(rows: Iterable[Sequence[str]]) -> DataTable:
    """Terms and what is said of them, without headers."""
    return DataTable((Column("", wrap=False), Column("")), tuple(map(tuple, rows)), headed=False)


def texts(*headers: str, wrap: bool = True, style: str = "") -> tuple[Column, ...]:
    """Columns of words."""
    return tuple(Column(header, False, wrap, style) for header in headers)


def numbers(*headers: str) -> tuple[Column, ...]:
    """Columns of numbers."""
    return tuple(Column(header, True, False) for header in headers)


def marked(row: Sequence[str], style: str) -> tuple[str, ...]:
    """A row with every cell in a style; none for no style."""
    return tuple(Marked(cell, style) for cell in row) if style else tuple(row)


def field_name(column: str) -> str:
    """A column's name as a field of Vega-Lite's, where dots and square brackets mean something."""
    return column.replace(".", " ").replace("[", "(").replace("]", ")")


def title(subject: str, model: str, *facts: str) -> Line:
    """The first line of a report: what it is, of which model, and the facts of the first rank."""
    shown = (f"model {model[:12]}", *transforms_of(model), *facts)
    return Line(subject, "bold", "".join(f"{GAP}{fact}" for fact in shown))


def bold(text: str, rest: str = "") -> Line:
    """A heading or a verdict."""
    return Line(text, "bold", rest)


def dim(text: str) -> Line:
    """What is to be known beside the numbers."""
    return Line(text, "dim")


def respelled(parts: Iterable[Part], spell: Callable[[str], str]) -> Iterator[Part]:
    """The parts with their words spelled otherwise; texts, and what is quoted from them, as they are."""

    def respell(text: str) -> str:
        if isinstance(text, Quoted):
            return text
        return Marked(spell(text), text.style) if isinstance(text, Marked) else spell(text)

    for part in parts:
        if isinstance(part, DataTable):
            yield replace(part, rows=tuple(tuple(map(respell, row)) for row in part.rows))
        elif isinstance(part, Line):
            yield part._replace(text=spell(part.text), rest=spell(part.rest))
        else:
            yield respell(part) if isinstance(part, str) else part

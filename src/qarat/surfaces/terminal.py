"""Reports on the terminal, drawn with rich, up to 100 columns wide; they also read well without colour.

What a record says is decided in `qarat.surfaces.tables`; here is how it looks: a rule under the headers and no frame,
so that it reads well piped into a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.panel import Panel
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from qarat.surfaces.tables.data import DataTable, Part, Passage, Passages
from qarat.surfaces.tables.reports import report_of
from qarat.surfaces.tables.wording import visible

DEPARTED = "bold underline"
MARK = "≠"  # in the margin, because bold and underlined do not survive a pipe


def render(*records: object, **context: Any) -> RenderableType:
    """Records as something rich can print: those of a kind side by side where they can be compared.

    Args:
        *records: As `qarat.surfaces.tables.reports.report_of` takes them.
        **context: The same.

    Raises:
        TypeError: There is no report of such a thing.
        UserError: The context belongs to another model.
    """
    return draw(report_of(*records, **context))


def draw(parts: Iterable[Part]) -> RenderableType:
    """The parts of a report, one below the other."""
    return Group(*map(_part, parts))


def ending(lines: Sequence[str]) -> RenderableType:
    """The last lines of a command: what was written, and what to do next.

    A path or a command in them must survive being copied: print it with ``soft_wrap=True``.
    """
    return Text(visible("\n".join(lines)))


def _part(part: Part) -> RenderableType:
    if isinstance(part, DataTable):
        return _table(part)
    if isinstance(part, Passages):
        return _passages(part)
    if isinstance(part, str):
        return _literal(part)
    text = Text.assemble((visible(part.text), part.style), visible(part.rest))
    return Padding(text, (0, 0, 0, part.indent)) if part.indent else text


def _literal(text: str) -> Text:
    """Text taken literally, with its own style: no markup, no control characters."""
    return Text(visible(text), getattr(text, "style", ""))


@dataclass(frozen=True)
class _Cell:
    """A cell with the blanks beside it.

    rich measures, wraps and pads whatever stands in a table, which takes most of the time that a long one needs. Most
    texts fit on one line: those are written as they are, and only the others are left to rich.
    """

    text: Text
    left: int
    right: int

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        least, most = self.text.__rich_measure__(console, options)
        return Measurement(least + self.left + self.right, most + self.left + self.right)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        blanks = options.max_width - self.left - self.right - self.text.cell_len
        if blanks < 0 or "\n" in self.text.plain:
            yield Padding(self.text, (0, self.right, 0, self.left))
            return
        before = " " * blanks if options.justify == "right" else ""
        yield Segment(" " * self.left)
        yield Segment(before + self.text.plain, console.get_style(self.text.style))


def _table(data: DataTable) -> Table:
    left, right = (1, 1) if data.headed else (0, 2)  # blanks beside a cell, but at the table's edges
    last = len(data.columns) - 1

    def cells(texts: Sequence[str]) -> list[_Cell]:
        return [_Cell(_literal(text), left * (i > 0), right * (i < last)) for i, text in enumerate(texts)]

    columns = [
        Column(header, justify="right", no_wrap=True)
        if c.number
        else Column(header, no_wrap=not c.wrap, overflow="fold", vertical="top", style=c.style)
        for c, header in zip(data.columns, cells([c.header for c in data.columns]), strict=True)
    ]
    look = box.SIMPLE_HEAD if data.headed else None
    out = Table(
        *columns, box=look, padding=0, show_edge=False, show_header=data.headed, header_style="bold" if look else ""
    )
    for place, row in enumerate(data.rows, 1):
        out.add_row(*cells(row), end_section=data.total and place == len(data.rows) - 1)
    return out


def _passages(passages: Passages) -> RenderableType:
    """Texts in a frame, each below its label."""
    parts: list[RenderableType] = []
    for passage in passages.texts:
        note = f"  {visible(passage.note)}" if passage.note else ""
        parts += [Text(), Text.assemble((visible(passage.label), "bold"), note), _passage(passage)]
    title = passages.title
    return Panel(Group(*parts[1:]), title=title, title_align="left", box=box.ROUNDED, padding=(0, 1))


def _passage(passage: Passage) -> RenderableType:
    """The text behind what it continues, so that code keeps its indentation, with the mark before departed lines."""
    shared, rest = visible(passage.shared), visible(passage.rest)
    text = Text.assemble((visible(passage.lead), "dim"), shared, (rest, DEPARTED))
    departed = shared.count("\n") if rest else None
    grid = Table.grid(Column(width=1), Column(overflow="fold"), padding=(0, 1))
    for index, line in enumerate(text.split("\n", allow_blank=True)):
        line.expand_tabs(4)
        grid.add_row(Text(MARK if departed is not None and index >= departed else "", "bold"), line)
    return grid

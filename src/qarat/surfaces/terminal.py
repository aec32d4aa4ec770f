"""Reports on the terminal, drawn with rich, up to 100 columns wide; they also read well without colour.

`render` takes any record; keyword arguments give it other records to set beside it. What a record says is decided in
`qarat.surfaces.tables`; here is how it looks: a rule under the headers and no frame, so that it reads well piped into a
file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from qarat.surfaces.tables.data import DataTable, Part, Passage, Passages
from qarat.surfaces.tables.reports import report_of
from qarat.surfaces.tables.wording import visible

DEPARTED = "bold underline"
MARK = "≠"  # in the margin, because bold and underlined do not survive a pipe


def render(record: object, **context: Any) -> RenderableType:
    """A record as something rich can print.

    Args:
        record: Of any kind that `qarat.surfaces.tables.reports` knows.
        **context: As `qarat.surfaces.tables.reports.report_of` takes it.

    Raises:
        TypeError: If there is no report of such a thing.
        UserError: If the context belongs to another model.
    """
    return render_all([record], **context)


def render_all(records: Sequence[object], **context: Any) -> RenderableType:
    """Several records: those of a kind side by side where they can be compared, others one after the other."""
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


def _table(data: DataTable) -> Table:
    columns = [
        Column(_literal(c.header), justify="right", no_wrap=True)
        if c.number
        else Column(_literal(c.header), no_wrap=not c.wrap, overflow="fold", vertical="top", style=c.style)
        for c in data.columns
    ]
    if data.headed:
        out = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    else:
        out = Table(*columns, box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for place, row in enumerate(data.rows, 1):
        out.add_row(*map(_literal, row), end_section=data.total and place == len(data.rows) - 1)
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

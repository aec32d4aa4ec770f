"""HTML: text made harmless, the few elements that a page is put together from, and reports in them.

Needs nothing but the standard library, so that a notebook can show a record without what draws figures.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from qarat.surfaces.tables.data import DataTable, Line, Part, Passage, Passages
from qarat.surfaces.tables.reports import report_of
from qarat.surfaces.tables.wording import visible

_TAGS = {"bold": "b", "bold red": "b", "dim": "small", "yellow": "b", "": ""}


def record_html(*records: object, **context: Any) -> str:
    """The report of records, as `qarat.surfaces.tables.reports.report_of` takes them, to stand by itself."""
    return element("div", *map(part_html, report_of(*records, **context)), class_="qarat")


def part_html(part: Part) -> str:
    """One part of a report."""
    if isinstance(part, DataTable):
        return table_html(part)
    if isinstance(part, Passages):
        heading = element("h3", escaped(part.title))
        return element("div", heading, *map(_passage, part.texts), class_="texts")
    if isinstance(part, Line):
        return element("p", _styled(prose(part.text), part.style), prose(part.rest))
    return paragraph(part) if part else ""


def escaped(text: str) -> str:
    """Text for HTML: nothing in it is markup, and control characters are shown."""
    return html.escape(visible(text))


def prose(text: str) -> str:
    """A sentence for HTML: a number and its per cent sign stay on one line."""
    return escaped(text).replace(" %", "\u00a0%")


def paragraph(text: str) -> str:
    """A paragraph of prose."""
    return element("p", prose(text))


def element(tag: str, *children: str, **attributes: str) -> str:
    """An element around markup; attribute names end in ``_`` where Python needs that, and text in them is escaped."""
    named = "".join(f' {name.rstrip("_").replace("_", "-")}="{escaped(value)}"' for name, value in attributes.items())
    return f"<{tag}{named}>{''.join(children)}</{tag}>"


def script_data(key: str, value: object) -> str:
    """A value as JSON that a script of the page reads; no ``<`` in it, so nothing in it ends the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{escaped(key)}">{text}</script>'


def table_html(data: DataTable) -> str:
    """A table; columns of numbers are aligned to the right."""
    numeric = [column.number for column in data.columns]
    head = f"<thead><tr>{_cells('th', data.names, numeric)}</tr></thead>" if data.headed else ""
    rows = "".join(f"<tr>{_cells('td', row, numeric)}</tr>" for row in data.rows)
    return f"<table>{head}<tbody>{rows}</tbody></table>"


def scrolled(data: DataTable, name: str) -> str:
    """A table that scrolls by itself where it is larger than its place, by keyboard too.

    Args:
        data: Of the table.
        name: What it is called where it is not seen.
    """
    return element("div", table_html(data), class_="scroll", tabindex="0", role="region", aria_label=name)


def definitions(terms: Iterable[Sequence[str]], class_: str) -> str:
    """Terms, each with one description or more."""
    rows = (
        element("div", element("dt", escaped(term)), *(element("dd", escaped(text)) for text in descriptions))
        for term, *descriptions in terms
    )
    return element("dl", *rows, class_=class_)


def _cells(tag: str, cells: Sequence[str], numeric: Sequence[bool]) -> str:
    """A row's cells."""
    inside = (_styled(escaped(cell), getattr(cell, "style", "")) for cell in cells)
    classes = (' class="n"' if number else "" for number in numeric)
    return "".join(f"<{tag}{class_}>{cell}</{tag}>" for class_, cell in zip(classes, inside, strict=True))


def _styled(markup: str, style: str) -> str:
    return element(_TAGS[style], markup) if _TAGS[style] and markup else markup


def _passage(passage: Passage) -> str:
    """One text, marked from where it departs; it can be scrolled by keyboard where its lines are long."""
    label = escaped(passage.label)
    head = element("h4", label, element("span", escaped(passage.note))) if passage.note else element("h4", label)
    body = element("i", escaped(passage.lead)) + escaped(passage.shared)
    # Line by line; the blanks in front of a line are not marked.
    body += "\n".join(
        line[: len(line) - len(line.lstrip())] + (element("mark", escaped(line.lstrip())) if line.strip() else "")
        for line in passage.rest.split("\n")
    )
    return head + element("pre", body, tabindex="0", aria_label=f"{passage.label}, text")

"""HTML: text made harmless, and the few elements that a page is put together from."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence

from qarat.surfaces.page.figures.base import DataTable
from qarat.surfaces.tables.layout import visible


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
    said = "".join(f' {name.rstrip("_").replace("_", "-")}="{escaped(value)}"' for name, value in attributes.items())
    return f"<{tag}{said}>{''.join(children)}</{tag}>"


def script_data(key: str, value: object) -> str:
    """A value as JSON that a script of the page reads; no ``<`` in it, so nothing in it ends the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{escaped(key)}">{text}</script>'


def table(data: DataTable, caption: str = "") -> str:
    """A table; columns of numbers are aligned to the right."""
    numeric = [c in data.numeric for c in data.columns]
    head = "".join(_cell("th", escaped(c), n) for c, n in zip(data.columns, numeric, strict=True))
    rows = "".join(
        f"<tr>{''.join(_cell('td', escaped(cell), n) for cell, n in zip(row, numeric, strict=True))}</tr>"
        for row in data.rows
    )
    said = element("caption", escaped(caption)) if caption else ""
    return f"<table>{said}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def scrolled(data: DataTable, name: str) -> str:
    """A table that scrolls by itself where it is larger than its place, by keyboard too.

    Args:
        data: Of the table.
        name: What it is called where it is not seen.
    """
    return element("div", table(data), class_="scroll", tabindex="0", role="region", aria_label=name)


def definitions(pairs: Iterable[Sequence[str]], class_: str) -> str:
    """Terms, each with one description or more."""
    rows = (
        element("div", element("dt", escaped(term)), *(element("dd", escaped(said)) for said in descriptions))
        for term, *descriptions in pairs
    )
    return element("dl", *rows, class_=class_)


def _cell(tag: str, content: str, numeric: bool) -> str:
    return f'<{tag} class="n">{content}</{tag}>' if numeric else f"<{tag}>{content}</{tag}>"

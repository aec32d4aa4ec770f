"""The pieces every terminal report is laid out from: words, numbers and tables.

One place decides how a number looks, so that nats, megabytes and percentages read alike in every table. A column
has one precision, set by its largest entry; units stand in the header.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable

from rich import box
from rich.table import Column, Table
from rich.text import Text

from qarat.values.fingerprints import transforms_of

GAP = "  "
# Joiners are part of how some scripts are written; every other format character can hide or reorder text.
_HARMLESS = "\n\t\u200c\u200d"
_HUGE = 1e6


def visible(text: str) -> str:
    r"""The text with control and format characters spelled out (``\x1b``), newlines and tabs as they are."""
    return "".join(_spelled(c) if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text)


def _spelled(character: str) -> str:
    return character if character in _HARMLESS else character.encode("unicode_escape").decode()


def words(text: str, style: str = "") -> Text:
    """Text taken literally: no markup, no control characters."""
    return Text(visible(text), style)


def decimals(values: Iterable[float], least: int = 4) -> int:
    """Decimals that show three digits of the largest value; at least ``least``, at most eight."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    return least if largest == 0 else min(8, max(least, 2 - math.floor(math.log10(largest))))


def fixed(value: float, digits: int, *, sign: bool = False) -> str:
    """A number with so many decimals; beyond a million in powers of ten, ``n/a`` where there is none."""
    if math.isnan(value):
        return "n/a"
    plus = "+" if sign else ""
    if math.isinf(value):
        return f"{value:{plus}}"
    if abs(value) >= _HUGE:
        return f"{value:{plus}.2e}"
    text = f"{value:{plus},.{digits}f}"
    # A zero has no sign: -0.0000 would claim a gain.
    return text.replace("-", plus) if float(text.replace(",", "")) == 0 else text


def share(part: float, whole: float, digits: int = 1) -> str:
    """A part in per cent of the whole, without the sign."""
    return fixed(100 * part / whole if whole else math.nan, digits)


def megabytes(bits: float) -> str:
    """Bits as megabytes (10⁶ bytes), three decimals below ten."""
    size = bits / 8e6
    return fixed(size, 3 if size < 10 else 1)


def count(n: int, noun: str) -> str:
    """``1 window``, ``64 windows``."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def perplexity_change(nats: float) -> str:
    """What a difference in nats per token does to perplexity, in per cent, without the sign %."""
    return fixed(100 * math.expm1(nats) if nats < 700 else math.inf, 2, sign=True)


def title(what: str, model: str, *facts: str) -> Text:
    """The first line of a report: what it is, of which model, and the facts of the first rank."""
    rest = "".join(f"{GAP}{fact}" for fact in (f"model {model[:12]}", *transforms_of(model), *facts))
    return Text.assemble((visible(what), "bold"), visible(rest))


def label(header: str, *, wrap: bool = True, style: str = "") -> Column:
    """A column of words."""
    return Column(header, no_wrap=not wrap, overflow="fold", vertical="top", style=style)


def number(header: str) -> Column:
    """A column of numbers."""
    return Column(header, justify="right", no_wrap=True)


def table(*columns: Column) -> Table:
    """A table in the house's style: a rule under the header, no frame, so that it reads well piped into a file."""
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")


def bare(*columns: Column) -> Table:
    """A table without header or rules."""
    return Table(*columns, box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))


def cells(into: Table, *row: str | Text, style: str = "") -> None:
    """Add a row; strings are taken literally."""
    into.add_row(*(words(c) if isinstance(c, str) else c for c in row), style=style or None)

"""How numbers are written, and text that comes from outside, alike in every table and sentence.

One place decides how a number looks, so that nats, megabytes and percentages read alike. A column has one precision,
set by its largest entry; units stand in the header.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence

from qarat.values.records.origin import Difference
from qarat.values.sites import short_name

GAP = "  "
# Joiners are part of how some scripts are written; every other format character can hide or reorder text.
_HARMLESS = "\n\t\u200c\u200d"
_HUGE = 1e6


def visible(text: str) -> str:
    r"""The text with control and format characters spelled out (``\x1b``), newlines and tabs as they are."""
    return "".join(_spelled(c) if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text)


def _spelled(character: str) -> str:
    return character if character in _HARMLESS else character.encode("unicode_escape").decode()


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


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def sites_listed(names: Sequence[str], none: str) -> str:
    """Sites by their short names."""
    return ", ".join(map(short_name, names)) or none


def perplexity_change(nats: float) -> str:
    """What a difference in nats per token does to perplexity, in per cent, without the sign %."""
    return fixed(100 * math.expm1(nats) if nats < 700 else math.inf, 2, sign=True)


def interval(bounds: Sequence[float], digits: int, *, sign: bool = True) -> str:
    """``+0.1 to +0.2``; ``n/a`` where a bound is no number, as with a single source of text."""
    if not all(map(math.isfinite, bounds)):
        return "n/a"
    return " to ".join(fixed(bound, digits, sign=sign) for bound in bounds)


def loss_and_error(loss: Difference, digits: int, *, sign: bool = True) -> tuple[str, str]:
    """A difference and its standard error, as two cells."""
    return fixed(loss.nats, digits, sign=sign), fixed(loss.standard_error, digits)


def with_error(loss: Difference) -> str:
    """A difference and its standard error, as one cell; empty where there is none."""
    return "" if math.isnan(loss.nats) else " ± ".join(loss_and_error(loss, decimals([loss.nats])))

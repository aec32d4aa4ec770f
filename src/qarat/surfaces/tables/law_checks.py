"""A law beside measurements that it has not seen, as a table."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.text import Text

from qarat.stages.laws.forms import FORMS
from qarat.surfaces.tables.layout import cells, count, fixed, label, number, table, visible, words
from qarat.values.records.law import CheckedRow, LawCheck
from qarat.values.records.law_data import spell_value


def show_law_check(record: LawCheck) -> RenderableType:
    """Predicted beside measured, row by row, what that comes to, and what sets law and rows apart."""
    known = [v for v in record.rows[0].known if v != "loss" or record.asked == "ratio"]
    unit = "nats" if record.asked == "loss" else "Q_r"
    places = [_place(row) for row in record.rows]
    same = len(set(places)) == 1  # then one line says it, and the table is narrower
    out = table(
        label("model"),
        *(number(v) for v in known),
        number(f"measured\n({unit})"),
        number("predicted"),
        number("off by\n(%)" if record.asked == "loss" else "off by"),
        number("95 % of a\nmeasurement"),
        *([] if same else [label("fitted\ndomain")]),
    )
    for row, place in zip(record.rows, places, strict=True):
        cells(
            out,
            row.model,
            *(_spell(v, row.known[v]) for v in known),
            f"{row.measured:.4g}" + (f" ± {row.standard_error:.2g}" if row.standard_error else ""),
            f"{row.predicted:.4g}",
            _off(row, record.asked),
            " to ".join(f"{bound:.3g}" for bound in row.interval) or "n/a",
            *([] if same else [place]),
        )
    head = Text.assemble(("law check", "bold"), f"  {visible(record.law)}")
    lines = [f"by {record.data}", f"{record.form}: {FORMS.load(record.form).equation}"]
    if same and not record.rows[0].fitted:
        lines.append(f"every row is {places[0]} the fitted domain")
    notes = [words(note, "dim") for note in record.notes]
    return Group(head, *map(words, lines), Text(), out, Text(), words(_summary(record), "bold"), *notes)


def _place(row: CheckedRow) -> str:
    """Where a row lies, as seen from the law."""
    return "a fitted row" if row.fitted else "outside" if row.outside else "inside"


def _spell(variable: str, value: float) -> str:
    """A value as a column holds it: of a loss, the budget that it is."""
    return f"ppl{100 * math.expm1(value):+.3g}%" if variable == "loss" else spell_value(variable, value)


def _off(row: CheckedRow, asked: str) -> str:
    if row.near_zero:
        return "near 0"
    off = row.off(asked)
    return fixed(100 * off, 1, sign=True) if asked == "loss" else fixed(off, 3, sign=True)


def _summary(record: LawCheck) -> str:
    counted = [row for row in record.rows if row.counts]
    if not counted:
        return "no row counts in a mean"
    mean = f"{fixed(100 * record.error, 1)} %" if record.asked == "loss" else fixed(record.error, 3)
    said = f"off by {mean} on average over {count(len(counted), 'row')}"
    held = [row for row in record.rows if row.interval and not row.fitted]
    inside = sum(row.interval[0] <= row.measured <= row.interval[1] for row in held)
    return said + (f"; {inside} of {len(held)} within the 95 % of a measurement" if held else "; no intervals")

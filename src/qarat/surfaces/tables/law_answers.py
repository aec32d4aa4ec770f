"""What a law answers, and how its answers stand beside measurements that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qarat.stages.laws.forms import FORMS
from qarat.surfaces.tables.data import Marked, Parts, bold, dim, numbers, pairs, table, texts
from qarat.surfaces.tables.wording import GAP, count, fixed
from qarat.values.records.law import CheckedRow, LawCheck, Prediction
from qarat.values.records.law_data import spell_value, spell_values

_ENDS = {
    "ratio": ("largest Q_r", "smallest Q_r"),
    "size": ("smallest N", "largest N"),
    "block": ("largest Q_b", "smallest Q_b"),
    "bits": ("fewest bits", "most bits"),
    "tokens": ("most tokens", "fewest tokens"),
    "loss": ("loss increase", "loss increase"),
}
"""What is asked of each variable; then the same of a law that runs the other way."""


def show_prediction(prediction: Prediction) -> Parts:
    """An answer, its intervals, and whether it lies inside what was fitted."""
    variable = prediction.asked
    answer = prediction.none or spell_value(variable, prediction.value)
    yield pairs(
        (
            (Marked(end_of(variable, turned=prediction.turned), "bold"), Marked(answer, "bold")),
            ("95 % of the law", spell_interval(variable, prediction.interval)),
            ("95 % of a measurement", spell_interval(variable, prediction.measured_interval)),
        )
    )
    yield ""
    yield f"at {spell_values(prediction.known)}; {prediction.form}: {FORMS.load(prediction.form).equation}"
    if not prediction.outside:
        yield "inside the fitted domain, as far as that is known"
    yield from (f"outside the fitted domain: {line}" for line in prediction.outside)
    yield from map(dim, prediction.notes)


def end_of(variable: str, *, turned: bool) -> str:
    """Which end of a variable a law's answer is."""
    return _ENDS[variable][turned]


def spell_interval(variable: str, bounds: Sequence[float]) -> str:
    """The bounds of a variable; ``n/a`` for none."""
    return " to ".join(spell_value(variable, bound) for bound in bounds) or "n/a"


def spell_measured(value: float, standard_error: float) -> str:
    """A measured value with its standard error, where that is known."""
    return f"{value:.4g}" + (f" ± {standard_error:.2g}" if standard_error else "")


def show_law_check(record: LawCheck) -> Parts:
    """Predicted beside measured, row by row, what that comes to, and what sets law and rows apart."""
    of_loss = record.asked == "loss"
    known = [v for v in record.rows[0].known if v != "loss" or record.asked == "ratio"]
    places = [_place(row) for row in record.rows]
    same = len(set(places)) == 1  # then one line says it, and the table is narrower
    rows = (
        (
            row.model,
            *(_spell(v, row.known[v]) for v in known),
            spell_measured(row.measured, row.standard_error),
            f"{row.predicted:.4g}",
            _off(row, record.asked),
            " to ".join(f"{bound:.3g}" for bound in row.interval) or "n/a",
            "" if same else place,
        )
        for row, place in zip(record.rows, places, strict=True)
    )
    measured = f"measured\n({'nats' if of_loss else 'Q_r'})"
    heads = numbers(*known, measured, "predicted", "off by\n(%)" if of_loss else "off by", "95 % of a\nmeasurement")
    yield bold("law check", f"{GAP}{record.law}")
    yield f"by {record.data}"
    yield f"{record.form}: {FORMS.load(record.form).equation}"
    if same and not record.rows[0].fitted:
        yield f"every row is {places[0]} the fitted domain"
    yield from ("", table((*texts("model"), *heads, *texts("fitted\ndomain")), rows).used(), "")
    yield bold(_summary(record))
    yield from map(dim, record.notes)


def _place(row: CheckedRow) -> str:
    """Where a row lies, as seen from the law."""
    return "a fitted row" if row.fitted else "outside" if row.outside else "inside"


def _spell(variable: str, value: float) -> str:
    """A value as a column holds it: of a loss, the budget that it is."""
    return f"ppl{100 * math.expm1(value):+.3g}%" if variable == "loss" else spell_value(variable, value)


def _off(row: CheckedRow, variable: str) -> str:
    if row.near_zero:
        return "near 0"
    off = row.off(variable)
    return fixed(100 * off, 1, sign=True) if variable == "loss" else fixed(off, 3, sign=True)


def _summary(record: LawCheck) -> str:
    counted = [row for row in record.rows if row.counts]
    if not counted:
        return "no row counts in a mean"
    mean = f"{fixed(100 * record.error, 1)} %" if record.asked == "loss" else fixed(record.error, 3)
    summary = f"off by {mean} on average over {count(len(counted), 'row')}"
    held = [row for row in record.rows if row.interval and not row.fitted]
    inside = sum(row.interval[0] <= row.measured <= row.interval[1] for row in held)
    return summary + (f"; {inside} of {len(held)} within the 95 % of a measurement" if held else "; no intervals")

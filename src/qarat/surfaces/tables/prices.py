"""How well damage metrics predict, as a table: prices beside measured losses."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from qarat.surfaces.tables.layout import cells, decimals, fixed, label, number, table, title, words
from qarat.values.records.prices import NATS, MetricCheck, SiteMeasurements
from qarat.values.sites import short_name

ROWS = 10  # sites listed under a single metric


def show_check(record: MetricCheck) -> RenderableType:
    """One metric's figures, and its prices beside the losses of the dearest sites."""
    dearest = sorted(record.sites, key=lambda s: -s.measured.nats)[:ROWS]
    price = "nats" if record.unit == NATS else "price"
    out = table(
        label("site", wrap=False),
        number(f"predicted\n({price})"),
        number("± SE"),
        number("measured alone\n(nats)"),
        number("± SE\n(nats)"),
    )
    prices = decimals([s.predicted for s in dearest])
    losses = decimals([s.measured.nats for s in dearest])
    for s in dearest:
        measured = fixed(s.measured.nats, losses), fixed(s.measured.standard_error, losses)
        cells(out, short_name(s.site), fixed(s.predicted, prices), fixed(s.predicted_error, prices), *measured)
    left = len(record.sites) - len(dearest)
    more = [words(f"and {left} sites that lose less", "dim")] if left else []
    return Group(show_checks([record]), Text(), out, *more)


def show_checks(records: Sequence[MetricCheck]) -> RenderableType:
    """Metrics side by side, the best ranking first, for every scheme that was measured."""
    parts: list[RenderableType] = [title("metrics against measured loss", records[0].provenance.model)]
    for scheme in dict.fromkeys(r.scheme for r in records):
        checks = sorted((r for r in records if r.scheme == scheme), key=_order)
        parts += [words(checks[0].provenance.convention, "dim"), Text(), words(scheme, "bold"), *_scheme(checks)]
    return Group(*parts)


def show_measurements(record: SiteMeasurements) -> RenderableType:
    """What the dearest sites lose alone, and all of them together."""
    dearest = sorted(record.alone, key=lambda t: -t.damage.nats)[:ROWS]
    shown = [*dearest, record.joint]
    digits = decimals([t.damage.nats for t in shown])
    out = table(
        label(f"of {len(record.alone)} sites", wrap=False), number("loss over float\n(nats)"), number("± SE\n(nats)")
    )
    for t in shown:
        cells(out, t.label, fixed(t.damage.nats, digits), fixed(t.damage.standard_error, digits))
    head = title("measured damage of single sites", record.provenance.model)
    return Group(head, words(record.provenance.convention, "dim"), Text(), words(record.scheme, "bold"), out)


def _order(check: MetricCheck) -> float:
    return math.inf if math.isnan(check.rank_correlation) else -check.rank_correlation


def _scheme(checks: Sequence[MetricCheck]) -> tuple[RenderableType, ...]:
    out = table(
        label("metric", wrap=False),
        number("rank\ncorrelation"),
        number("slope\n(nats a unit)"),
        number("sum by sum\nmeasured"),
        number("sum by all\ntogether"),
        label("unit of prices", style="dim"),
    )
    for c in checks:
        figures = fixed(c.rank_correlation, 2), f"{c.slope:.3g}", _by(c.calibration), _by(c.joint_calibration)
        cells(out, c.metric, *figures, c.unit)
    first = checks[0]
    digits = decimals([first.joint.nats])
    error = statistics.median(s.measured.standard_error for s in first.sites)
    measured = (
        f"measured: {len(first.sites)} sites, each alone, sum to {fixed(first.measured_sum, digits)} nats per token "
        f"(± {fixed(error, decimals([error]))} each, median); all together lose {fixed(first.joint.nats, digits)} "
        f"± {fixed(first.joint.standard_error, digits)}"
    )
    return out, Text(), words(measured)


def _by(ratio: float) -> str:
    return "" if math.isnan(ratio) else fixed(ratio, 2)

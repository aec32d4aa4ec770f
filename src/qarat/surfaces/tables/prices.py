"""How well damage metrics predict: prices beside measured losses."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from qarat.surfaces.tables.data import Parts, bold, dim, numbers, table, texts, title
from qarat.surfaces.tables.wording import decimals, fixed, loss_and_error
from qarat.values.records.origin import Z, spell_bounds
from qarat.values.records.prices import NATS, MetricCheck, SiteMeasurements
from qarat.values.sites import short_name

ROWS = 10  # sites listed under a single metric


def show_check(record: MetricCheck) -> Parts:
    """One metric's figures, and its prices beside the losses of the dearest sites."""
    dearest = sorted(record.sites, key=lambda s: -s.measured.nats)[:ROWS]
    prices = decimals([s.predicted for s in dearest])
    losses = decimals([s.measured.nats for s in dearest])
    rows = (
        (
            short_name(s.site),
            fixed(s.predicted, prices),
            fixed(s.predicted_error, prices),
            *loss_and_error(s.measured, losses, sign=False),
        )
        for s in dearest
    )
    predicted = f"predicted\n({'nats' if record.unit == NATS else 'price'})"
    columns = numbers(predicted, "± SE", "measured alone\n(nats)", "± SE\n(nats)")
    yield from (*show_checks([record]), "", table((*texts("site", wrap=False), *columns), rows))
    if left := len(record.sites) - len(dearest):
        yield dim(f"and {left} sites that lose less")


def show_checks(records: Sequence[MetricCheck]) -> Parts:
    """Metrics side by side, the best ranking first, for every scheme that was measured."""
    yield title("metrics against measured loss", records[0].provenance.model)
    for scheme in dict.fromkeys(r.scheme for r in records):
        checks = sorted((r for r in records if r.scheme == scheme), key=_order)
        yield from (dim(checks[0].provenance.convention), "", bold(scheme), *_scheme(checks))


def show_measurements(record: SiteMeasurements) -> Parts:
    """What the dearest sites lose alone, and all of them together."""
    shown = [*sorted(record.alone, key=lambda t: -t.damage.nats)[:ROWS], record.joint]
    digits = decimals([t.damage.nats for t in shown])
    yield title("measured damage of single sites", record.provenance.model)
    yield from (dim(record.provenance.convention), "", bold(record.scheme))
    yield table(
        (*texts(f"of {len(record.alone)} sites", wrap=False), *numbers("loss over float\n(nats)", "± SE\n(nats)")),
        ((t.label, *loss_and_error(t.damage, digits, sign=False)) for t in shown),
    )


def _order(check: MetricCheck) -> float:
    return math.inf if math.isnan(check.rank_correlation) else -check.rank_correlation


def _scheme(checks: Sequence[MetricCheck]) -> Parts:
    """Of one scheme: every metric, and what was measured."""
    columns = numbers("rank\ncorrelation", "slope\n(nats a unit)", "sum by sum\nmeasured", "sum by all\ntogether")
    rows = (
        (c.metric, fixed(c.rank_correlation, 2), f"{c.slope:.3g}", _by(c.calibration), _by(c.joint_calibration), c.unit)
        for c in checks
    )
    yield table((*texts("metric", wrap=False), *columns, *texts("unit of prices", style="dim")), rows)
    first = checks[0]
    digits = decimals([first.joint.nats])
    error = statistics.median(s.measured.standard_error for s in first.sites)
    together = fixed(first.joint.nats, digits) + spell_bounds(first.joint.nats, first.joint.standard_error, digits)
    yield ""
    yield (
        f"measured: {len(first.sites)} sites, each alone, sum to {fixed(first.measured_sum, digits)} nats per token "
        f"(each known to within {fixed(Z * error, decimals([error]))} at 95 %, median); all together lose {together}"
    )
    if first.clear_sites < len(first.sites) and not math.isnan(first.clear_correlation):
        clear = ", ".join(f"{c.metric} {fixed(c.clear_correlation, 2)}" for c in checks)
        yield (
            f"among the {first.clear_sites} sites that lose more than two of their standard errors (the measured order "
            f"of the others is mostly chance) the rank correlation is: {clear}"
        )


def _by(ratio: float) -> str:
    return "" if math.isnan(ratio) else fixed(ratio, 2)

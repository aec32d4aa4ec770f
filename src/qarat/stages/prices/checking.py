"""Checking a metric: its prices beside measured losses, site by site and in sum; and what sums leave out.

Which metric to trust is a question for the model at hand: rank correlation says whether it finds the dear sites,
calibration whether its nats are nats. Losses do not simply add either; a power law of the predicted sum, fitted to a
few measured combinations, takes up the part of it that is regular, and its residual is what is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.values.plans import Plan
from qarat.values.records.origin import same_origin
from qarat.values.records.prices import ComparedSite, Correction, Menu, MetricCheck, SiteMeasurements, Trial
from qarat.values.records.scores import Evaluation, paired_difference
from qarat.values.schemes import Scheme
from qarat.values.sites import short_name

MEASURING = "measure sites"  # the stage that progress is told
CLEAR = 2  # standard errors above nothing, from which on a site's measured loss is more than noise
FEWEST = 3  # sites or pairs: of two, any ranking is right or wrong and any power law exact


def measure_sites(
    plan: Plan,
    scheme: Scheme,
    measure: Callable[[Plan, str], Evaluation],
    *,
    progress: Progress = no_progress,
) -> SiteMeasurements:
    """Measure every site that a scheme fits: alone in it, everything else in float; and all of them together.

    Args:
        plan: Any plan of the model, for its sites.
        scheme: Of projections or of attention products.
        measure: Loss of a plan on the selection tokens, such as `qarat.stages.measure.meter.Meter.measure`.
        progress: Called after every measurement.
    """
    sites = [site.name for site in plan.sites if scheme.fits(site.kind)]
    in_float = plan.in_float()
    total = len(sites) + 2
    progress(MEASURING, 0, total)
    before = measure(in_float, "float")

    def trial(label: str, low: Sequence[str], done: int) -> Trial:
        after = measure(in_float.with_schemes(dict.fromkeys(low, scheme), label), label)
        progress(MEASURING, done, total)
        return Trial(label, tuple(low), paired_difference(after, before))

    progress(MEASURING, 1, total)
    alone = tuple(trial(f"only {short_name(s)} low", [s], 2 + i) for i, s in enumerate(sites))
    return SiteMeasurements(before.provenance, str(scheme), alone, trial("all low", sites, total))


def check(menu: Menu, measured: SiteMeasurements) -> MetricCheck:
    """Set a menu's prices beside measured losses.

    Args:
        menu: With prices of the measured scheme at every measured site.
        measured: On the same model and tokens.

    Raises:
        UserError: Another model or other tokens; sites without a price (all of them); fewer than three sites.
    """
    same_origin(menu.provenance, measured.provenance, f"the {menu.metric} menu and the measured losses")
    entries = {e.site: e for e in menu.entries if e.scheme == measured.scheme}
    missing = [trial.sites[0] for trial in measured.alone if trial.sites[0] not in entries]
    if missing:
        raise UserError(
            f"the {menu.metric} menu has no price of {measured.scheme} at {', '.join(missing)}; "
            "price that scheme, or check another metric"
        )
    if len(measured.alone) < FEWEST:
        raise UserError(f"{len(measured.alone)} measured sites say nothing of a ranking; measure {FEWEST} or more")
    pairs = [(entries[trial.sites[0]], trial.damage) for trial in measured.alone]
    sites = tuple(ComparedSite(e.site, e.damage, e.standard_error, damage) for e, damage in pairs)
    clear = [s for s in sites if s.measured.nats > CLEAR * s.measured.standard_error]
    squares = math.fsum(s.predicted**2 for s in sites)
    slope = math.fsum(s.predicted * s.measured.nats for s in sites) / squares if squares else math.nan
    return MetricCheck(
        menu.provenance,
        menu.metric,
        menu.unit,
        measured.scheme,
        sites,
        measured.joint.damage,
        _rank_correlation(sites),
        slope,
        len(clear),
        _rank_correlation(clear),
    )


def _rank_correlation(sites: Sequence[ComparedSite]) -> float:
    """Spearman's, of price and measured loss; NaN where either does not vary."""
    from scipy import stats  # at call time: it would double the start of every verb

    predicted, losses = [s.predicted for s in sites], [s.measured.nats for s in sites]
    if len(set(predicted)) < 2 or len(set(losses)) < 2:
        return math.nan
    spearman: Any = stats.spearmanr(predicted, losses)
    return float(spearman.statistic)


def fit_correction(pairs: Iterable[tuple[float, float]]) -> Correction:
    """Fit loss = factor · S ** power to measured combinations, by least squares of the logarithms.

    With fewer than three combinations, or where S does not vary, the power is 1 and only the factor is fitted.

    Args:
        pairs: Predicted sum S and measured loss over float (nats per token) of each combination.

    Raises:
        UserError: No pairs; sums or losses that are not above zero and finite (all of them); losses that fall where
            predictions rise.
    """
    pairs = list(pairs)
    if not pairs:
        raise UserError("no measured combination to fit a correction to; measure one or more")
    bad = [f"({s:g}, {loss:g})" for s, loss in pairs if not (0 < s < math.inf and 0 < loss < math.inf)]
    if bad:
        raise UserError(
            f"predicted sum and loss must be above 0 to be fitted, not {', '.join(bad)}; "
            "leave out combinations whose loss is lost in noise"
        )
    x, y = [math.log(s) for s, _ in pairs], [math.log(loss) for _, loss in pairs]
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    spread = math.fsum((a - mean_x) ** 2 for a in x)
    parameters = 2 if len(pairs) >= FEWEST and spread > 0 else 1
    power = 1.0
    if parameters == 2:
        power = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    if power <= 0:
        raise UserError(
            f"the measured losses fall where predictions rise (power {power:.2f}); these predictions cannot be "
            "corrected, take another metric or more tokens"
        )
    errors = [b - mean_y - power * (a - mean_x) for a, b in zip(x, y, strict=True)]
    left = len(pairs) - parameters
    residual = math.sqrt(math.fsum(e * e for e in errors) / left) if left else math.nan
    sums = [s for s, _ in pairs]
    return Correction(math.exp(mean_y - power * mean_x), power, residual, len(pairs), min(sums), max(sums))

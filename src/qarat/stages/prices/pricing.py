"""From schemes to a menu: the one driver of all metrics."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.maths.static_scales import check_static, static_operands
from qarat.model.model import Model
from qarat.model.prefixes import check_prefix
from qarat.model.tokens import TokenSet
from qarat.stages.prices import DEFAULT, METRICS
from qarat.stages.prices.changes import Prices, Pricing
from qarat.stages.prices.metric import Metric, PriceWindows
from qarat.stages.rounding import check_roundings
from qarat.stages.rounding.inputs import Calibration, inputs_of
from qarat.values.records.files import content_hash
from qarat.values.records.prices import Menu, MenuEntry
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import Scheme


def price(
    model: Model,
    tokens: TokenSet,
    schemes: Sequence[Scheme],
    stats: ActivationStats | None = None,
    *,
    metric: str = DEFAULT,
    calibration: TokenSet | Calibration | None = None,
    prefix: tuple[int, ...] = (),
    seed: int = 0,
    windows: PriceWindows | None = None,
    progress: Progress = no_progress,
) -> Menu:
    """Price every scheme at every site it fits.

    Args:
        model: In float.
        tokens: The selection set.
        schemes: Each is priced at every site of its kind: projection, attention product or cache.
        stats: Behind static scales.
        metric: Of `qarat.stages.prices.METRICS`.
        calibration: Tokens behind roundings that look at what a projection reads, or what keeps the weights so rounded.
        prefix: Ids of the tokens that every window begins with and that stay in float: Δy is 0 there.
        seed: Of what the metric draws, if it draws anything.
        windows: Goes through the windows; default the metric, in this process.
        progress: Called after every block, forward and backward.

    Raises:
        UserError: Unknown metric, or one that has no price of these schemes or of a prefix; static scales without
            stats, or with stats of another model or prefix or without a stream that is needed; a rounding without the
            calibration tokens it needs; windows that do not begin with the prefix; a quantized model.
    """
    chosen = METRICS.load(metric)
    if chosen.weights_only:
        stats, schemes = None, [scheme for scheme in schemes if scheme.fits("projection")]
    inputs = inputs_of(model, calibration, len(prefix))
    pricing = Pricing(model, tokens, schemes, stats, inputs, prefix, seed, progress)
    check_pricing(chosen, pricing)
    prices = chosen.windows(pricing) if windows is None else windows(chosen, pricing)
    return menu_of(chosen, pricing, prices)


def check_pricing(metric: Metric, pricing: Pricing) -> None:
    """Check that every scheme can be priced wherever it fits, before any long work; errors as `price`."""
    model, schemes = pricing.model, pricing.schemes
    if not schemes:
        raise UserError(
            f"{metric.name} is about weights, and attention products and caches have none; give a scheme with w=…"
        )
    if pricing.prefix and not metric.takes_prefix:
        able = ", ".join(name for name in METRICS.names() if METRICS.load(name).takes_prefix)
        raise UserError(f"{metric.name} has no prices with a prefix in float; take one that has: {able}")
    check_prefix(pricing.tokens, pricing.prefix)
    fitting = [(site, scheme) for site in model.sites() for scheme in schemes if scheme.fits(site.kind)]
    if not metric.weights_only:
        needed = [pair for site, scheme in fitting for pair in static_operands(site.streams, scheme)]
        check_static(needed, pricing.stats, model.fingerprint, pricing.prefix)
    check_roundings(fitting, pricing.calibration.rows if pricing.calibration else 0)
    model.require_float("price")


def menu_of(metric: Metric, pricing: Pricing, prices: Prices) -> Menu:
    """The menu, in the order of sites and schemes."""
    model, tokens, stats = pricing.model, pricing.tokens, pricing.stats
    keys = dict.fromkeys((site.name, str(scheme)) for site in model.sites() for scheme in pricing.schemes)
    entries = tuple(_entry(key, prices[key]) for key in keys if key in prices)
    provenance = model.provenance(tokens.fingerprint, tokens.convention, pricing.seed)
    stats_hash = content_hash(stats) if stats else ""
    return Menu(provenance, metric.name, stats_hash, entries, metric.unit, pricing.prefix)


def _entry(key: tuple[str, str], windows: Tensor) -> MenuEntry:
    """Mean of the price over windows, and its standard error: windows are a sample, and the price their mean."""
    error = float(windows.std() / len(windows) ** 0.5) if len(windows) > 1 else float("nan")
    return MenuEntry(*key, float(windows.mean()), error)

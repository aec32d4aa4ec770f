"""Predicted against measured damage, site by site."""

from __future__ import annotations

from qarat.surfaces.page.figures.base import Figure
from qarat.surfaces.page.figures.curve import curve
from qarat.surfaces.page.figures.series import Axis, Dot, Series
from qarat.surfaces.tables.wording import count, decimals
from qarat.values.records.origin import Difference
from qarat.values.records.prices import Menu, Protection
from qarat.values.sites import short_name


def damage(menu: Menu, sweep: Protection, low: str) -> Figure:
    """What each site alone was predicted to cost, and what it cost.

    Args:
        menu: The predictions.
        sweep: Measured some sites alone.
        low: Spelling of the scheme they had.
    """
    priced = {e.site: e for e in menu.entries if e.scheme == low}
    dots: list[Dot] = []
    for trial in sweep.alone:
        if entry := priced.get(trial.sites[0]):
            predicted = Difference(entry.damage, entry.standard_error, 0).interval
            dots.append(Dot(entry.damage, trial.damage.nats, predicted, trial.damage.interval, short_name(entry.site)))
    digits = decimals([v for d in dots for v in (d.x, d.y)])
    hidden = sum(d.x <= 0 or d.y <= 0 for d in dots)
    caption = (
        f"On the broken line the prediction ({menu.metric}) is right; above it the site costs more than predicted. "
        "Bars: 95 %, cut where they reach zero."
    )
    if hidden:
        caption += f" {count(hidden, 'site')} at or below zero: in the table alone."
    return curve(
        "damage",
        "Single sites in the low scheme, all others in float",
        caption,
        [Series("sites", tuple(dots), line=False)],
        Axis("predicted (nats per token)", log=True, digits=digits),
        Axis("measured (nats per token)", log=True, digits=digits),
        noun="site",
        diagonal=True,
        labelled=True,
    )

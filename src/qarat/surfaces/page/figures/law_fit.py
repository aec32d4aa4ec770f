"""How well a law fits: predicted against measured, and what is left over."""

from __future__ import annotations

from qarat.stages.laws.forms import FORMS
from qarat.stages.laws.forms.base import RESPONSES
from qarat.surfaces.page.figures.base import Figure
from qarat.surfaces.page.figures.curve import curve
from qarat.surfaces.page.figures.law_sections import error_bar
from qarat.surfaces.page.figures.series import Axis, Dot, Series
from qarat.surfaces.tables.laws import off_by
from qarat.surfaces.tables.wording import count, fixed
from qarat.values.records.law import FittedPoint, Law
from qarat.values.records.law_data import spell_value


def law_fit(law: Law) -> Figure:
    """Predicted against measured, by the fit and by fits that had not seen a point's size.

    Args:
        law: With its points.
    """
    fits = [fit for fit in law.fits if fit.form == law.shown]
    points = [p for fit in fits for p in fit.points]
    unit = RESPONSES[FORMS.load(law.shown).response]
    seen = tuple(Dot(p.predicted, p.measured, y_range=error_bar(p), label=_label(p)) for p in points)
    unseen = tuple(Dot(p.left_out[0], p.measured, label=_label(p)) for p in points if p.left_out)
    series = [Series("fitted", seen, line=False)]
    caption = f"Of the form {law.shown}. On the broken line the law is right."
    if unseen:
        series.append(Series("predicted without any model of that size", unseen, line=False))
        caption += " The second colour is the honest one: the law had not seen a model of that size."
    quality = [q for fit in fits for q in fit.quality]
    if len(quality) == 1:
        unseen_error = [f", {fixed(100 * e, 1)} % on sizes left out" for e in quality[0].left_out_error]
        caption += f" Mean relative error {fixed(100 * quality[0].error, 1)} %{''.join(unseen_error)}."
    return curve(
        "law-fit",
        "Predicted and measured",
        caption,
        series,
        Axis(f"predicted ({unit})", log=True),
        Axis(f"measured ({unit})", log=True),
        diagonal=True,
    )


def law_residuals(law: Law) -> Figure:
    """What predictions are off by, against size: a trend means that the law misses something.

    Args:
        law: With its points; those at or near zero, which have no ratio, are left out.
    """
    variable = "ratio" if FORMS.load(law.shown).response == "billions" else "size"
    points = [p for fit in law.fits if fit.form == law.shown for p in fit.points if variable in p.variables]
    counted = [p for p in points if not p.by_difference]
    dots = tuple(Dot(p.variables[variable], off_by(p, p.predicted), label=_label(p)) for p in counted)
    caption = (
        f"Of the form {law.shown}, predicted over measured: above zero it says too much. Dots scattered evenly about "
    )
    caption += "zero are noise; a slope or a bend is something that the form does not know."
    if left := len(points) - len(counted):
        caption += f" Left out: {count(left, 'point')} at or near zero, of which nothing is a share."
    return curve(
        "law-residuals",
        "What the law leaves over",
        caption,
        [Series("points", dots, line=False)],
        Axis("parameters N", log=True, counts=True) if variable == "size" else Axis("low share Q_r", digits=3),
        Axis("off by: predicted over measured (%)", digits=1),
        limit=(0.0, ""),
    )


def _label(p: FittedPoint) -> str:
    return ", ".join((p.model, *(f"{k} {spell_value(k, v)}" for k, v in p.variables.items() if k != "size")))

"""A law along one of its variables, for each model, and how well it fits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qarat.stages.laws.equations import internal, log_response
from qarat.stages.laws.forms import FORMS, RESPONSES, Form
from qarat.stages.laws.points import join_ratios
from qarat.surfaces.page.figures.base import Figure
from qarat.surfaces.page.figures.curve import Axis, Dot, Series, curve
from qarat.surfaces.tables.law_shares import MODEL, fits_about
from qarat.surfaces.tables.laws import off_by
from qarat.surfaces.tables.wording import count, fixed
from qarat.values.records.law import Fit, FittedPoint, Law
from qarat.values.records.law_data import spell_value, spell_values
from qarat.values.records.origin import Difference

_MOST = 12  # series that one figure tells apart
_STEPS = 40  # points of a fitted line
_TITLES = {"ratio": "low share", "block": "block size"}


def law_along(law: Law, variable: str) -> Figure | None:
    """The response along Q_r or Q_b; None where no form is about it, or no model has two values of it.

    Args:
        law: With its points.
        variable: ``ratio`` or ``block``.
    """
    fits = fits_about(law, lambda form: variable in form.variables and form.response != "billions")
    if not fits:
        return None
    form = FORMS.load(fits[0].form)
    ratios = join_ratios(p.variables["ratio"] for fit in fits for p in fit.points if "ratio" in p.variables)
    groups = [group for fit in fits for group in _groups(fit, variable, ratios)]
    held = ""
    if len(groups) > _MOST:
        groups, held = _most_common(groups, variable)
    if not groups:
        return None
    series = [s for group in groups for s in _series(form, group, variable, groups)]
    caption = f"Dots are measured, lines are the fitted form {fits[0].form}, {form.equation}. "
    caption += "Error bars are 95 %. " if any(p.standard_error for g in groups for p in g.points) else ""
    return curve(
        f"law-{variable}",
        f"Loss against {'the low share' if variable == 'ratio' else 'block size'}",
        (caption + held).strip(),
        series,
        Axis(_TITLES[variable], log=variable == "block", digits=3 if variable == "ratio" else 0),
        Axis(RESPONSES[form.response], log=True),
        noun="model",
        ordered=len({g.known.get("size") for g in groups}) == len(groups),
    )


@dataclass(frozen=True)
class _Group:
    """Points of one fit that differ in one variable alone.

    Attributes:
        fit: Theirs.
        points: Two or more.
        known: What they have in common, and the value along the axis of the first.
    """

    fit: Fit
    points: tuple[FittedPoint, ...]
    known: Mapping[str, float]


def _groups(fit: Fit, variable: str, ratios: Mapping[float, float]) -> list[_Group]:
    """Points that differ in one variable alone, by size; only where there are two values of it or more.

    Args:
        fit: With its points.
        variable: Along the axis.
        ratios: Each to the name of its group: searches come close to the one they were asked for.
    """
    alike: dict[tuple[tuple[str, float], ...], list[FittedPoint]] = {}
    for p in fit.points:
        placed = {k: ratios[v] if k == "ratio" else v for k, v in p.variables.items()}
        alike.setdefault(tuple((k, v) for k, v in placed.items() if k != variable), []).append(p)
    groups = [
        _Group(fit, tuple(points), {**fit.group, **dict(placed), variable: points[0].variables[variable]})
        for placed, points in alike.items()
        if len({p.variables[variable] for p in points}) > 1
    ]
    return sorted(groups, key=lambda g: g.known.get("size", 0.0))


def _most_common(groups: Sequence[_Group], variable: str) -> tuple[list[_Group], str]:
    """The groups at the most common values of what is neither along the axis nor of the model."""
    others = [{k: v for k, v in g.known.items() if k not in (*MODEL, variable)} for g in groups]
    chosen = dict(Counter(tuple(sorted(o.items())) for o in others).most_common(1)[0][0])
    kept = [group for group, other in zip(groups, others, strict=True) if other == chosen][:_MOST]
    shown_at = spell_values(chosen)
    left = f"Shown at {shown_at}; " if shown_at else ""
    return kept, f"{left}{len(groups) - len(kept)} more groups are in the law's file."


def _series(form: Form, group: _Group, variable: str, groups: Sequence[_Group]) -> list[Series]:
    name = _name(group, variable, groups)
    points = group.points
    measured = tuple(
        Dot(p.variables[variable], p.measured, y_range=error_bar(p), label=p.model)
        for p in sorted(points, key=lambda p: p.variables[variable])
    )
    values = [dot.x for dot in measured]
    space = np.geomspace if variable == "block" else np.linspace
    line = tuple(
        Dot(float(x), _response(form, group.fit, {**points[0].variables, variable: float(x)}))
        for x in space(values[0], values[-1], _STEPS)
    )
    return [Series(name, measured, line=False), Series(f"{name}, law", line, marked=False, group=name)]


def error_bar(p: FittedPoint) -> tuple[float, ...]:
    """95 % interval of a measured point; empty where its error is not known."""
    return Difference(p.measured, p.standard_error, 0).interval if p.standard_error else ()


def _name(group: _Group, variable: str, groups: Sequence[_Group]) -> str:
    """What tells a group from the others."""
    known = group.known
    varied = [v for v in known if v not in (variable, "tokens") and len({g.known.get(v) for g in groups}) > 1]
    parts = [spell_value(v, known[v]) if v == "size" else f"{v} {spell_value(v, known[v])}" for v in varied]
    return ", ".join(parts) or group.points[0].model


def _response(form: Form, fit: Fit, at: Mapping[str, float]) -> float:
    """What a fit gives, in the unit of its form's response."""
    theta = internal(form, np.array([p.value for p in fit.parameters]))
    return math.exp(float(log_response(form, theta, {v: np.array([at[v]]) for v in form.variables})[0]))


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
        Axis("parameters N", log=True, counts=True) if variable == "size" else Axis("low share", digits=3),
        Axis("off by: predicted over measured (%)", digits=1),
        limits=[(0.0, "")],
    )


def _label(p: FittedPoint) -> str:
    return ", ".join((p.model, *(f"{k} {spell_value(k, v)}" for k, v in p.variables.items() if k != "size")))

"""Size against the share that can go low, at each loss budget."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from qarat.lawrecords import Fit, Law
from qarat.laws.forms.base import Form
from qarat.laws.prediction import predict
from qarat.measurements import spell_value
from qarat.report.page.figures.base import Figure
from qarat.report.page.figures.curve import curve
from qarat.report.page.figures.law_sections import MODEL, shown_fits
from qarat.report.page.figures.series import Axis, Dot, Series

__all__ = ["law_reach"]

_BUDGETS = (1.0, 5.0, 10.0, 20.0)  # per cent of perplexity, where the law itself does not say which
_STEPS = 30  # points of a line


def law_reach(law: Law) -> Figure | None:
    """The share that each size can have low; None where the law is not about both.

    Args:
        law: With its points.
    """
    form, fits = shown_fits(law)
    if "ratio" not in form.variables or ("size" not in form.variables and form.response != "billions"):
        return None
    if form.response == "billions":
        series = [s for fit in fits for s in _measured(form, fit)]
        caption = "Dots are measured, lines the fitted law: further right is larger, further up is more of it low."
    else:
        series, held = _predicted(law, form, fits[0])
        caption = f"What the fitted law allows at the sizes it was fitted to, within each budget{held}."
    return curve(
        "law-reach",
        "Share that can go low, by size",
        caption,
        series,
        Axis("parameters N", log=True, counts=True),
        Axis("low share Q_r", digits=3),
        what="model",
        ordered=True,
    )


def _measured(form: Form, fit: Fit) -> list[Series]:
    """One budget's points, and its line through the shares that were fitted."""
    name = _spell_budget(100 * math.expm1(fit.group["loss"]))
    dots = tuple(
        Dot(1e9 * p.measured, p.variables["ratio"], label=p.model)
        for p in sorted(fit.points, key=lambda p: p.variables["ratio"])
    )
    theta = form.internal(np.array([p.value for p in fit.parameters]))
    ratios = np.linspace(dots[0].y, dots[-1].y, _STEPS)
    sizes = 1e9 * np.exp(form.log_response(theta, {"ratio": ratios}))
    line = tuple(Dot(float(n), float(r)) for n, r in zip(sizes, ratios, strict=True))
    return [Series(name, dots, line=False), Series(f"{name}, law", line, marked=False, group=name)]


def _predicted(law: Law, form: Form, fit: Fit) -> tuple[list[Series], str]:
    """The law solved for Q_r, of each model as it is, at the most common values of whatever else it is about."""
    others = [v for v in form.variables if v not in (*MODEL, "ratio")]
    common = {v: Counter(p.variables[v] for p in fit.points).most_common(1)[0][0] for v in others}
    models = {tuple((v, p.variables[v]) for v in MODEL if v in form.variables): p.model for p in fit.points}
    said = "".join(f", at {v} {spell_value(v, value)}" for v, value in common.items())
    said += ", each trained on as many tokens as it was" if "tokens" in form.variables else ""
    return [_at_budget(law, fit, models, common, percent) for percent in _BUDGETS], said


def _at_budget(
    law: Law, fit: Fit, models: dict[tuple[tuple[str, float], ...], str], common: dict[str, float], percent: float
) -> Series:
    """What one budget allows of each model, given by its size, and by its tokens where the form has them."""
    known = {**common, "loss": math.log1p(percent / 100)}
    dots: list[Dot] = []
    for own in sorted(models):
        answer = predict(law, {**known, **dict(own)}, fit.form)
        dots.append(Dot(dict(own)["size"], answer.value, y_range=answer.interval, label=models[own]))
    return Series(_spell_budget(percent), tuple(dots))


def _spell_budget(percent: float) -> str:
    return f"ppl+{percent:.3g}%"

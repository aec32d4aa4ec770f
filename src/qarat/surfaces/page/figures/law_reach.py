"""Size against the share that can go low, at each loss budget: what the law allows, and what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from qarat.stages.laws.equations import internal, log_response
from qarat.stages.laws.forms import FORMS, Form
from qarat.surfaces.page.figures.base import Figure
from qarat.surfaces.page.figures.curve import Axis, Dot, Series, curve
from qarat.surfaces.tables.law_shares import Shares, fits_about, shares, spell_budget
from qarat.values.records.law import Fit, FittedPoint, Law

_BUDGETS = (1.0, 5.0, 10.0, 20.0)  # per cent of perplexity, where the law itself does not say which
_STEPS = 30  # points of a line
_APART = 0.005  # ratios of one model that are nearer are two measurements of one share, not two shares


def law_reach(law: Law) -> Figure | None:
    """The share that each size can have low; None where no form of the law is about both.

    Args:
        law: With its points.
    """
    grouped = fits_about(law, lambda form: form.response == "billions")
    if allowed := shares(law):
        series, caption = _allowed(law, allowed)
    elif grouped:
        form = FORMS.load(grouped[0].form)
        series = [s for fit in grouped for s in _by_budget(form, fit)]
        caption = f"Dots are measured, lines the fitted form {grouped[0].form}: further right is larger, further up is "
        caption += "more of it low."
    else:
        return None
    return curve(
        "law-reach",
        "Share that can go low, by size",
        caption,
        series,
        Axis("parameters N", log=True, counts=True),
        Axis("low share", digits=3),
        noun="model",
        ordered=True,
    )


def _by_budget(form: Form, fit: Fit) -> list[Series]:
    """One budget's points, and its line through the shares that were fitted."""
    name = spell_budget(100 * math.expm1(fit.group["loss"]))
    dots = tuple(
        Dot(1e9 * p.measured, p.variables["ratio"], label=p.model)
        for p in sorted(fit.points, key=lambda p: p.variables["ratio"])
    )
    theta = internal(form, np.array([p.value for p in fit.parameters]))
    ratios = np.linspace(dots[0].y, dots[-1].y, _STEPS)
    sizes = 1e9 * np.exp(log_response(form, theta, {"ratio": ratios}))
    line = tuple(Dot(float(n), float(r)) for n, r in zip(sizes, ratios, strict=True))
    return [Series(name, dots, line=False), Series(f"{name}, law", line, marked=False, group=name)]


def _allowed(law: Law, allowed: Shares) -> tuple[list[Series], str]:
    """The law solved for Q_r at each model, beside the shares that were measured, and the words for both."""
    models, where, mixed = _measured(law, allowed)
    series = [s for percent in _BUDGETS for s in _at_budget(allowed, models, percent)]
    caption = (
        f"Lines are what the fitted form {allowed.fit.form} allows each model within each budget{allowed.conditions}"
    )
    caption += "; bands are 95 % of the law." if allowed.fit.parameters[0].draws else "."
    if models:
        caption += f" Dots are measured{where}: the share at which a model meets the budget, between two of its own "
        caption += "points by the logarithm of the loss."
    if any(d.least for s in series for d in s.dots):
        caption += " An open mark is a bound: with the largest share measured the model is still within the budget."
    if mixed:
        caption += (
            f" Not measured for {', '.join(mixed)}: several losses at one share, which this form does not tell apart."
        )
    return series, caption


def _at_budget(allowed: Shares, models: Mapping[str, Sequence[FittedPoint]], percent: float) -> list[Series]:
    """What one budget allows of each model, and what each was measured to reach."""
    name = spell_budget(percent)
    answers = [(own["size"], allowed.within(percent, own)) for own in allowed.models]
    line = tuple(Dot(size, a.value, y_range=a.interval, label=f"law at {name}") for size, a in answers)
    dots = tuple(dot for model, own in models.items() if (dot := _reached(model, own, math.log1p(percent / 100))))
    measured = [Series(name, dots, line=False)] if dots else []
    return [*measured, Series(f"{name}, law", line, marked=False, bars=True, group=name)]


def _reached(model: str, points: Sequence[FittedPoint], loss: float) -> Dot | None:
    """The largest share with which a model keeps a budget; None where it never does, or a loss has no logarithm.

    Args:
        model: Name.
        points: Of that model, by ratio, no two at the same.
        loss: The budget, nats per token.
    """
    within = [i for i, p in enumerate(points) if p.measured <= loss]
    if not within:
        return None
    last = points[within[-1]]
    size, ratio = last.variables["size"], last.variables["ratio"]
    if last is points[-1]:
        return Dot(size, ratio, label=model, least=True)
    beyond = points[within[-1] + 1]
    if last.measured <= 0:
        return None
    way = math.log(loss / last.measured) / math.log(beyond.measured / last.measured)
    return Dot(size, ratio + way * (beyond.variables["ratio"] - ratio), label=model)


def _measured(law: Law, allowed: Shares) -> tuple[dict[str, list[FittedPoint]], str, list[str]]:
    """Each model's points by ratio, at one block size; which, in words; and models that have several at one ratio.

    A form without the block size does not keep it, but another form of the law may have it for the same measurements.
    """
    known = {_identity(p): p.variables["block"] for fit in law.fits for p in fit.points if "block" in p.variables}
    blocks = [known.get(_identity(p), 0.0) for p in allowed.fit.points]
    block = allowed.held.get("block") or max(blocks, key=blocks.count)
    models: dict[str, list[FittedPoint]] = {}
    for p, own in zip(allowed.fit.points, blocks, strict=True):
        if own == block:
            models.setdefault(p.model, []).append(p)
    models = {model: sorted(points, key=lambda p: p.variables["ratio"]) for model, points in models.items()}
    mixed = [model for model, points in models.items() if _coincide(points)]
    where = f" at block {block:.4g}" if len(set(blocks)) > 1 else ""
    return {model: points for model, points in models.items() if model not in mixed}, where, mixed


def _identity(p: FittedPoint) -> tuple[str, float | None, float]:
    """What tells measurements apart that several forms were fitted to."""
    return p.model, p.variables.get("ratio"), p.measured


def _coincide(points: Sequence[FittedPoint]) -> bool:
    ratios = [p.variables["ratio"] for p in points]
    return any(after - before < _APART for before, after in pairwise(ratios))

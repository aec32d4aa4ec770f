"""Which of a law's fits is about what, and the share of each model that one of them allows to go low."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qarat.stages.laws.forms import FORMS, Form
from qarat.stages.laws.prediction import predict
from qarat.values.records.law import Fit, Law, Prediction
from qarat.values.records.law_data import spell_value

MODEL = ("size", "tokens")
"""Variables that a model brings along."""


@dataclass(frozen=True)
class Shares:
    """What one fit answers of the low share.

    Attributes:
        law: It is of.
        fit: Of a form with size and ratio.
        models: What each model brings along, from small to large.
        held: Whatever else the form is about, at the value most common among the fitted points.
    """

    law: Law
    fit: Fit
    models: tuple[Mapping[str, float], ...]
    held: Mapping[str, float]

    @property
    def conditions(self) -> str:
        """What is held, in words that follow others; empty for nothing."""
        conditions = "".join(f", at {v} {spell_value(v, value)}" for v, value in self.held.items())
        trained = any("tokens" in own for own in self.models)
        return conditions + (", each trained on as many tokens as it was" if trained else "")

    def within(self, percent: float, own: Mapping[str, float]) -> Prediction:
        """The share that a model can have low within a budget, with the law's interval.

        Args:
            percent: Of perplexity, that may be lost.
            own: One of `models`.
        """
        known = {**self.held, **own, "loss": math.log1p(percent / 100)}
        return predict(self.law, known, self.fit.form, measured=False)


def shares(law: Law) -> Shares | None:
    """The fit that says what share of a model can go low; None where none of the law's forms gives a loss by both."""
    fits = fits_about(law, lambda form: form.response == "loss" and {"size", "ratio"} <= {*form.variables})
    if not fits or not fits[0].points:
        return None
    fit, variables = fits[0], FORMS.load(fits[0].form).variables
    models = {tuple((v, p.variables[v]) for v in MODEL if v in variables) for p in fit.points}
    others = [v for v in variables if v not in (*MODEL, "ratio")]
    held = {v: Counter(p.variables[v] for p in fit.points).most_common(1)[0][0] for v in others}
    return Shares(law, fit, tuple(map(dict, sorted(models))), held)


def fits_about(law: Law, suits: Callable[[Form], bool]) -> tuple[Fit, ...]:
    """The fits of one form that suits: one, or one for each group; none where no form does.

    It is the form that is shown where one must be; if that does not suit, the one with the least error on sizes left
    out among those fitted to all points at once; if there is none, one that is fitted in groups.
    """
    suited = [fit for fit in law.fits if suits(FORMS.load(fit.form))]
    chosen = min(suited, key=lambda fit: (fit.form != law.shown, *_rank(fit))).form if suited else ""
    return tuple(fit for fit in suited if fit.form == chosen)


def _rank(fit: Fit) -> tuple[bool, float, float]:
    quality = fit.quality[0] if fit.quality else None
    unseen = quality.left_out_error[0] if quality and quality.left_out_error else math.inf
    return bool(fit.group), unseen, quality.error if quality else math.inf


def spell_budget(percent: float) -> str:
    """A budget as it is given: ``ppl+5%``."""
    return f"ppl+{percent:.3g}%"

"""Laws as frozen values: formulas with their coefficients, where they hold, and how well."""

from __future__ import annotations

import math

import msgspec

from qarat.ground.summaries import Summarized


class Parameter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One coefficient.

    Attributes:
        name: As in the form's equation.
        value: The estimate.
        interval: 95 % interval, low and high; empty where there is none, as for published coefficients.
        draws: Bootstrap estimates, in the same order for every parameter of a fit; empty where there is none.
    """

    name: str
    value: float
    interval: tuple[float, ...] = ()
    draws: tuple[float, ...] = ()


class FittedPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A point that was fitted, in the unit of the form's response.

    Attributes:
        model: Name.
        variables: What is known of it, by name: ``size``, ``ratio``, ``block``, …
        measured: The response.
        standard_error: Of it; 0 where none is known.
        predicted: By the fit.
        left_out: By a fit without any model of this size; empty where that was not possible. At most one.
        by_difference: Whether it counted by difference over its error, being at or near zero, not by ratio.
    """

    model: str
    variables: dict[str, float]
    measured: float
    standard_error: float
    predicted: float
    left_out: tuple[float, ...]
    by_difference: bool


class Quality(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How well a form fits, over the points that count by ratio.

    Attributes:
        r_squared: Of the logarithm of the response.
        error: Mean relative error of the response.
        left_out_error: The same for points of sizes that the fit had not seen; at most one.
        scatter: Robust standard deviation of a point about the law, in the logarithm, beyond its own error.
        left_out_r_squared: As ``r_squared``, for points of sizes that the fit had not seen: below zero where their mean
            would have been closer. At most one.
    """

    r_squared: float
    error: float
    left_out_error: tuple[float, ...]
    scatter: float
    left_out_r_squared: tuple[float, ...] = ()


class Fit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One form with coefficients.

    Attributes:
        form: Its name.
        group: The values that it holds for, where a form is fitted once for each of them, as Law 1 for each budget.
        parameters: In the form's order.
        method: ``huber`` or ``ols``, both in the logarithm; ``published``.
        domain: Variable to least and largest value fitted.
        resampled: ``models`` or ``points``: what the bootstrap drew; empty for published coefficients.
        units: How many of those there are.
        points: What was fitted.
        quality: At most one; none for published coefficients.
        correlated: Pairs of parameters that trade off against each other, with their correlation: of the draws, or
            without them of the gradient at the points that count by ratio.
        notes: What a reader must know.
    """

    form: str
    group: dict[str, float]
    parameters: tuple[Parameter, ...]
    method: str
    domain: dict[str, tuple[float, float]]
    resampled: str = ""
    units: int = 0
    points: tuple[FittedPoint, ...] = ()
    quality: tuple[Quality, ...] = ()
    correlated: tuple[tuple[str, str, float], ...] = ()
    notes: tuple[str, ...] = ()


class Law(Summarized, msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What fitting came to: one fit, one for each group, or several forms side by side.

    Attributes:
        data: Title of the measurements.
        data_hash: SHA-256 of them, as fitted.
        shared: What all of them have in common: family, format, planning, evaluation.
        versions: Of qarat, numpy and scipy.
        seed: Of starts and resampling.
        fits: By form and group.
        refused: Form to the reason why these data cannot fit it, or not for some of the groups that it is fitted in.
        best: The form with the least error on sizes left out; empty where not all forms have one.
        how: How the numbers were obtained and what they count, such as which parameters N are.
        defects: What is known to be wrong with the measurements, or missing from them.
    """

    data: str
    data_hash: str
    shared: dict[str, str]
    versions: dict[str, str]
    seed: int
    fits: tuple[Fit, ...]
    refused: dict[str, str] = {}
    best: str = ""
    how: str = ""
    defects: tuple[str, ...] = ()

    def facts(self) -> dict[str, str]:
        """What tells it from another."""
        return {
            "data": self.data,
            "forms": ", ".join(dict.fromkeys(fit.form for fit in self.fits)),
            "best": self.best or "none",
        }

    @property
    def uncompared(self) -> tuple[str, ...]:
        """Forms for all points that have no error on sizes left out, where there are several; then none is the best."""
        whole = [fit for fit in self.fits if not fit.group]
        lacking = [fit.form for fit in whole if fit.quality and not fit.quality[0].left_out_error]
        return tuple(lacking) if len(whole) > 1 else ()

    @property
    def shown(self) -> str:
        """The form to show where one must do: the best; without one, the closest to the points it was fitted to."""
        candidates = [fit for fit in self.fits if not fit.group] or self.fits
        closest = min(candidates, key=lambda fit: fit.quality[0].error if fit.quality else math.inf)
        return self.best or closest.form


class Prediction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a law answers.

    Attributes:
        form: Name.
        variable: That was asked for.
        known: The others, by name; ``loss`` in nats per token.
        value: The answer, within what is possible.
        interval: 95 % interval of the law itself, from its coefficients; empty where there is none.
        measured_interval: The same for one measurement, which scatters about the law.
        outside: What lies outside the fitted domain, and how far; empty if nothing does.
        notes: What a reader must know.
        turned: Whether the fitted law runs against what is expected, so that the answer is the other end: the largest
            N that keeps a budget, not the smallest.
        none: That no value, or any value, keeps the budget, in words; then there is no interval, and the value is the
            end of what is possible. Empty for an answer.
    """

    form: str
    variable: str
    known: dict[str, float]
    value: float
    interval: tuple[float, ...]
    measured_interval: tuple[float, ...]
    outside: tuple[str, ...]
    notes: tuple[str, ...]
    turned: bool = False
    none: str = ""


class CheckedRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A measurement beside what a law says of it.

    Attributes:
        model: Name.
        known: The variables that the law was given.
        measured: The loss increase in nats per token, or the ratio.
        standard_error: Of it; 0 where none is known.
        predicted: By the law.
        interval: 95 % interval of one measurement, by the law; empty where there is none.
        outside: What lies outside the fitted domain, and how far.
        near_zero: Whether it is a loss at or near zero, which is no per cent of anything.
        fitted: Whether it is among the points that the law was fitted to, which are no test of it.
    """

    model: str
    known: dict[str, float]
    measured: float
    standard_error: float
    predicted: float
    interval: tuple[float, ...]
    outside: tuple[str, ...]
    near_zero: bool
    fitted: bool = False

    @property
    def counts(self) -> bool:
        """Whether it is part of the mean."""
        return not (self.near_zero or self.fitted)

    def off(self, variable: str) -> float:
        """What the prediction is off by: of a loss its share of the measured one, of a ratio the difference."""
        return self.predicted / self.measured - 1 if variable == "loss" else self.predicted - self.measured


class LawCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A law beside measurements that it was not fitted to.

    Attributes:
        law: Title of the measurements that it was fitted to.
        data: Title of those that it is checked by.
        data_hash: SHA-256 of the latter.
        form: Name.
        variable: ``loss`` or ``ratio``: what is predicted.
        rows: One a measurement.
        error: Mean of what predictions are off by, without sign: relative of losses, those near zero left out, and the
            difference of ratios; rows that were fitted are left out. NaN where no row counts.
        notes: What a reader must know.
    """

    law: str
    data: str
    data_hash: str
    form: str
    variable: str
    rows: tuple[CheckedRow, ...]
    error: float
    notes: tuple[str, ...]

"""Resampling: how far the coefficients would move with other models or other points.

Points of one model share its luck, so whole models are drawn where there are at least four. With fewer, points are
drawn within each model, and the intervals then say nothing about other models. Percentile intervals of few units are
too narrow; they are widened as Hesterberg does (The American Statistician 69, 2015, "expanded percentile interval"), to
the quantiles at which a t interval from that many units would lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qarat.ground.errors import UserError
from qarat.stages.laws.equations import Vector, has_numbers
from qarat.stages.laws.estimation import Solution, estimate
from qarat.stages.laws.forms import Form
from qarat.stages.laws.points import Points, in_group, open_parameters

_FEWEST_MODELS = 4
_TRIES = 50  # draws of units for one estimate, until one identifies the parameters


@dataclass(frozen=True)
class Resample:
    """Bootstrap estimates.

    Attributes:
        draws: Coefficients with ln C first, (draws, p).
        resampled: ``models`` or ``points``.
        units: How many there are.
        rejected: Share of drawn samples that did not identify the parameters and were drawn again.
    """

    draws: Vector
    resampled: str
    units: int
    rejected: float


def resample(form: Form, points: Points, fitted: Solution, method: str, draws: int, seed: int) -> Resample:
    """Fit again to samples drawn with replacement.

    Raises:
        UserError: Hardly any sample fixes every parameter.
    """
    generator = np.random.default_rng(seed)
    rows = [np.flatnonzero([m == model for m in points.models]) for model in sorted(set(points.models))]
    by_model = len(rows) >= _FEWEST_MODELS or len(rows) == len(points)  # one point a model: either is the same
    thetas: list[Vector] = []
    tries = 0
    while len(thetas) < draws and tries < draws * _TRIES:
        tries += 1
        if by_model:
            chosen = np.concatenate([rows[i] for i in generator.integers(len(rows), size=len(rows))])
        else:
            chosen = np.concatenate([generator.choice(own, size=len(own)) for own in rows])
        sample = points.take(chosen)
        counted = sample.take(~sample.by_difference)
        if len(counted) and not open_parameters(form, counted):
            theta = estimate(form, sample, method, start=fitted).theta
            thetas += [theta] if has_numbers(form, theta) else []
    if len(thetas) < draws:
        raise UserError(
            f"of {tries} bootstrap samples{in_group(points.group)} only {len(thetas)} fix every parameter, too few for "
            "intervals: measure more models, or fit without intervals (`draws` 0)"
        )
    units = len(rows) if by_model else len(points)
    return Resample(np.array(thetas), "models" if by_model else "points", units, 1 - draws / tries)


def interval(values: Sequence[float] | Vector, units: int) -> tuple[float, float]:
    """The 95 % interval of bootstrap values from so many units."""
    tail = _tail(units)
    low, high = np.quantile(np.asarray(values, float), [tail, 1 - tail])
    return float(low), float(high)


def fewest_draws(units: int) -> int:
    """How many bootstrap values it takes until one is expected beyond each end of the interval."""
    return math.ceil(1 / _tail(units))


def _tail(units: int) -> float:
    """The share of bootstrap values beyond each end of a 95 % interval from so many units."""
    from scipy.special import ndtr, stdtrit  # here: its import takes long, and every verb would wait for it

    return float(ndtr(-np.sqrt(units / (units - 1)) * stdtrit(units - 1, 0.975)))

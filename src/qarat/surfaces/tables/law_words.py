"""What there is to say of a law's fits, in rows and lines, the same in the terminal and on a page."""

from __future__ import annotations

import math

from qarat.stages.laws.forms import FORMS
from qarat.surfaces.tables.layout import count, fixed
from qarat.values.records.law import Fit, FittedPoint, Law
from qarat.values.records.law_data import spell_values

COMPARED = ("form", "fitted for", "points", "R² of\nlogarithm", "mean error\n(%)", "on sizes left\nout (%)", "")
"""Headers of `compared`; from the third on, but for the last, numbers."""
COEFFICIENTS = ("parameter", "value", "95 % interval")
"""Headers of `coefficients`; all but the first are numbers."""

_ORDER = ("size", "tokens", "block", "ratio", "bits")
_METHODS = {
    "ols": "least squares of the logarithm",
    "huber": "Huber's loss of the logarithm",
    "published": "printed",
}


def compared(law: Law) -> list[tuple[str, ...]]:
    """How well each fit does, in the order of `COMPARED`; empty for published laws, which come without."""
    rows: list[tuple[str, ...]] = []
    for fit in sorted(law.fits, key=lambda fit: bool(fit.group)):  # those for all points, which compare, first
        for quality in fit.quality:
            unseen = fixed(100 * quality.left_out_error[0], 1) if quality.left_out_error else "n/a"
            numbers = (str(len(fit.points)), fixed(quality.r_squared, 3), fixed(100 * quality.error, 1), unseen)
            rows.append((fit.form, group_words(fit), *numbers, "best" if fit.form == law.best else ""))
    return rows


def coefficients(fit: Fit) -> list[tuple[str, ...]]:
    """Each coefficient with its interval, in the order of `COEFFICIENTS`."""
    return [(p.name, f"{p.value:.4g}", " to ".join(f"{bound:.4g}" for bound in p.interval)) for p in fit.parameters]


def fit_lines(fit: Fit) -> list[str]:
    """How a fit was made, and what a reader must know of it."""
    drawn = f"; intervals from resampling {count(fit.units, fit.resampled[:-1])}" if fit.resampled else ""
    lines = [f"{_METHODS[fit.method]}{drawn}; {FORMS.load(fit.form).source}"]
    for quality in fit.quality:
        unseen = [f"; R² of the logarithm on sizes left out: {fixed(r, 3)}" for r in quality.left_out_r_squared]
        scatter = 100 * math.expm1(quality.scatter)
        lines.append(f"scatter about the law: {scatter:.0f} % (one standard deviation){''.join(unseen)}")
    for a, b, correlation in fit.correlated:
        lines.append(f"{a} and {b} trade off (correlation {correlation:.3f}): neither is known well alone")
    lines += fit.notes
    for p in ordered(fit):
        if p.by_difference:
            lines.append(
                f"at or near zero, counted by difference over its error: {p.model}, {spell_values(p.variables)}"
            )
    return lines


def group_words(fit: Fit) -> str:
    """The values that a fit holds for; empty where it holds for all."""
    return spell_values(fit.group)


def ordered(fit: Fit) -> list[FittedPoint]:
    """A fit's points, by size, then block size, then ratio."""
    return sorted(fit.points, key=lambda p: tuple(p.variables.get(v, 0.0) for v in _ORDER))


def off_by(point: FittedPoint, predicted: float) -> float:
    """What a prediction is off by, in per cent of the measured; for points that are not near zero."""
    return 100 * (predicted / point.measured - 1)

"""Comparison: how far forms are off at sizes that their fits had not seen, and which of them is the least.

An error over some sizes only would flatter, so that a form has one where each size could be left out. Where forms for
all points stand side by side and one of them lacks a size (tokens that differ at one size alone, say), all are compared
over the sizes that each of them could do without, if these are two or more, and the others are named.

A form with an offset may come as close to a simpler one as one likes: the power of a share becomes its exponential as d
grows. Where data do not fix d, a descent stops somewhere along that way, and where depends on the last bits of a
machine's arithmetic. Forms that say the same of what they had not seen, by far nearer to each other than data are to
either, are therefore one law, and of these the one with the fewest parameters stands for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from qarat.stages.laws.forms import FORMS
from qarat.values.records.law import Fit, FittedPoint
from qarat.values.records.law_data import spell_value

_FEWEST_SIZES = 2
_TIE = 1e-4  # relative: of two forms that make the same predictions, each as closely as it was fitted
_SAME = 0.1  # of the scatter about a law: what forms may differ by and still say the same of sizes left out


def compare_forms(fits: Sequence[Fit]) -> tuple[list[Fit], str]:
    """Fits with their errors on sizes left out, made comparable, and the form with the least.

    Forms that are fitted in groups are as they were. No form is the best where one of them has no such error: that it
    cannot be compared makes no other form better than it.
    """
    whole = [fit for fit in fits if not fit.group]
    shared = set.intersection(*(_left_out_sizes(fit) for fit in whole)) if whole else set()
    lacking = {fit.form: missing for fit in whole if (missing := _sizes(fit) - _left_out_sizes(fit))}
    if lacking and len(whole) > 1 and len(shared) >= _FEWEST_SIZES:
        note = _note(lacking)
        whole = [msgspec.structs.replace(with_left_out(fit, shared), notes=(*fit.notes, note)) for fit in whole]
    best, ties = _least(whole)
    if ties:
        note = f"as far off on sizes left out as {' and '.join(ties)}: on these data one law, differently written"
        whole = [msgspec.structs.replace(f, notes=(*f.notes, note)) if f.form == best else f for f in whole]
    compared = {fit.form: fit for fit in whole}
    return [fit if fit.group else compared[fit.form] for fit in fits], best


def with_left_out(fit: Fit, sizes: set[float] | None = None) -> Fit:
    """A fit with its quality on sizes that it had not seen.

    Args:
        fit: With points and quality.
        sizes: Those to count; None for all, if each could be left out.
    """
    if sizes is None and _sizes(fit) - _left_out_sizes(fit):
        return fit
    counted = [p for p in _counted(fit) if sizes is None or p.variables.get("size", 0.0) in sizes]
    measured = np.log([p.measured for p in counted])
    residuals = measured - np.log([p.left_out[0] for p in counted])
    total = float(np.sum((measured - measured.mean()) ** 2))
    quality = msgspec.structs.replace(
        fit.quality[0],
        left_out_error=(float(np.mean(np.abs(np.expm1(-residuals)))),),
        left_out_r_squared=(1 - float(np.sum(residuals**2)) / total,) if total > 0 else (),
    )
    return msgspec.structs.replace(fit, quality=(quality,))


def _counted(fit: Fit) -> list[FittedPoint]:
    return [p for p in fit.points if not p.by_difference]


def _sizes(fit: Fit) -> set[float]:
    return {p.variables.get("size", 0.0) for p in _counted(fit)}


def _left_out_sizes(fit: Fit) -> set[float]:
    return {p.variables.get("size", 0.0) for p in _counted(fit) if p.left_out}


def _note(lacking: dict[str, set[float]]) -> str:
    """Which sizes the comparison does without, and why."""
    lacks = [f"{form} without {', '.join(spell_value('size', s) for s in sorted(s))}" for form, s in lacking.items()]
    left = "; ".join(lacks)
    return f"the error on sizes left out is over those that every form can do without: too few data for {left}"


def _least(whole: Sequence[Fit]) -> tuple[str, list[str]]:
    """The best form, or none, and those that say the same: of these one about the ratio, then the simplest, is best."""
    if not whole or not all(fit.quality[0].left_out_error for fit in whole):
        return "", []
    least = min(whole, key=lambda fit: fit.quality[0].left_out_error)
    same = {fit.form: FORMS.load(fit.form) for fit in whole if _says_the_same(fit, least)}
    best = min(same, key=lambda form: ("ratio" not in same[form].variables, len(same[form].names)))
    return best, [form for form in same if form != best]


def _says_the_same(fit: Fit, other: Fit) -> bool:
    """Whether two fits to the same points predict alike what they had not seen."""
    (error,), (least,) = fit.quality[0].left_out_error, other.quality[0].left_out_error
    both = [(p, q) for p, q in zip(_counted(fit), _counted(other), strict=True) if p.left_out and q.left_out]
    apart = np.log([p.left_out[0] / q.left_out[0] for p, q in both])
    scatter = min(fit.quality[0].scatter, other.quality[0].scatter)
    return math.isclose(error, least, rel_tol=_TIE) or float(np.sqrt(np.mean(apart**2))) <= _SAME * scatter

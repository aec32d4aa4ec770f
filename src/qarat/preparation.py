"""Preparation: the transforms that a request asks for, applied to the model before anything is planned.

A transform may need stats of the model that it is applied to, and the strength of smoothing may be left to be chosen
(``smooth/auto``): by the loss of everything low, on the selection tokens. Like `qarat.planning`, this puts stages
together that do not know each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from qarat.conversion import quantize
from qarat.data import TokenSet
from qarat.errors import UserError
from qarat.evaluation.perplexity import measure_perplexity
from qarat.models import Model, Transform
from qarat.observation import observe
from qarat.planning import Request, naive_plan
from qarat.records import ActivationStats
from qarat.transforms import choose, parse_transform
from qarat.workspace import Progress, no_progress

__all__ = ["Prepared", "apply_again", "outline", "prepare"]


class Prepared(NamedTuple):
    """A transformed model, and what makes it again.

    Attributes:
        model: In float, equal to the one it was made from.
        transforms: As they were applied, choices made: ``smooth/0.6`` for ``smooth/auto``.
        stats: What each was made from, None where it needs none.
    """

    model: Model
    transforms: tuple[str, ...]
    stats: tuple[ActivationStats | None, ...]


def outline(model: Model, request: Request) -> Model:
    """What can be known of the transformed model beforehand: its sites, what it computes, what was done to it.

    It is for checks before any work; its blocks are not those of the transformed model.

    Args:
        model: In float.
        request: Whose transforms they are.

    Raises:
        UserError: As `qarat.transforms.parse_transform`, or a transform that does not fit the model.
    """
    for text in request.transforms:
        needs_stats = parse_transform(text).needs_stats
        model = model.with_transform(Transform(text)) if needs_stats else _apply(model, text, None)
    return model


def prepare(
    model: Model,
    request: Request,
    calibration: TokenSet,
    selection: TokenSet,
    *,
    progress: Progress = no_progress,
) -> Prepared:
    """Apply the transforms of a request, one after the other.

    Args:
        model: In float.
        request: Whose transforms they are; low scheme and overrides count where a strength is chosen.
        calibration: Tokens on which the model is observed where a transform needs stats.
        selection: Tokens on which a strength is chosen.
        progress: Called as the work goes on.

    Raises:
        UserError: As `qarat.transforms.parse_transform`, or a transform that does not fit the model.
    """
    done = Prepared(model, (), ())
    for text in request.transforms:
        step, seen = parse_transform(text), None
        if step.needs_stats:
            seen = observe(done.model, calibration, attention=False, progress=progress)
        if step.choices:
            text = _chosen(done.model, step.choices, request, seen, calibration, selection, progress)
        done = Prepared(_apply(done.model, text, seen), (*done.transforms, text), (*done.stats, seen))
    return done


def apply_again(model: Model, transforms: Sequence[str], stats: Sequence[ActivationStats | None]) -> Model:
    """The transformed model of a `Prepared`, from what was kept of it.

    Args:
        model: That it was made from.
        transforms: As they were applied.
        stats: What each was made from.

    Raises:
        UserError: Stats of another model.
    """
    for text, seen in zip(transforms, stats, strict=True):
        model = _apply(model, text, seen)
    return model


def _apply(model: Model, text: str, stats: ActivationStats | None) -> Model:
    try:
        return parse_transform(text).apply(model, stats)
    except UserError as error:
        raise UserError(f"--transform {text}: {error}") from None


def _chosen(
    model: Model,
    choices: Sequence[str],
    request: Request,
    stats: ActivationStats | None,
    calibration: TokenSet,
    selection: TokenSet,
    progress: Progress,
) -> str:
    """The spelling under which everything low loses least on the selection tokens."""

    def measure(text: str) -> float:
        transformed = _apply(model, text, stats)
        # Only a rule can make an attention product low.
        seen = observe(transformed, calibration, attention=bool(request.rules), progress=progress)
        low = quantize(transformed, naive_plan(transformed, request, seen), seen)
        return measure_perplexity(low, selection, label=text, progress=progress).loss

    return choose(choices, measure)[0]

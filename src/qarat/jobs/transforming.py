"""Preparation: the transforms that a request asks for, applied to the model before anything is planned.

A transform may need stats of the model that it is applied to, and the strength of smoothing may be left to be chosen
(``smooth/auto``): by the loss of everything low, on the selection tokens.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from qarat.ground.disk import write_whole
from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.jobs.folder import Run
from qarat.jobs.protecting import naive_plan, profile
from qarat.model.model import Model, Transform
from qarat.model.tokens import TokenSet
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.quantize import quantize
from qarat.stages.transforms import parse_transform
from qarat.values.fingerprints import spellings_of
from qarat.values.records.files import decode_record, encode_record
from qarat.values.records.streams import ActivationStats
from qarat.values.requests.protect import ProtectRequest

APPLIED = "transforms.json"


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


def outline(model: Model, request: ProtectRequest) -> Model:
    """What can be known of the transformed model beforehand: its sites, what it computes, what was done to it.

    It is for checks before any work; its blocks are not those of the transformed model.

    Args:
        model: In float.
        request: Whose transforms they are.

    Raises:
        UserError: As `qarat.stages.transforms.parse_transform`, or a transform that does not fit the model.
    """
    for text in request.transforms:
        needs_stats = parse_transform(text).needs_stats
        model = model.with_transform(Transform(text)) if needs_stats else _apply(model, text, None)
    return model


def prepare(
    model: Model,
    request: ProtectRequest,
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
        UserError: As `qarat.stages.transforms.parse_transform`, or a transform that does not fit the model.
    """
    done = Prepared(model, (), ())
    for text in request.transforms:
        step, seen = parse_transform(text), None
        if step.needs_stats:
            seen = profile(done.model, calibration, request.prefix, attention=False, progress=progress)
        if step.choices:
            text = _chosen(done.model, step.choices, request, seen, calibration, selection, progress)
        done = Prepared(_apply(done.model, text, seen), (*done.transforms, text), (*done.stats, seen))
    return done


def prepare_in(
    run: Run, model: Model, request: ProtectRequest, calibration: TokenSet, selection: TokenSet, *, progress: Progress
) -> tuple[Model, tuple[str, ...]]:
    """`prepare` as a step of a run: what was chosen and measured is kept, and not done again.

    Args:
        run: That the model is prepared for.
        model: As for `prepare`, as all that follow.
        request: With at least one transform.
        calibration: Tokens.
        selection: Tokens.
        progress: Called as the work goes on.

    Returns:
        The transformed model, and its transforms as they were applied.
    """
    needed = [parse_transform(text).needs_stats for text in request.transforms]
    files = [_kept(number) if needs else "" for number, needs in enumerate(needed)]

    def work() -> None:
        done = prepare(model, request, calibration, selection, progress=progress)
        for file, stats in zip(files, done.stats, strict=True):
            if stats is not None:
                write_whole(run.path(file), encode_record(stats))
        write_whole(run.path(APPLIED), msgspec.json.encode(done.transforms) + b"\n")

    origin = model.provenance(calibration.fingerprint, selection.fingerprint)
    key = msgspec.to_builtins([origin, request])
    run.step("transform", key, [APPLIED, *filter(None, files)], work)
    applied = msgspec.json.decode(run.path(APPLIED).read_bytes(), type=tuple[str, ...])
    stats = [decode_record(run.path(file), ActivationStats) if file else None for file in files]
    return apply_again(model, applied, stats), applied


def tokens_to_prepare(request: ProtectRequest, calibration: int, selection: int) -> int:
    """Tokens that preparing sends through the whole model.

    Args:
        request: Whose transforms they are.
        calibration: Tokens of the calibration set.
        selection: Tokens of the selection set.
    """
    steps = [parse_transform(text) for text in request.transforms]
    tried = sum(len(step.choices) for step in steps)
    return (tried + sum(step.needs_stats for step in steps)) * calibration + tried * selection


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


def stats_behind(transforms: Sequence[str], given: Sequence[Path]) -> list[Path | None]:
    """Which file of stats each transform is made from, None where it needs none; no file is opened.

    Args:
        transforms: As they are to be applied, so with no choice left.
        given: A file for each that needs stats, in their order.

    Raises:
        UserError: As `qarat.stages.transforms.parse_transform`; a choice that is left; too few files, or too many.
    """
    steps = {text: parse_transform(text) for text in transforms}
    for text, step in steps.items():
        if step.choices:
            raise UserError(
                f"`transforms` {text}: `qarat run` chooses, by the loss on the selection tokens (its {APPLIED} says "
                f"what); here give one, such as {', '.join(step.choices)}"
            )
    needing = [text for text in transforms if steps[text].needs_stats]
    if len(given) != len(needing):
        raise UserError(
            f"`transform_stats`: {len(given)} given, {len(needing)} needed{': for ' if needing else ''}"
            f"{', '.join(needing)}; each is what `qarat profile` finds with only the transforms in front of it; a run "
            f"keeps it as {_kept(0)}"
        )
    files = iter(given)
    return [next(files) if steps[text].needs_stats else None for text in transforms]


def options_for(fingerprint: str, folder: Path) -> str:
    """The options that make a transformed model of its checkpoint, for messages.

    Args:
        fingerprint: Of the transformed model; of a checkpoint as it is, no option does it.
        folder: In which the stats behind it are looked for, as a run keeps them.
    """
    transforms = spellings_of(fingerprint)
    if not transforms:
        return "no `transforms`"
    kept = [folder / _kept(n) for n, text in enumerate(transforms) if parse_transform(text).needs_stats]
    files = [str(file) if file.is_file() else "STATS" for file in kept]
    arguments = f"`transforms` {shlex.join(transforms)}" + (f" `transform_stats` {shlex.join(files)}" if files else "")
    return arguments + (", STATS being what was given when it was profiled" if "STATS" in files else "")


def _kept(number: int) -> str:
    """The file in which a run keeps what its transform of that number, from 0 on, was made from."""
    return f"before-transform-{number}.safetensors"


def _apply(model: Model, text: str, stats: ActivationStats | None) -> Model:
    try:
        return parse_transform(text).apply(model, stats)
    except UserError as error:
        raise UserError(f"`transforms` {text}: {error}") from None


def _chosen(
    model: Model,
    choices: Sequence[str],
    request: ProtectRequest,
    stats: ActivationStats | None,
    calibration: TokenSet,
    selection: TokenSet,
    progress: Progress,
) -> str:
    """The spelling under which everything low loses least on the selection tokens."""

    def measure(text: str) -> float:
        transformed = _apply(model, text, stats)
        # Only a rule can make an attention product low.
        products = bool(request.rules)
        seen = profile(transformed, calibration, request.prefix, attention=products, progress=progress)
        low = quantize(transformed, naive_plan(transformed, request, seen), seen)
        return measure_perplexity(low, selection, label=text, progress=progress).loss

    return min(choices, key=measure)

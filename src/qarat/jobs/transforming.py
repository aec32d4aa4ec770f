"""Preparation: the transforms that a request asks for, applied to the model before anything is planned.

A transform may need stats of the model that it is applied to, and the strength of smoothing may be left to be chosen
(``smooth/auto``): by the loss of everything low, on the selection tokens.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from qarat.ground.disk import write_whole
from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.jobs.estimates import PRICED_ON
from qarat.jobs.folder import Run
from qarat.jobs.protecting import naive_plan, profile
from qarat.jobs.rewriting import FITTING_FORWARDS, fit_asked
from qarat.model.model import Model, Transform
from qarat.model.tokens import TokenSet
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.quantize import quantize
from qarat.stages.transforms import MadeFrom, parse_transform
from qarat.values.fingerprints import spellings_of
from qarat.values.records.files import decode_record, encode_record, kind_of
from qarat.values.records.rewrites import Rewrites
from qarat.values.records.streams import ActivationStats
from qarat.values.requests.protect import ProtectRequest

APPLIED = "transforms.json"


class Prepared(NamedTuple):
    """A transformed model, and what makes it again.

    Attributes:
        model: In float, equal to the one it was made from.
        transforms: As they were applied, choices made: ``smooth/0.6`` for ``smooth/auto``.
        made_from: What each was made from, None where it needs nothing.
    """

    model: Model
    transforms: tuple[str, ...]
    made_from: tuple[MadeFrom, ...]


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
        step = parse_transform(text)
        with _spelled(text):
            if not step.needs:
                model = step.apply(model, None)
            elif step.outline is not None:
                model = step.outline(model)
            else:
                model = model.with_transform(Transform(text))
    return model


def prepare(
    model: Model,
    request: ProtectRequest,
    calibration: TokenSet,
    selection: TokenSet,
    *,
    stats: ActivationStats | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Prepared:
    """Apply the transforms of a request, one after the other.

    Args:
        model: In float.
        request: Whose transforms they are; low scheme and overrides count where a strength is chosen.
        calibration: Tokens on which the model is observed where a transform needs stats.
        selection: Tokens on which a strength is chosen, and rewrites are fitted.
        stats: Of the model on the calibration tokens; profiled here, where they are needed and not given.
        seed: Of the labels that rewrites are fitted with.
        progress: Called as the work goes on.

    Raises:
        UserError: As `qarat.stages.transforms.parse_transform`, or a transform that does not fit the model.
    """
    done = Prepared(model, (), ())
    for text in request.transforms:
        step, made_from = parse_transform(text), None
        if step.needs:
            made_from = seen = (
                stats
                if stats is not None and not done.transforms
                else profile(done.model, calibration, request.prefix, attention=False, progress=progress)
            )
            if step.needs == "rewrites":
                with _spelled(text):
                    text, made_from = fit_asked(
                        text, done.model, request, seen, selection, seed=seed, progress=progress
                    )
            elif step.choices:
                text = _chosen(done.model, step.choices, request, seen, calibration, selection, progress)
        done = Prepared(_apply(done.model, text, made_from), (*done.transforms, text), (*done.made_from, made_from))
    return done


def prepare_in(
    run: Run,
    model: Model,
    request: ProtectRequest,
    calibration: TokenSet,
    selection: TokenSet,
    *,
    stats: ActivationStats | None,
    seed: int,
    progress: Progress,
) -> Prepared:
    """`prepare` as a step of a run: what was chosen and measured is kept, and not done again.

    Args:
        run: That the model is prepared for.
        model: As for `prepare`, as all that follow.
        request: With at least one transform.
        calibration: Tokens.
        selection: Tokens.
        stats: As for `prepare`.
        seed: As for `prepare`.
        progress: Called as the work goes on.

    Returns:
        As `prepare`.
    """
    files = kept_files(request.transforms)

    def work() -> None:
        done = prepare(model, request, calibration, selection, stats=stats, seed=seed, progress=progress)
        for file, made_from in zip(files, done.made_from, strict=True):
            if made_from is not None:
                write_whole(run.path(file), encode_record(made_from))
        write_whole(run.path(APPLIED), msgspec.json.encode(done.transforms) + b"\n")

    origin = model.provenance(calibration.fingerprint, selection.fingerprint, seed)
    key = [msgspec.to_builtins(origin), request.transforms, request.low, request.rules, request.budget, request.prefix]
    run.step("transform", key, [APPLIED, *filter(None, files)], work)
    applied = msgspec.json.decode(run.path(APPLIED).read_bytes(), type=tuple[str, ...])
    made_from = tuple(read_made_from(run.path(file)) if file else None for file in files)
    return Prepared(apply_again(model, applied, made_from), applied, made_from)


def read_made_from(path: Path) -> MadeFrom:
    """What a transform is made from, as a file keeps it.

    Raises:
        UserError: No such file, or another record.
    """
    record = decode_record(path)
    if not isinstance(record, ActivationStats | Rewrites):
        raise UserError(f"{path} is of kind {kind_of(type(record))}: transforms are made from stats or from rewrites")
    return record


def tokens_to_prepare(request: ProtectRequest, calibration: int, selection: int) -> int:
    """Tokens that preparing sends through the whole model.

    Args:
        request: Whose transforms they are.
        calibration: Tokens of the calibration set.
        selection: Tokens of the selection set.
    """
    steps = [parse_transform(text) for text in request.transforms]
    tried = sum(len(step.choices) for step in steps)
    fitted = FITTING_FORWARDS * min(selection, PRICED_ON) * sum(step.needs == "rewrites" for step in steps)
    return (tried + sum(bool(step.needs) for step in steps)) * calibration + tried * selection + fitted


def apply_again(model: Model, transforms: Sequence[str], made_from: Sequence[MadeFrom]) -> Model:
    """The transformed model of a `Prepared`, from what was kept of it.

    Args:
        model: That it was made from.
        transforms: As they were applied.
        made_from: What each was made from.

    Raises:
        UserError: Made from another model.
    """
    for text, made in zip(transforms, made_from, strict=True):
        model = _apply(model, text, made)
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
    needing = [text for text in transforms if steps[text].needs]
    if len(given) != len(needing):
        raise UserError(
            f"`transform_stats`: {len(given)} given, {len(needing)} needed{': for ' if needing else ''}"
            f"{', '.join(needing)}; each is what `qarat profile` finds with only the transforms in front of it; a run "
            f"keeps it as before-transform-0.safetensors (of rewrites, as rewrites-0.json)"
        )
    files = iter(given)
    return [next(files) if steps[text].needs else None for text in transforms]


def options_for(fingerprint: str, folder: Path) -> str:
    """The options that make a transformed model of its checkpoint, for messages.

    Args:
        fingerprint: Of the transformed model; of a checkpoint as it is, no option does it.
        folder: In which the stats behind it are looked for, as a run keeps them.
    """
    transforms = spellings_of(fingerprint)
    if not transforms:
        return "no `transforms`"
    kept = [folder / name for name in kept_files(transforms) if name]
    files = [str(file) if file.is_file() else "STATS" for file in kept]
    arguments = f"`transforms` {shlex.join(transforms)}" + (f" `transform_stats` {shlex.join(files)}" if files else "")
    return arguments + (", STATS being what was given when it was profiled" if "STATS" in files else "")


def kept_files(transforms: Sequence[str]) -> list[str]:
    """The files in which a run keeps what its transforms were made from, in their order; empty for nothing."""
    names = {"": "", "stats": "before-transform-{}.safetensors", "rewrites": "rewrites-{}.json"}
    return [names[parse_transform(text).needs].format(number) for number, text in enumerate(transforms)]


def _apply(model: Model, text: str, made_from: MadeFrom) -> Model:
    with _spelled(text):
        return parse_transform(text).apply(model, made_from)


@contextmanager
def _spelled(text: str) -> Iterator[None]:
    """Say in an error which transform it is about."""
    try:
        yield
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
        low = quantize(transformed, naive_plan(transformed, request, seen), seen, calibration)
        return measure_perplexity(low, selection, label=text, progress=progress).loss

    return min(choices, key=measure)

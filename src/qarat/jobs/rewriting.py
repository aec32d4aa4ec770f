"""Rewrites fitted to damage: from one pass through the float model to scales and copies for every stream.

What is fitted is a *transform* (`qarat.stages.transforms.rewrite`): the function of the model is kept, everything that
follows (stats, prices, plans, exports) works on the new model as on any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import msgspec
import torch
from torch import Tensor, nn

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.jobs.estimates import PRICED_ON
from qarat.maths.input_steps import Sensitivity, Steps, exact_scales, fits
from qarat.maths.step_fit import StepFit
from qarat.model.families.base import Stream
from qarat.model.model import Model
from qarat.model.passes import CapturedBatch
from qarat.model.prefixes import check_prefix
from qarat.model.tokens import TokenSet
from qarat.stages.prices.changes import Pricing
from qarat.stages.prices.sensitivity import sensitivities
from qarat.stages.transforms.rewrite import check, columns_for
from qarat.values.budgets import parse_loss_budget
from qarat.values.fingerprints import LEFT_ALONE
from qarat.values.parsing import parse_scheme
from qarat.values.records.files import content_hash
from qarat.values.records.rewrites import FittedScales, Rewrites, StreamRewrite
from qarat.values.records.streams import ActivationStats
from qarat.values.requests.protect import ProtectRequest
from qarat.values.roles import Role
from qarat.values.schemes import LinearScheme, is_static

REWRITE = "rewrite"
FINE = 8
REACH, COARSE_REACH = 1.2, 0.8
"""Scales reach so many times what calibration saw, where inputs have at least `FINE` bits, and where they have fewer.
What is clipped costs the same whatever the bits, and a wider step 16 times as much at 6 bits as at 8. SmolLM2-135M, 32
calibration windows: W8A8 static lost 0.027 nats on other text at 1, 0.023 at 1.23, 0.032 at 1.5; W6A6 static 0.263 at
1, 0.191 at 0.8 (docs/rewrites.md)."""
FITTING_FORWARDS = 7
"""Forwards of those tokens that fitting costs: one, one recomputed, a backward of two, a product with the shape of
every weight; the tables and the descent take some two more."""
CAUTION = 1.5  # predictions add up to too little where much is low


def reaching(low: str) -> str:
    """A low scheme whose static inputs reach beyond what calibration saw, or less far where they are coarse.

    One that says itself how far they reach is left as it is.

    Args:
        low: Spelling of a scheme of projections.
    """
    scheme = parse_scheme(low)
    if not isinstance(scheme, LinearScheme) or scheme.input is None or not scheme.input.static:
        return low
    if scheme.input.reach != 1 or scheme.input.choice != "absmax":
        return low
    reach = REACH if scheme.input.number_format.bits >= FINE else COARSE_REACH
    return str(msgspec.structs.replace(scheme, input=msgspec.structs.replace(scheme.input, reach=reach)))


def with_rewrites(model: Model, request: ProtectRequest) -> tuple[ProtectRequest, str]:
    """A request with the rewrites that it wants among its transforms, and what is to be said of that.

    Args:
        model: In float.
        request: One with transforms of its own, or without rewrites, is left as it is.
    """
    if not request.rewrites or request.transforms:
        return request, ""
    if why := refusal(model, request.low):
        return request, f"nothing is rewritten: {why}"
    return msgspec.structs.replace(request, transforms=(REWRITE,), low=reaching(request.low)), ""


def refusal(model: Model, low: str) -> str:
    """Why the streams of a model cannot be rewritten for a low scheme, in words; empty if they can."""
    scheme = parse_scheme(low)
    if not isinstance(scheme, LinearScheme) or not fits(scheme.weight, scheme.input):
        return f"no steps are fitted for {low}: inputs need one scale for the tensor or for a token"
    try:
        check(model)
    except UserError as error:
        return str(error)
    return ""


def pays(rewrites: Rewrites) -> bool:
    """Whether rewrites are predicted to buy more than predictions can be wrong by.

    Under 4 bits in groups of 32 they are predicted to take a sixth of what weights cost, and measured to take none
    (docs/rewrites.md). Static inputs are rewritten in any case: how far their scales reach was chosen with it.
    """
    return is_static(parse_scheme(rewrites.scheme)) or rewrites.naive >= CAUTION * rewrites.damage(rewrites.columns[-1])


def fewest_columns(rewrites: Rewrites, nats: float) -> int:
    """The fewest columns with which everything low is predicted to be within a loss; the most there are, if none is.

    Args:
        rewrites: That were fitted.
        nats: What may be lost, per token.
    """
    return next((n for n in rewrites.columns if CAUTION * rewrites.damage(n) <= nats), rewrites.columns[-1])


def fit_rewrites(
    model: Model,
    selection: TokenSet,
    stats: ActivationStats,
    low: str,
    *,
    columns: int,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Rewrites:
    """Fit scales and copies of every stream, for a low scheme.

    Args:
        model: In float.
        selection: The selection set, of which the first `PRICED_ON` tokens are looked at.
        stats: Of this model, on the calibration set.
        low: Spelling of the low scheme; what its scales reach is kept to.
        columns: Inner columns that copies may take, beside none.
        seed: Of the labels drawn.
        progress: Called after every block.

    Raises:
        UserError: A scheme or a model that nothing can be fitted for; stats of another model;
            windows that do not begin with the prefix that the stats leave out.
    """
    tokens = selection.at_most(PRICED_ON)
    return fit_several(Pricing(model, tokens, (), stats, None, stats.prefix, seed, progress), [low], columns)[0]


def fit_several(
    pricing: Pricing, lows: Sequence[str], columns: int, also: Callable[[CapturedBatch], None] | None = None
) -> tuple[Rewrites, ...]:
    """Rewrites for each of several low schemes, from one pass.

    Args:
        pricing: Model, tokens, stats, prefix, seed and progress.
        lows: Spellings.
        columns: As for `fit_rewrites`, as all errors.
        also: Shown every batch of the pass.
    """
    model, stats, tokens = pricing.model, pricing.stats, pricing.tokens
    if stats is None or stats.provenance.model != model.fingerprint:
        raise UserError("rewrites are fitted with stats of the very model that they change; profile that one")
    check_prefix(tokens, stats.prefix)
    schemes = [_fittable(model, low) for low in lows]
    fitted: list[dict[str, StreamRewrite]] = [{} for _ in schemes]
    for index, block, seen in sensitivities(pricing, [scheme.input for scheme in schemes], also):
        for scheme, rewrites in zip(schemes, fitted, strict=True):
            rewrites |= {r.stream: r for r in _block_rewrites(model, index, block, seen, scheme, columns)}
    streams = [f"{model.family.blocks}.{i}.{s.name}" for i in range(model.blocks) for s in model.family.streams]
    origin = model.provenance(tokens.fingerprint, tokens.convention, pricing.seed)
    behind, tried = content_hash(stats), (0, columns) if columns else (0,)

    def record(scheme: LinearScheme, fitted: Mapping[str, StreamRewrite]) -> Rewrites:
        reach = scheme.input.reach if scheme.input else 1.0
        return Rewrites(origin, behind, str(scheme), reach, tried, tuple(fitted[s] for s in streams))

    return tuple(map(record, schemes, fitted))


def _fittable(model: Model, low: str) -> LinearScheme:
    if why := refusal(model, low):
        raise UserError(why)
    return cast(LinearScheme, parse_scheme(low))


def fit_asked(
    text: str,
    model: Model,
    request: ProtectRequest,
    stats: ActivationStats,
    selection: TokenSet,
    *,
    seed: int,
    progress: Progress,
) -> tuple[str, Rewrites]:
    """Rewrites for a request, and the spelling of the transform they are for, its columns with it.

    Args:
        text: ``rewrite``, of as few columns as the budget is predicted to allow, or ``rewrite/64``.
        model: In float.
        request: Whose low scheme and budget count.
        stats: As for `fit_rewrites`, as all that follow.
        selection: Tokens.
        seed: Of the labels drawn.
        progress: Called after every block.
    """
    named = text.partition("/")[2]
    columns = int(named) if named else columns_for(model)
    rewrites = fit_rewrites(model, selection, stats, request.low, columns=columns, seed=seed, progress=progress)
    return with_columns(text, rewrites, request.budget), rewrites


def with_columns(text: str, rewrites: Rewrites, budget: str) -> str:
    """The spelling of a rewrite with its columns; where it names none, as few as a budget is predicted to allow.

    Where it would not pay, `LEFT_ALONE`.
    """
    if "/" in text:
        return text
    if not pays(rewrites):
        return LEFT_ALONE
    return f"{text}/{fewest_columns(rewrites, parse_loss_budget(budget).nats)}"


def _block_rewrites(
    model: Model,
    index: int,
    block: nn.Module,
    sensitivities: Mapping[str, Sensitivity],
    scheme: LinearScheme,
    columns: int,
) -> Iterator[StreamRewrite]:
    """What may be done to every stream of a block."""
    inside = f"{model.family.blocks}.{index}"
    for stream in model.family.streams:
        seen = sensitivities[stream.name]
        reach = scheme.input.reach if scheme.input else 1.0
        fit = StepFit(seen, scheme.input, scheme.weight, reach, _source_rows(model, stream, sensitivities, scheme))
        plain = fit.fit()
        choices = {0: plain}
        if stream.role == Role.DOWN_INPUT and columns:
            choices[columns] = fit.split(columns, plain)
        fitted = tuple(
            _packed(steps, _storable(model, index, block, stream, seen.gather(steps.scales)), most)
            for most, steps in choices.items()
        )
        sites = tuple(f"{inside}.{reader}" for reader in stream.readers)
        yield StreamRewrite(f"{inside}.{stream.name}", sites, fit.naive().damage, fitted)


def _source_rows(
    model: Model, stream: Stream, sensitivities: Mapping[str, Sensitivity], scheme: LinearScheme
) -> tuple[Tensor, Tensor] | None:
    """Of the projection that makes a stream, as `StepFit` takes it; None where its scales go by row, or for a norm."""
    if stream.fused or scheme.weight is None or scheme.weight.granularity.rows is not None:
        return None
    read = next(other for other in model.family.streams if stream.source in other.readers)
    place = read.readers.index(stream.source)
    seen = sensitivities[read.name]
    return seen.weights[place].abs().amax(1), seen.moments[place].sum(1)


def _storable(model: Model, index: int, block: nn.Module, stream: Stream, scales: Tensor) -> Tensor:
    """Scales that what makes a stream can be divided by without being rounded, (channels of the source,).

    A projection's rows take any: where it is quantized, its own scales do, or the fit has counted it. A norm is stored
    as it is.
    """
    if not stream.fused:
        return scales
    source = block.get_submodule(stream.source).get_parameter("weight").detach()
    dtype = model.checkpoint.dtype_of(f"{model.family.blocks}.{index}.{stream.source}.weight")
    return exact_scales(scales, source, dtype, model.family.norm_offset)


def _packed(steps: Steps, scales: Tensor, columns: int) -> FittedScales:
    """Steps as a record keeps them."""
    copies = _bytes(steps.copies.log2().to(torch.uint8)) if bool((steps.copies > 1).any()) else b""
    return FittedScales(columns, steps.inputs, steps.weights, _bytes(scales.float()), copies)


def _bytes(values: Tensor) -> bytes:
    return values.cpu().contiguous().numpy().tobytes()

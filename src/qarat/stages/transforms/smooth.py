"""SmoothQuant: large channels of an input are made smaller, and the weight's columns that they meet larger.

For channel j of a stream, over all projections that read it,

    s_j = max|x_j|^α / max|w_j|^(1−α)        (Xiao et al. 2022, arXiv 2211.10438, eq. 4)

divides the input and multiplies the weight's column. The division is folded into what makes the input, so nothing is
computed at run time and every export holds the result. α is the migration strength: 0 evens out the weights, 1 the
inputs.

The original smooths, in LLaMA, the inputs of q/k/v and of gate/up, whose source is a norm: ``smooth/0.5``. Spikes are
elsewhere. ``smooth/0.5/all`` adds the two inputs whose source is a projection, as linear in its rows: up_proj makes the
input of ``down_proj``, v_proj that of ``o_proj`` (query heads that share a value head share s). That is ours, and no
part of the original.

Norms that a checkpoint keeps in 16 bits are rounded to those again when the model is quantized
(`qarat.stages.quantize.build_block`), as they are in any such checkpoint. Rounding s_j to a power of two would spare
them that, but costs more than it saves: py-128 in INT8 lost 0.0004 to 0.003 nats more under six settings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.maths.static_scales import reach_of
from qarat.model.families.base import Stream
from qarat.model.model import Model, Transform
from qarat.stages.transforms import MadeFrom, ParsedTransform, stats_of
from qarat.stages.transforms.folding import check_inner, fold_scales
from qarat.values.records.files import content_hash
from qarat.values.records.streams import ActivationStats

STRENGTHS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Tried by ``smooth/auto``; published models use 0.5 to 0.9 (the authors' code)."""

SMALLEST = 1e-5  # a weight's maximum and a factor are no less, as in the authors' code
AUTO, EVERYWHERE = "auto", "all"
_HASH_DIGITS = 12


def parse(parts: Sequence[str]) -> ParsedTransform:
    """``smooth/STRENGTH``, ``smooth/auto``, either with ``/all``; protocol `qarat.stages.transforms.TransformFile`."""
    spelled = "/".join(parts)
    match = re.fullmatch(rf"({AUTO}|0(?:\.\d+)?|1(?:\.0+)?)(/{EVERYWHERE})?", spelled)
    if match is None:
        raise UserError("write smooth/STRENGTH, from 0 to 1, or smooth/auto; then /all if inputs of o and down too")
    strengths = STRENGTHS if match[1] == AUTO else (float(match[1]),)

    def step(model: Model, made_from: MadeFrom) -> Model:
        return apply(model, stats_of(made_from), strengths[0], everywhere=bool(match[2]))

    choices = tuple(f"smooth/{strength:g}{match[2] or ''}" for strength in strengths)
    return ParsedTransform(step, needs="stats", choices=choices if match[1] == AUTO else ())


def apply(model: Model, stats: ActivationStats, strength: float, *, everywhere: bool = False) -> Model:
    """The model with its inputs smoothed.

    Args:
        model: In float.
        stats: Of this model, on the calibration tokens.
        strength: α.
        everywhere: Whether to smooth the inputs of o and down as well.

    Raises:
        UserError: Stats of another model or without a stream; a rotated model, or an inner activation
            that `check_inner` refuses, if ``everywhere``.
    """
    if stats.provenance.model != model.fingerprint:
        raise UserError("smoothing needs stats of the very model that it is applied to; profile that one")
    if everywhere and model.is_rotated:
        raise UserError("the input of a rotated down_proj has no source to fold a scale into; smooth first")
    if everywhere:
        check_inner(model)
    streams = [s for s in model.family.streams if everywhere or s.fused]
    for index in range(model.blocks):
        for stream in streams:
            stats.stream(f"{model.family.blocks}.{index}.{stream.name}")

    def fold(index: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        for stream in streams:
            reach = reach_of(stats, f"{model.family.blocks}.{index}.{stream.name}")
            offset = model.family.norm_offset if stream.fused else 0.0  # what fused readers read comes from a norm
            scales = _scales(state, stream, reach, strength, model.head_width)
            state = fold_scales(state, stream, scales, head=model.head_width, offset=offset)
        return state

    spelled = f"smooth/{strength:g}" + (f"/{EVERYWHERE}" if everywhere else "")
    return model.with_transform(Transform(f"{spelled}@{content_hash(stats)[:_HASH_DIGITS]}", fold))


def smoothing_scales(reach: Tensor, weight: Tensor, strength: float) -> Tensor:
    """The factor of each channel; 1 where calibration saw only zeros, of which the authors' code would make 1e-5.

    Args:
        reach: (channels,), largest magnitude of the input's channels.
        weight: (channels,), largest magnitude of the weight's columns.
        strength: α.

    Returns:
        (channels,) float32.
    """
    factors = reach.pow(strength) / weight.clamp(min=SMALLEST).pow(1 - strength)
    return torch.where(reach > 0, factors.clamp(min=SMALLEST), 1.0)


def _scales(state: Mapping[str, Tensor], stream: Stream, reach: Tensor, strength: float, head: int) -> Tensor:
    """The factor of each channel of what makes a stream, (channels of the source,) float32.

    Args:
        state: Of a block.
        stream: To be smoothed.
        reach: (channels,), largest magnitude of each channel.
        strength: α.
        head: Channels of an attention head.
    """
    readers = [state[f"{reader}.weight"] for reader in stream.readers]
    columns = torch.stack([weight.abs().amax(0).float() for weight in readers]).amax(0)
    source = state[f"{stream.source}.weight"]
    shared = len(columns) // len(source)  # query heads to a value head; 1 anywhere else
    groups = (-1, shared, head) if shared > 1 else (-1, 1, 1)
    by_source = [values.to(source.device).view(groups).amax(1).flatten() for values in (reach, columns)]
    return smoothing_scales(by_source[0], by_source[1], strength)

"""Our schemes in the words of compressed-tensors, and what it has no words for.

Both say ``value = scale × (code − zero point)`` with integer codes −2^(b−1)…2^(b−1)−1, so codes and scales carry over
as they are. How a weight's scale was chosen leaves no trace in a checkpoint and need not be said. How a *dynamic* scale
is chosen is the engine's own affair: schemes whose dynamic scales follow another rule than the library's are refused.

What can be held is what the library's own compressors can (0.20): which of it an engine then runs is another question.
"""

from __future__ import annotations

from typing import Any

import torch
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from torch import nn

from qarat.stages.export.recipes import beyond_scales
from qarat.values.schemes import Granularity, LinearScheme, TensorScheme

MX_GROUP, NV_GROUP = 32, 16
_FLOATS = ("e2m1", "e2m3", "e4m3")
_INTEGERS = tuple(f"int{bits}" for bits in range(2, 9))
# The codes of sintN are those of intN but the lowest: a stored weight may leave one out, an engine's rounding does not.
_SIGNED = tuple(f"sint{bits}" for bits in range(2, 9))


def offences(scheme: LinearScheme, cols: int) -> list[str]:
    """What compressed-tensors cannot hold of a projection's scheme, in words with the remedy; empty if it holds it.

    Args:
        scheme: Of the projection.
        cols: Its input channels.
    """
    reasons = [] if scheme.weight is None else _weight_offences(scheme.weight, cols)
    if scheme.input is not None:
        reasons += _input_offences(scheme.input, cols)
        if scheme.weight is None:
            reasons.append("quantizes its input only: quantize the weight too, or leave both in float")
    return reasons


def group_of(scheme: LinearScheme) -> QuantizationScheme:
    """A scheme without offences as a config group that has no targets yet, its format as the library infers it."""
    weights = None if scheme.weight is None else _args(scheme.weight, "channel", dynamic=False)
    inputs = None if scheme.input is None else _args(scheme.input, "token", dynamic=not scheme.input.static)
    bare = QuantizationScheme(targets=[], weights=weights, input_activations=inputs)
    return bare.model_copy(update={"format": infer_module_format(nn.Linear, bare).value})


def _weight_offences(scheme: TensorScheme, cols: int) -> list[str]:
    name, grain = scheme.format, scheme.granularity
    reasons: list[str] = []
    if why := beyond_scales(scheme):
        return [why]
    if name not in (*_FLOATS, *_INTEGERS, *_SIGNED):
        return [f"w={name}: no such weights; use int2 … int8, e4m3, mxfp4, mxfp6, mxfp8 or nvfp4"]
    tiled = grain.rows is not None and grain.rows > 1
    if (grain.rows is None) != (grain.cols is None) and grain != Granularity(1, None):
        reasons.append(f"w={scheme.spell('w')}: no such granularity; use tensor, channel or gN")
    elif tiled and (grain.cols is None or name != "e4m3"):
        reasons.append(f"w={scheme.spell('w')}: tiles are for e4m3, as RxC; use channel or gN")
    if grain.cols is not None and cols % grain.cols:
        reasons.append(f"w={scheme.spell('w')}: {cols} channels are no whole number of groups of {grain.cols}")
    if name == "e2m1" and not (_is_mx(scheme) or _is_nv(scheme)):
        reasons.append(
            f"w={scheme.spell('w')}: e2m1 is held as mxfp4 (g32, scale-e8m0) or nvfp4 (g16, scale-e4m3) only"
        )
    if name == "e2m3" and not _is_mx(scheme):
        reasons.append(f"w={scheme.spell('w')}: e2m3 is held as mxfp6 (g32, scale-e8m0) only")
    if scheme.scale == "uint8":
        reasons.append(f"w={scheme.spell('w')}: no engine reads scales in units of others; use scale-float16")
    if scheme.scale == "e4m3" and name != "e2m1":
        reasons.append(f"w={scheme.spell('w')}: e4m3 scales are for nvfp4; use scale-float16")
    return reasons


def _input_offences(scheme: TensorScheme, cols: int) -> list[str]:
    name, grain, spelled = scheme.format, scheme.granularity, f"a={scheme.spell('a')}"
    if scheme.scale == "e4m3":
        return [f"{spelled}: an nvfp4 input needs a static scale above dynamic ones; use mxfp4/mx-even, or a=float"]
    if name in _SIGNED:
        return [f"{spelled}: an engine rounds to −2^(b−1) too; use {name.removeprefix('s')}"]
    if name not in (*_FLOATS, *_INTEGERS):
        return [f"{spelled}: no such inputs; use int2 … int8, e4m3, mxfp4, mxfp6 or mxfp8"]
    if scheme.static:
        narrow = name in ("e2m1", "e2m3")
        whole = grain == Granularity() and not narrow
        return [] if whole else [f"{spelled}: static inputs have one scale per tensor, in int2 … int8 or e4m3"]
    reasons: list[str] = []
    if grain.cols is not None and cols % grain.cols:
        reasons.append(f"{spelled}: {cols} channels are no whole number of groups of {grain.cols}")
    if scheme.scale == "e8m0" or name in ("e2m1", "e2m3"):
        if not _is_mx(scheme) or name in _INTEGERS:
            reasons.append(f"{spelled}: inputs with e8m0 scales are mxfp4, mxfp6 or mxfp8 in groups of 32")
        elif scheme.choice != "mx-even":
            reasons.append(f"{spelled}: dynamic MX scales are rounded to even there; add /mx-even")
        return reasons
    if grain.rows not in (None, 1) or (grain.rows is None and grain.cols is not None):
        reasons.append(f"{spelled}: dynamic inputs have a scale per tensor, token or gN")
    if scheme.choice != "absmax":
        reasons.append(f"{spelled}: dynamic scales are the engine's absmax; drop {scheme.choice}, or make it static")
    if scheme.scale != "float32":
        reasons.append(f"{spelled}: dynamic scales are not rounded; drop scale-{scheme.scale}")
    return reasons


def _is_mx(scheme: TensorScheme) -> bool:
    return scheme.granularity == Granularity(1, MX_GROUP) and scheme.scale == "e8m0"


def _is_nv(scheme: TensorScheme) -> bool:
    return scheme.granularity == Granularity(1, NV_GROUP) and scheme.scale == "e4m3"


def _args(scheme: TensorScheme, row: str, *, dynamic: bool) -> QuantizationArgs:
    """A tensor's scheme in the library's words; ``row`` is what it calls a scale for each row."""
    fmt = scheme.number_format
    fields: dict[str, Any] = {"symmetric": scheme.symmetric, "dynamic": dynamic, "num_bits": fmt.bits}
    fields["type"] = "int" if fmt.is_integer else "float"
    if not fmt.is_integer and _is_mx(scheme):
        fields["scale_dtype"] = torch.uint8
    elif _is_nv(scheme):
        fields["scale_dtype"] = torch.float8_e4m3fn
    match scheme.granularity:
        case Granularity(None, None):
            fields["strategy"] = "tensor"
        case Granularity(1, None):
            fields["strategy"] = row
        case Granularity(1, int(cols)):
            fields |= {"strategy": "tensor_group" if _is_nv(scheme) else "group", "group_size": cols}
        case Granularity(rows, cols):
            fields |= {"strategy": "block", "block_structure": [rows, cols]}
    return QuantizationArgs(**fields)

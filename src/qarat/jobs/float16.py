"""What a checkpoint that is served in float16 holds or computes beyond its range.

Engines run a checkpoint in the dtype that its config declares. Beyond 65504 float16 is infinite, the difference of two
such numbers NaN, and with it every token behind; bfloat16 reaches as far as float32.
"""

from __future__ import annotations

import torch

from qarat.model.checkpoints import Checkpoint
from qarat.model.layers import QuantLinear
from qarat.model.model import Model
from qarat.values.formats import FLOAT16_LARGEST, IN_BFLOAT16
from qarat.values.records.streams import ActivationStats
from qarat.values.sites import short_name

_SHOWN = 6


def beyond_float16(checkpoint: Checkpoint, stats: ActivationStats) -> tuple[str, ...]:
    """The weights and streams beyond float16, a line for each kind; nothing where another dtype is declared.

    Args:
        checkpoint: That is served, or was quantized into what is.
        stats: Of its model.
    """
    if checkpoint.declared != torch.float16:
        return ()
    streams = {short_name(name): stream.maximum for name, stream in stats.streams.items()}
    return tuple(
        filter(None, (_line("weights", checkpoint.largest_beyond(FLOAT16_LARGEST)), _line("streams", streams)))
    )


def float16_notes(
    model: Model, stats: ActivationStats | None, made_from: tuple[Model, ActivationStats] | None = None
) -> tuple[str, ...]:
    """The same of a model, with what to do about it.

    Args:
        model: Float or quantized.
        stats: Of it; None where there are none: then what its static scales reach counts.
        made_from: The model that it was transformed from, and its stats; None where that is itself.
    """
    if model.checkpoint.declared != torch.float16:
        return ()
    if stats is None:
        line = _line("static inputs", _static_reach(model))
        return (f"{line}; {IN_BFLOAT16}",) if line else ()
    overflows = beyond_float16(model.checkpoint, stats)
    if not overflows and made_from is not None:
        was = beyond_float16(made_from[0].checkpoint, made_from[1])
        return tuple(f"before it was transformed: {line}; {IN_BFLOAT16}. Transformed it stays within" for line in was)
    return tuple(f"{line}; {IN_BFLOAT16}" for line in overflows)


def _line(kind: str, reached: dict[str, float]) -> str:
    """Those beyond float16, the largest first; empty where there are none."""
    beyond = sorted((name for name in reached if reached[name] > FLOAT16_LARGEST), key=lambda name: -reached[name])
    if not beyond:
        return ""
    shown = ", ".join(f"{name} {reached[name]:,.0f}" for name in beyond[:_SHOWN])
    more = f" and {len(beyond) - _SHOWN} more" if len(beyond) > _SHOWN else ""
    return (
        f"{kind} beyond 65504, which is as far as float16 reaches, the dtype that the checkpoint declares and engines "
        f"run it in: {shown}{more}; there it gives NaN"
    )


def _static_reach(model: Model) -> dict[str, float]:
    reached: dict[str, float] = {}
    for index, block in model.walk():
        for inner, module in block.named_modules():
            scheme = module.scheme.input if isinstance(module, QuantLinear) else None
            if isinstance(module, QuantLinear) and scheme is not None and module.input_scales is not None:
                largest = float(module.input_scales.scale.max()) * scheme.number_format.largest
                reached[short_name(f"{index}.{inner}")] = largest
    return reached

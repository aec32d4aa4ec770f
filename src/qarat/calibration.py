"""Static scales: from what the calibration pass saw of a stream to the scales of an input that is quantized with them."""

from __future__ import annotations

import torch

from qarat.errors import UserError
from qarat.records import ActivationStats
from qarat.scales import static_scales
from qarat.schemes import LinearScheme, Scheme, TensorScheme
from qarat.tensors import Scales

__all__ = ["static_operands", "static_scales_of"]


def static_operands(streams: tuple[str, ...], scheme: Scheme) -> list[tuple[str, TensorScheme]]:
    """The streams of a site whose scales are static, each with the scheme it is under."""
    operands = (scheme.input,) if isinstance(scheme, LinearScheme) else (scheme.left, scheme.right)
    return [(name, s) for name, s in zip(streams, operands, strict=True) if s is not None and s.static]


def static_scales_of(stats: ActivationStats | None, stream: str, scheme: TensorScheme) -> Scales:
    """The scales of a static input, from the calibration stats.

    Args:
        stats: Of the float model on the calibration tokens.
        stream: Name of the stream.
        scheme: A static scheme.

    Raises:
        UserError: If the stats lack the stream, or cannot give scales of this granularity.
    """
    if stats is None:
        raise UserError(f"{stream}: static scales need stats; run `qarat profile`")
    seen = stats.stream(stream)
    if "channel_min" in seen.arrays:
        low, high = seen.arrays["channel_min"], seen.arrays["channel_max"]
    else:
        # Attention probabilities: only their overall range is kept, and they are never negative.
        low, high = torch.zeros(1), torch.tensor([seen.maximum])
    return static_scales(low, high, seen.arrays["histogram"], stats.edges, scheme)

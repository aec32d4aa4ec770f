"""Clip search: each scale is shrunk as far as that lowers the error of the output; then round to nearest.

AWQ's second step (Lin et al. 2023, arXiv 2306.00978, ``auto_clip``; with a zero point both ends are shrunk, as LLMC has
it, arXiv 2405.06001): of a group's extremes times 2^(−i/12), i = 0 … 36, the one is kept that minimises

    Σ_j E[x_j²] · (w_j − q_j)²,

the squared error of the group's part of the output where channels do not go together. AWQ takes that error from 512
tokens themselves, and goes to half the extremes at most; the diagonal is the same sum over all tokens without what
couples two channels, and each trial costs one rounding of the weight whatever the tokens. The first trial is the
scheme's own scale, so by this measure none is worse than `nearest`.
"""

from __future__ import annotations

from torch import Tensor

from qarat.maths.scales import choose_scale
from qarat.maths.tensors import QuantizedTensor, quantize_tensor
from qarat.stages.rounding import Context, Needs
from qarat.values.schemes import TensorScheme

NEEDS: Needs = "moments"


def round_weight(weight: Tensor, scheme: TensorScheme, context: Context) -> QuantizedTensor:
    """Round each weight by itself, its scale clipped; protocol `qarat.stages.rounding.Rounding`."""
    counts = context.moments.diagonal().to(weight.device)
    return quantize_tensor(weight, scheme, choose_scale(weight.detach().float(), scheme, counts))

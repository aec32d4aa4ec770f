"""Kernels: functions that compute a quantized projection. One file each; the folder is the registry.

`reference` says what a projection *means*; every other kernel is tested against it. A kernel file has two functions,
those of `Kernel`. To add one, add a file: `choose` will find it.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from qarat.ground.registry import Registry
from qarat.maths.tensors import QuantizedTensor
from qarat.maths.tiles import Scales
from qarat.values.schemes import TensorScheme

__all__ = ["KERNELS", "REFERENCE", "Kernel", "choose"]

REFERENCE = "reference"


class Kernel(Protocol):
    """What a file of this folder offers."""

    def supports(self, weight: TensorScheme | None, input: TensorScheme | None, device: torch.device) -> bool:
        """Whether `linear` computes projections of these schemes on that device."""
        ...

    def linear(
        self,
        x: Tensor,
        weight: QuantizedTensor | Tensor,
        bias: Tensor | None,
        input_scheme: TensorScheme | None,
        input_scales: Scales | None,
    ) -> Tensor:
        """The projection of ``x``, as `qarat.maths.kernels.reference.linear` defines it."""
        ...


KERNELS: Registry[Kernel] = Registry(__name__, "kernel")


def choose(weight: TensorScheme | None, input: TensorScheme | None, device: torch.device) -> Kernel:
    """The first kernel that supports a projection of these schemes; the reference supports all."""
    fast = (KERNELS.load(name) for name in KERNELS.names() if name != REFERENCE)
    return next((kernel for kernel in fast if kernel.supports(weight, input, device)), KERNELS.load(REFERENCE))

"""Kernels: functions that compute a quantized projection. One file each; the folder is the registry.

`reference` says what a projection *means*; every other kernel is tested against it. A kernel file has two functions,
those of `Kernel`. To add one, add a file: `choose` will find it.

Which of them computes is asked for, never guessed: simulation and every published number want the reference, so that
they are the same on every machine; `Runtime.kernels` says ``fast`` where speed is wanted. Whatever ran is told by
`repr` of the layer and by the provenance of what was measured.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.ground.registry import Registry, nearest_names
from qarat.maths.tensors import QuantizedTensor
from qarat.maths.tiles import Scales
from qarat.values.schemes import TensorScheme

__all__ = ["FAST", "KERNELS", "REFERENCE", "Kernel", "choose"]

REFERENCE, FAST = "reference", "fast"


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


def choose(weight: TensorScheme | None, input: TensorScheme | None, device: torch.device, kind: str = REFERENCE) -> str:
    """The name of the kernel that computes a projection.

    Args:
        weight: Scheme of the weight; None for float.
        input: Scheme of the input; None for float.
        device: Where the projection is computed.
        kind: ``reference``; or ``fast``: the first kernel by name that supports the schemes there, and the reference
            where none does.

    Raises:
        UserError: Another kind.
    """
    if kind not in (REFERENCE, FAST):
        raise UserError(f"kernels={kind!r}; {nearest_names(kind, [REFERENCE, FAST])}")
    fast = [name for name in KERNELS.names() if name != REFERENCE] if kind == FAST else []
    return next((name for name in fast if KERNELS.load(name).supports(weight, input, device)), REFERENCE)

"""Kernels: functions that compute a quantized projection. One file each; the folder is the registry.

`reference` says what a projection *means*; every other kernel is tested against it. A kernel file has two functions,
those of `Kernel`. To add one, add a file: `choose` will find it.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol, cast

import torch
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.maths.tensors import QuantizedTensor
from qarat.maths.tiles import Scales
from qarat.values.schemes import TensorScheme

__all__ = ["REFERENCE", "Kernel", "choose", "named", "names"]

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


def names() -> list[str]:
    """The kernels there are, the reference last."""
    found = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return sorted(found, key=lambda name: name == REFERENCE)


def named(name: str) -> Kernel:
    """The kernel of that name.

    Raises:
        UserError: Unknown name; names the nearest known ones.
    """
    if name not in names():
        raise UserError(f"unknown kernel {name!r}; {nearest_names(name, names())}")
    return cast(Kernel, importlib.import_module(f"{__name__}.{name}"))


def choose(weight: TensorScheme | None, input: TensorScheme | None, device: torch.device) -> Kernel:
    """The first kernel that supports a projection of these schemes; the reference supports all."""
    return next(kernel for kernel in map(named, names()) if kernel.supports(weight, input, device))

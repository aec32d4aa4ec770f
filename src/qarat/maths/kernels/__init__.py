"""Kernels: functions that compute a quantized projection. One file each; the folder is the registry.

`reference` says what a projection *means*; every other kernel is tested against it. A kernel file has two functions,
those of `Kernel`. To add one, add a file: `choose` will find it.

Which of them computes is asked for, never guessed: simulation and every published number want the reference, so that
they are the same on every machine; `Runtime.kernels` says ``fast`` where speed is wanted. Whatever ran, and why it was
no faster one, is told by `repr` of the layer and by the record of what was measured.

A kernel that rests on what a processor does asks it, by computing something whose result is known: flags of a
processor say what it can do, not what a library makes of it.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.ground.registry import Registry, nearest_names
from qarat.maths.tensors import QuantizedTensor
from qarat.maths.tiles import Scales
from qarat.values.schemes import TensorScheme

__all__ = ["FAST", "KERNELS", "REFERENCE", "Choice", "Kernel", "choose"]

REFERENCE, FAST = "reference", "fast"


class Kernel(Protocol):
    """What a file of this folder offers."""

    def why_not(
        self,
        weight: TensorScheme | None,
        input: TensorScheme | None,
        shape: tuple[int, int],
        device: torch.device,
    ) -> str:
        """Why `linear` does not compute a projection of these schemes, (out, in), on that device; empty if it does."""
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


class Choice(NamedTuple):
    """What computes a projection.

    Attributes:
        kernel: Its name.
        why: Where a fast one was asked for and none computes it: what each of them says.
    """

    kernel: str
    why: str = ""


def choose(
    weight: TensorScheme | None,
    input: TensorScheme | None,
    shape: tuple[int, int],
    device: torch.device,
    kind: str = REFERENCE,
) -> Choice:
    """The kernel that computes a projection.

    Args:
        weight: Scheme of the weight; None for float.
        input: Scheme of the input; None for float.
        shape: Of the weight, (out, in).
        device: Where the projection is computed.
        kind: ``reference``; or ``fast``: the first kernel by name that computes it there, and the reference where none
            does.

    Raises:
        UserError: Another kind.
    """
    if kind not in (REFERENCE, FAST):
        raise UserError(f"kernels={kind!r}; {nearest_names(kind, [REFERENCE, FAST])}")
    reasons: dict[str, list[str]] = {}
    for name in KERNELS.names() if kind == FAST else []:
        if name != REFERENCE:
            reason = KERNELS.load(name).why_not(weight, input, shape, device)
            if not reason:
                return Choice(name)
            reasons.setdefault(reason, []).append(name)
    return Choice(REFERENCE, "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items()))

"""How a config group quantizes one tensor: the arguments that compressed-tensors writes, and what they mean here."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from qarat.values.schemes import Granularity, TensorScheme

_FLOATS = {4: "e2m1", 6: "e2m3", 8: "e4m3"}
_STRATEGIES = ("tensor", "channel", "group", "tensor_group", "block", "token")


class Args(msgspec.Struct, frozen=True):
    """How one tensor is quantized, in the words of compressed-tensors; what is not needed here is left out."""

    num_bits: int = 8
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    group_size: int | None = None
    strategy: str | None = None
    block_structure: tuple[int, int] | str | None = None
    dynamic: bool | Literal["local"] = False
    scale_dtype: str | None = None
    actorder: str | bool | None = None

    @property
    def kind(self) -> str:
        """The strategy, or what the library infers where none is given."""
        if self.strategy is not None:
            return self.strategy.lower()
        return "tensor" if self.group_size is None else "channel" if self.group_size == -1 else "group"

    @property
    def reorders(self) -> bool:
        """Whether columns belong to groups as ``weight_g_idx`` says."""
        return self.actorder is True or self.actorder in ("group", "dynamic")

    @property
    def block(self) -> tuple[int, int] | None:
        """Rows and columns of a block, also where they are given as ``128x128``."""
        if isinstance(self.block_structure, str):
            match = re.fullmatch(r"(\d+)x(\d+)", self.block_structure)
            return (int(match[1]), int(match[2])) if match else None
        return self.block_structure

    def contradictions(self, role: str) -> list[str]:
        """What the library refuses to load, in words.

        Args:
            role: ``weights`` or ``input_activations``.
        """
        kind, size, in_groups = self.kind, self.group_size or 0, self.kind in ("group", "tensor_group")
        is_weight, known_bits = role == "weights", _FLOATS if self.type == "float" else range(1, 9)
        reasons = {
            f"strategy {kind!r} is none of a projection's": kind not in _STRATEGIES,
            "static token strategy: a scale per token cannot be known beforehand": kind == "token" and not self.dynamic,
            f"strategy {kind} without a positive group_size": in_groups and size <= 0,
            f"group_size {size} with strategy {kind}": not in_groups and size > 0,
            "strategy block without block_structure": kind == "block" and self.block is None,
            "weights quantized at run time (dynamic, or a scale per token)": is_weight
            and bool(self.dynamic or kind == "token"),
            f"strategy {kind} for an input": not is_weight and kind in ("channel", "block"),
            f"{self.type} numbers of {self.num_bits} bits": self.num_bits not in known_bits,
        }
        return [reason for reason, holds in reasons.items() if holds]

    def scheme(self, role: str) -> TensorScheme:
        """The same in qarat's words; args without `contradictions` always have a scheme.

        How a weight's scales were chosen is not stored and taken as ``absmax``.
        """
        number = _FLOATS[self.num_bits] if self.type == "float" else f"int{self.num_bits}"
        choice, scale = "absmax", "float32"
        if self.kind == "tensor_group":
            scale = "e4m3"
        elif self.is_mx:
            choice, scale = "mx-even", "e8m0"  # as compressed-tensors rounds, also its dynamic inputs
        static = role == "input_activations" and not self.dynamic
        rows = None if static else 1
        by_kind = {
            "tensor": (None, None),
            "channel": (1, None),
            "token": (1, None),
            "block": self.block or (None, None),
        }
        granularity = Granularity(*by_kind.get(self.kind, (rows, self.group_size)))
        return TensorScheme(number, granularity, scale, choice, symmetric=self.symmetric, static=static)

    @property
    def is_mx(self) -> bool:
        """Whether scales are powers of two (MX): floats in groups of 32, said so by the scales' dtype for 8 bits."""
        if self.type != "float" or self.kind != "group" or self.group_size != 32:
            return False
        return self.num_bits < 8 or (self.scale_dtype or "").endswith("uint8")

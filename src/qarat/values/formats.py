"""Number formats: the finite sets of numbers in which weights and activations may be kept.

A format of at most eight bits *is* its ascending table of values. Rounding, packing, simulation and every kernel's
reference derive from the table, so none of them can disagree about what a number is. What is given up: formats with
two zeros, infinities or NaN keep only their finite values here; `qarat.maths.packing` alone knows wire codes.
"""

from __future__ import annotations

import functools
import math

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names

FLOAT16_LARGEST = 65504.0
IN_BFLOAT16 = "serve it in bfloat16 (vLLM: `dtype` bfloat16)"
"""What to do about numbers beyond that in a checkpoint whose config declares float16."""


class NumberFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A finite set of representable numbers.

    Attributes:
        name: Key used in schemes, plans and on the command line, e.g. ``"int4"``.
        values: Every representable number, ascending, with 0.0 among them; at most 256.
        learned: Whether every tile has a table of its own, kept with the weight (`qarat.maths.tables`) in place of a
            scale; ``values`` are then the indices into it.
    """

    name: str
    values: tuple[float, ...]
    learned: bool = False

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.values, self.values[1:], strict=False))
        if not ascending or 0.0 not in self.values or not 2 <= len(self.values) <= 256:
            raise ValueError(f"format {self.name!r}: values must be 2 to 256 ascending numbers with 0.0 among them")
        if not all(map(math.isfinite, self.values)):
            raise ValueError(f"format {self.name!r}: values must be finite")

    @property
    def bits(self) -> int:
        """Storage of one element, in bits."""
        return math.ceil(math.log2(len(self.values)))

    @property
    def zero(self) -> int:
        """Index of 0.0 in the table."""
        return self.values.index(0.0)

    @property
    def largest(self) -> float:
        """The largest positive value; `absmax` scales map the maximum onto it."""
        return self.values[-1]

    @property
    def is_integer(self) -> bool:
        """Whether the table is a run of consecutive integers, so that rounding is round-and-clamp."""
        run = tuple(float(v) for v in range(int(self.values[0]), int(self.values[-1]) + 1))
        return self.values == run and not self.learned


def twos_complement(bits: int) -> NumberFormat:
    """``intN``: the integers −2^(bits−1) … 2^(bits−1)−1, as integer engines compute them."""
    half = 1 << (bits - 1)
    return NumberFormat(f"int{bits}", tuple(float(v) for v in range(-half, half)))


def signed_magnitude(bits: int) -> NumberFormat:
    """``sintN``: the integers ±(2^(bits−1)−1), the element grid of MX integer blocks (OCP MX v1.0, MXINT8)."""
    largest = (1 << (bits - 1)) - 1
    return NumberFormat(f"sint{bits}", tuple(float(v) for v in range(-largest, largest + 1)))


def floating(exponent: int, mantissa: int, *, largest: float) -> NumberFormat:
    """``eXmY``: sign, ``exponent`` and ``mantissa`` bits, subnormals included, bias 2^(exponent−1)−1.

    Args:
        exponent: Exponent bits.
        mantissa: Mantissa bits.
        largest: The largest finite value; codes above it (infinities, NaN) are not in the table.

    Raises:
        ValueError: If the format has no such value.
    """
    bias = (1 << (exponent - 1)) - 1
    steps = 1 << mantissa
    magnitudes = {m / steps * 2.0 ** (1 - bias) for m in range(steps)}
    magnitudes |= {(1 + m / steps) * 2.0 ** (e - bias) for e in range(1, 1 << exponent) for m in range(steps)}
    kept = sorted(v for v in magnitudes if v <= largest)
    if kept[-1] != largest:
        raise ValueError(f"e{exponent}m{mantissa} has no value {largest}")
    return NumberFormat(f"e{exponent}m{mantissa}", (*(-v for v in reversed(kept[1:])), *kept))


FORMATS: dict[str, NumberFormat] = {
    f.name: f
    for f in (
        *(twos_complement(bits) for bits in range(2, 9)),
        *(signed_magnitude(bits) for bits in range(2, 9)),
        # OCP MX v1.0: FP4 and FP6 have no infinities or NaN. OCP OFP8: E4M3 keeps one NaN code a sign (so 448, not
        # 480); E5M2 follows IEEE 754, its top exponent is infinity and NaN.
        floating(2, 1, largest=6.0),
        floating(2, 3, largest=7.5),
        floating(3, 2, largest=28.0),
        floating(4, 3, largest=448.0),
        floating(5, 2, largest=57344.0),
    )
}

LEARNED: dict[str, NumberFormat] = {
    f"kmeans{bits}": NumberFormat(f"kmeans{bits}", tuple(map(float, range(1 << bits))), learned=True)
    for bits in (2, 3, 4)
}
"""Of weights alone: a table of 2^bits float16 numbers for each row or group, found by k-means."""


@functools.lru_cache(maxsize=64)
def format_named(name: str) -> NumberFormat:
    """The format of that name, or the table that a literal such as ``{-1,-0.4,0,0.3,1}`` spells out.

    Raises:
        UserError: Unknown name (names the nearest known ones), or a literal that is no table.
    """
    if name.startswith("{"):
        try:
            return literal_table(tuple(map(float, name.strip("{}").split(","))))
        except ValueError as error:
            raise UserError(f"{name!r} is no table: {error}") from None
    known = FORMATS | LEARNED
    if name not in known:
        raise UserError(f"unknown number format {name!r}; {nearest_names(name, known)}")
    return known[name]


def literal_table(values: tuple[float, ...]) -> NumberFormat:
    """A format of one's own, e.g. learned by k-means; its name spells the values out, so a plan that uses it is whole.

    Args:
        values: Ascending, with 0.0 among them; at most 256.
    """
    return NumberFormat("{" + ",".join(f"{value:g}" for value in values) + "}", values)

"""Rounding to a number format: a real number, the nearest value of the table, its index.

A number is looked up in the table that a format is. Weights and simulation have far too many numbers for a binary
search each (some 40 ns a number here, against 12 or less), so integers and small floats have an arithmetic path, to the
value as to its index. The tests prove it equal to the table on every value, every midpoint and a million random
numbers.

For the floats that path is one formula for e2m1 … e5m2 rather than a cast to a torch float8 where torch has one: it
also covers the formats torch lacks, runs on every device, is no slower on a CPU, and has no infinities to keep out.

A zero always comes out as +0.0, as in the table; torch's own `round` and casts keep the sign.
"""

from __future__ import annotations

import functools
import math
import re
from typing import NamedTuple

import torch
from torch import Tensor

from qarat.values.formats import FORMATS, NumberFormat

_EXPONENT_BITS = 0x7F800000  # of an IEEE 754 float32


class _FloatLayout(NamedTuple):
    """What the arithmetic path must know of a floating format: mantissa bits and the smallest normal number."""

    mantissa: int
    smallest_normal: float


def round_to_format(x: Tensor, fmt: NumberFormat) -> Tensor:
    """The value of the format nearest to each number.

    Ties go to the value an even number of steps from zero; numbers beyond the table's ends become its ends; NaN stays
    NaN.

    Args:
        x: Any shape, float32 (other floating dtypes are cast); not written to.
        fmt: The format.

    Returns:
        Shape of ``x``, float32.
    """
    return round_(x.detach().to(torch.float32, copy=True), fmt)


def round_(x: Tensor, fmt: NumberFormat) -> Tensor:
    """`round_to_format` in the memory of ``x`` (float32), which is returned: for temporaries of one's own."""
    if _is_integer(fmt):
        # −0.3 rounds to −0.0; adding 0.0 is the one addition that turns −0.0 into 0.0 and changes nothing else.
        return x.clamp_(fmt.values[0], fmt.values[-1]).round_().add_(0.0)
    layout = _float_layout(fmt)
    if layout is not None:
        return _round_float_(x, layout, fmt.largest)
    return x.copy_(torch.where(x.isnan(), x, decode(_nearest(x, fmt), fmt)))


def encode(x: Tensor, fmt: NumberFormat) -> Tensor:
    """Index in the format's table of the value nearest to each number, by the rules of `round_to_format`.

    Args:
        x: Any shape, float32 (other floating dtypes are cast).
        fmt: The format.

    Returns:
        Shape of ``x``, uint8.

    Raises:
        ValueError: ``x`` has a NaN, for which no format has an index.
    """
    x = x.detach().float()
    if x.numel() and bool(x.amax().isnan()):  # amax hands a NaN on, in a tenth of the time that asking each takes
        raise ValueError(f"cannot encode NaN: {int(x.isnan().sum())} of {x.numel()} numbers, and {fmt.name} has none")
    if _is_integer(fmt):
        return x.clamp(fmt.values[0], fmt.values[-1]).round_().sub_(fmt.values[0]).to(torch.uint8)
    layout = _float_layout(fmt)
    return _nearest(x, fmt) if layout is None else _encode_float(x, fmt, layout)


def decode(codes: Tensor, fmt: NumberFormat) -> Tensor:
    """The values at those indices of the format's table.

    Args:
        codes: Any shape, uint8 table indices.
        fmt: The format.

    Returns:
        Shape of ``codes``, float32.

    Raises:
        IndexError: An index beyond the table.
    """
    if _is_integer(fmt) and len(fmt.values) == 256:  # every uint8 is an index; three times as fast as a look-up
        return codes.float().add_(fmt.values[0])
    return _table(fmt, codes.device).index_select(0, codes.flatten().int()).view(codes.shape)


def _nearest(x: Tensor, fmt: NumberFormat) -> Tensor:
    """Table index of the nearest value (uint8), by binary search; NaN gets an arbitrary one."""
    return torch.bucketize(x.contiguous(), _boundaries(fmt, x.device), out_int32=True).to(torch.uint8)


def _round_float_(x: Tensor, layout: _FloatLayout, largest: float) -> Tensor:
    """Round to a sign-exponent-mantissa format in place.

    Near 1.5 · 2^(23−m) · p, float32 numbers are p · 2^−m apart, which is the spacing of a format with m mantissa bits
    between p and 2p, and of its subnormals where p is the smallest normal. So adding that number rounds, to nearest
    and ties to even, in hardware; subtracting it again is exact.
    """
    x.clamp_(-largest, largest)
    power = x.view(torch.int32).bitwise_and(_EXPONENT_BITS).view(torch.float32)  # p: the largest power of two ≤ |x|
    anchor = power.clamp_(min=layout.smallest_normal).mul_(1.5 * 2.0 ** (23 - layout.mantissa))
    return x.add_(anchor).sub_(anchor)


def _encode_float(x: Tensor, fmt: NumberFormat, layout: _FloatLayout) -> Tensor:
    """Table index of the nearest value (uint8), from the bits of what a number is rounded to.

    Steps from zero are, in the format as in float32, exponent and mantissa read as one integer; below the smallest
    normal number the format counts in equal steps, and float32 does not.
    """
    rounded = _round_float_(x.clone(), layout, fmt.largest)
    magnitude = rounded.abs()
    exponent = 127 + int(math.log2(layout.smallest_normal))  # of the smallest normal number, as float32 has it
    steps = (magnitude.view(torch.int32) >> (23 - layout.mantissa)) - ((exponent - 1) << layout.mantissa)
    even = (magnitude * (2**layout.mantissa / layout.smallest_normal)).int()
    steps = torch.where(magnitude < layout.smallest_normal, even, steps)
    return torch.where(rounded < 0, fmt.zero - steps, fmt.zero + steps).to(torch.uint8)


@functools.lru_cache(maxsize=64)
def _is_integer(fmt: NumberFormat) -> bool:
    return fmt.is_integer  # builds a tuple of up to 256 numbers each time


@functools.lru_cache(maxsize=64)
def _float_layout(fmt: NumberFormat) -> _FloatLayout | None:
    """Layout of the table's own floats; None for others, a learned table that took the name of one included."""
    match = re.fullmatch(r"e(\d)m(\d)", fmt.name)
    if match is None or FORMATS.get(fmt.name) != fmt:
        return None
    exponent, mantissa = int(match[1]), int(match[2])
    return _FloatLayout(mantissa, 2.0 ** (2 - (1 << (exponent - 1))))


@functools.lru_cache(maxsize=64)
def _table(fmt: NumberFormat, device: torch.device) -> Tensor:
    return torch.tensor(fmt.values, dtype=torch.float32, device=device)


@functools.lru_cache(maxsize=64)
def _boundaries(fmt: NumberFormat, device: torch.device) -> Tensor:
    """For each pair of neighbours, the largest float32 that still rounds to the lower one, (values − 1,).

    The midpoint, or the float32 below it where a tie goes up or the midpoint itself was rounded up to float32.
    """
    values = torch.tensor(fmt.values, dtype=torch.float32, device="cpu").double()
    midpoints = (values[:-1] + values[1:]) / 2
    tie_goes_up = (torch.arange(len(midpoints), device="cpu") - fmt.zero) % 2 == 1
    bounds = midpoints.float()
    too_high = (bounds.double() > midpoints) | ((bounds.double() == midpoints) & tie_goes_up)
    below = torch.nextafter(bounds, torch.full_like(bounds, -torch.inf))
    return torch.where(too_high, below, bounds).to(device)

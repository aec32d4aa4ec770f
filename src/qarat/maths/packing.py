"""Packing: table indices to the codes and bytes of a file, and back.

Everywhere else an element is its index in the ascending table. On the wire it is what hardware decodes: two's
complement for integers that have one value more below zero than above, sign and magnitude for tables symmetric about
zero (so that e4m3 and e5m2 are torch's float8 bit patterns, and e2m1 the usual FP4 code), and the index itself for any
other, learned table. The kind follows from the values, so a new format needs no entry here.

Codes lie one after the other, first code in the lowest bits, each row padded to whole bytes.

A matrix goes through in bands of rows: looking up and shifting take up to 24 bytes a code for a moment, which of a
whole matrix would be more than the block it belongs to.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from qarat.values.formats import NumberFormat

BAND, LARGE_BAND = 1 << 18, 1 << 26
"""Codes of a band on a CPU, and on anything else."""
_WORDS = (torch.uint8, torch.int64)
"""What a word of codes is put together in: one byte, or several."""


def to_wire(codes: Tensor, fmt: NumberFormat) -> Tensor:
    """Wire codes of table indices: any shape, uint8 to uint8.

    Raises:
        IndexError: An index beyond the table.
    """
    if (zero := _twos_complement(fmt)) is not None:
        if fmt.bits < 8 and codes.numel() and not codes.is_meta and int(codes.max()) >= len(fmt.values):
            raise IndexError(f"index {int(codes.max())} is beyond the {len(fmt.values)} values of {fmt.name}")
        return codes.add(256 - zero).bitwise_and_((1 << fmt.bits) - 1)  # bytes wrap round
    return _wire_of_index(fmt).to(codes.device)[codes.int()]


def from_wire(wire: Tensor, fmt: NumberFormat) -> Tensor:
    """Table indices of wire codes: any shape, uint8 to uint8. The code of −0 becomes the index of 0.

    Raises:
        ValueError: A code that no value of the format has: NaN, infinity, or more bits than the format's.
    """
    if (zero := _twos_complement(fmt)) is not None and (
        fmt.bits == 8 or not wire.numel() or wire.is_meta or int(wire.max()) < 1 << fmt.bits
    ):
        return wire.add(zero).bitwise_and_((1 << fmt.bits) - 1)
    indices = _index_of_wire(fmt).to(wire.device)[wire.int()]
    if bool((indices < 0).any()):
        offender = int(wire[indices < 0][0])
        raise ValueError(f"{int((indices < 0).sum())} codes are no {fmt.name} number, the first is {offender:#04x}")
    return indices.to(torch.uint8)


def pack(codes: Tensor, fmt: NumberFormat) -> Tensor:
    """Pack a matrix of table indices as wire codes.

    Args:
        codes: (rows, cols) uint8 table indices.
        fmt: Their format.

    Returns:
        (rows, `packed_bytes` of a row) uint8, as `pack_bits` lays them out.
    """
    return _in_bands(codes, lambda band: pack_bits(to_wire(band, fmt), fmt.bits))


def unpack(packed: Tensor, fmt: NumberFormat, cols: int) -> Tensor:
    """The inverse of `pack`; ``cols`` is what the bytes alone do not say.

    Raises:
        ValueError: The number of bytes does not fit that of codes, or a code is none of the format's.
    """
    return _in_bands(packed, lambda band: from_wire(unpack_bits(band, fmt.bits, cols), fmt))


def _in_bands(matrix: Tensor, work: Callable[[Tensor], Tensor]) -> Tensor:
    """What becomes of a matrix, a band of rows at a time."""
    rows = max(1, (BAND if matrix.device.type == "cpu" else LARGE_BAND) // max(1, matrix.shape[1]))
    return work(matrix) if rows >= len(matrix) else torch.cat([work(band) for band in torch.split(matrix, rows)])


def packed_bytes(cols: int, bits: int) -> int:
    """Bytes of a row of that many codes of that many bits."""
    return -(-cols * bits // 8)


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack a matrix of codes, whatever they mean.

    Args:
        codes: (rows, cols) uint8, each below 2^bits.
        bits: Bits of a code, 1 to 8.

    Returns:
        (rows, `packed_bytes` of a row) uint8, little-endian in bits; unused bits of a row's last byte are 0.
    """
    if bits == 8:
        return codes
    rows, cols = codes.shape
    per_word, bytes_per_word = _word(bits)
    split = torch.nn.functional.pad(codes, (0, -cols % per_word)).view(rows, -1, per_word)
    words = torch.zeros(split.shape[:2], dtype=_WORDS[bytes_per_word > 1], device=codes.device)
    for position in range(per_word):
        words |= split[..., position].to(words.dtype) << (position * bits)
    packed = torch.stack([(words >> (8 * byte)) & 0xFF for byte in range(bytes_per_word)], dim=-1)
    return packed.to(torch.uint8).view(rows, -1)[:, : packed_bytes(cols, bits)].contiguous()


def unpack_bits(packed: Tensor, bits: int, cols: int) -> Tensor:
    """The inverse of `pack_bits`: (rows, cols) uint8.

    Raises:
        ValueError: The number of bytes does not fit that of codes.
    """
    rows, present = packed.shape
    if present != packed_bytes(cols, bits):
        raise ValueError(f"{cols} codes of {bits} bits are {packed_bytes(cols, bits)} bytes a row, got {present}")
    if bits == 8:
        return packed
    per_word, bytes_per_word = _word(bits)
    split = torch.nn.functional.pad(packed, (0, -present % bytes_per_word)).view(rows, -1, bytes_per_word)
    words = torch.zeros(split.shape[:2], dtype=_WORDS[bytes_per_word > 1], device=packed.device)
    for byte in range(bytes_per_word):
        words |= split[..., byte].to(words.dtype) << (8 * byte)
    mask = (1 << bits) - 1
    codes = torch.stack([(words >> (position * bits)) & mask for position in range(per_word)], dim=-1)
    return codes.to(torch.uint8).view(rows, -1)[:, :cols].contiguous()


def _word(bits: int) -> tuple[int, int]:
    """The fewest codes that fill whole bytes, and those bytes: at most 8 codes in 8 bytes, so a word is one int64."""
    per_word = 8 // math.gcd(bits, 8)
    return per_word, per_word * bits // 8


@functools.lru_cache(maxsize=64)
def _twos_complement(fmt: NumberFormat) -> int | None:
    """Index of zero where wire codes are two's complement, all of them in use; None where they are not."""
    zero = 1 << (fmt.bits - 1)
    return zero if fmt.is_integer and fmt.zero == zero and len(fmt.values) == 2 * zero else None


@functools.lru_cache(maxsize=64)
def _wire_of_index(fmt: NumberFormat) -> Tensor:
    """(values,) uint8."""
    index = torch.arange(len(fmt.values), device="cpu")
    offset = index - fmt.zero
    sign_bit = 1 << (fmt.bits - 1)
    if fmt.is_integer and fmt.zero == sign_bit:
        wire = offset & (2 * sign_bit - 1)  # two's complement
    elif fmt.values == tuple(-v for v in reversed(fmt.values)):
        wire = torch.where(offset < 0, -offset | sign_bit, offset)  # steps from zero, and a bit for the sign
    else:
        wire = index  # a table is its own order
    return wire.to(torch.uint8)


@functools.lru_cache(maxsize=64)
def _index_of_wire(fmt: NumberFormat) -> Tensor:
    """(256,) int16, −1 for codes that are none of the format's."""
    wire = _wire_of_index(fmt).int()
    indices = torch.full((256,), -1, dtype=torch.int16, device="cpu")
    sign_bit = 1 << (fmt.bits - 1)
    if sign_bit not in wire:  # sign and magnitude: nothing but −0 leaves the sign bit alone unused
        indices[sign_bit] = fmt.zero
    indices[wire] = torch.arange(len(wire), dtype=torch.int16, device="cpu")
    return indices

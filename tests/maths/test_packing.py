"""Packing: exact round trips, and the codes and bytes that hardware and other libraries read."""

import pytest
import torch
from compressed_tensors.compressors.mxfp6.helpers import pack_fp6_to_uint8
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from torch import Tensor

from qarat.maths import packing
from qarat.maths.packing import from_wire, pack, pack_bits, packed_bytes, to_wire, unpack, unpack_bits
from qarat.maths.rounding import decode
from qarat.values.formats import FORMATS, NumberFormat

LEARNED = NumberFormat("learned", (-3.7, -1.1, -0.2, 0.0, 0.3, 0.9, 1.0, 2.5))
ALL = [*FORMATS.values(), LEARNED]
NAMES = [*FORMATS, "learned"]


def random_codes(values: int, rows: int, cols: int) -> Tensor:
    return torch.randint(values, (rows, cols), generator=torch.Generator().manual_seed(cols), dtype=torch.uint8)


@pytest.mark.parametrize("fmt", ALL, ids=NAMES)
def test_every_code_survives_the_wire(fmt: NumberFormat) -> None:
    codes = torch.arange(len(fmt.values), dtype=torch.uint8)
    wire = to_wire(codes, fmt)
    assert len(wire.unique()) == len(codes)
    assert int(wire.max()) < 2**fmt.bits
    assert torch.equal(from_wire(wire, fmt), codes)


@pytest.mark.parametrize("fmt", ALL, ids=NAMES)
@pytest.mark.parametrize("cols", [1, 2, 3, 5, 7, 8, 31, 64, 129])
def test_packing_and_unpacking_changes_nothing(fmt: NumberFormat, cols: int) -> None:
    codes = random_codes(len(fmt.values), 3, cols)
    packed = pack(codes, fmt)
    assert packed.shape == (3, packed_bytes(cols, fmt.bits))
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, fmt, cols), codes)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("cols", [1, 8, 13, 40])
def test_codes_lie_in_the_stream_of_bits_one_after_the_other(bits: int, cols: int) -> None:
    codes = random_codes(2**bits, 2, cols)
    for row, packed in zip(codes.tolist(), pack_bits(codes, bits).tolist(), strict=True):
        stream = sum(code << (bits * position) for position, code in enumerate(row))
        assert bytes(packed) == stream.to_bytes(packed_bytes(cols, bits), "little")
    assert torch.equal(unpack_bits(pack_bits(codes, bits), bits, cols), codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_are_twos_complement_and_mx_integers_sign_and_magnitude(bits: int) -> None:
    half = 2 ** (bits - 1)
    full, symmetric = FORMATS[f"int{bits}"], FORMATS[f"sint{bits}"]
    assert to_wire(torch.arange(2 * half).to(torch.uint8), full).tolist() == [
        v % (2 * half) for v in range(-half, half)
    ]
    wire = to_wire(torch.arange(2 * half - 1).to(torch.uint8), symmetric).tolist()
    assert wire == [half - v if v < 0 else v for v in range(-half + 1, half)]


@pytest.mark.parametrize(("name", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
def test_eight_bit_floats_are_the_bit_patterns_of_torch(name: str, dtype: torch.dtype) -> None:
    fmt = FORMATS[name]
    codes = torch.arange(len(fmt.values), dtype=torch.uint8)
    assert torch.equal(to_wire(codes, fmt), decode(codes, fmt).to(dtype).view(torch.uint8))


def test_fp4_and_fp6_are_laid_out_as_compressed_tensors_packs_them() -> None:
    for name, theirs in {"e2m1": pack_fp4_to_uint8, "e2m3": pack_fp6_to_uint8}.items():
        codes = random_codes(len(FORMATS[name].values), 6, 64)
        assert torch.equal(pack(codes, FORMATS[name]), theirs(decode(codes, FORMATS[name])))


@pytest.mark.parametrize("bits", range(2, 9))
def test_table_indices_packed_as_they_are_are_the_int32_words_of_compressed_tensors(bits: int) -> None:
    """Its pack-quantized layout stores integers with their minimum added, which is what a table index is."""
    codes = random_codes(2**bits, 6, 64)
    values = decode(codes, FORMATS[f"int{bits}"]).to(torch.int8)
    assert torch.equal(pack_bits(codes, bits).view(torch.int32), pack_to_int32(values, bits))


@pytest.mark.parametrize("name", ["e2m1", "e2m3", "e3m2", "e4m3", "e5m2", "sint4", "sint8"])
def test_minus_zero_reads_as_zero(name: str) -> None:
    fmt = FORMATS[name]
    assert from_wire(torch.tensor([2 ** (fmt.bits - 1)], dtype=torch.uint8), fmt).tolist() == [fmt.zero]


@pytest.mark.parametrize(
    ("name", "code"), [("e4m3", 0x7F), ("e4m3", 0xFF), ("e5m2", 0x7C), ("e5m2", 0xFF), ("int4", 0x10), ("e2m1", 0x10)]
)
def test_codes_that_are_no_number_are_refused(name: str, code: int) -> None:
    with pytest.raises(ValueError, match=f"1 codes are no {name} number, the first is 0x{code:02x}"):
        from_wire(torch.tensor([1, code], dtype=torch.uint8), FORMATS[name])


def test_bytes_that_do_not_fit_the_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="5 codes of 4 bits are 3 bytes a row, got 2"):
        unpack(torch.zeros(1, 2, dtype=torch.uint8), FORMATS["int4"], 5)
    with pytest.raises(IndexError):
        pack(torch.tensor([[15]], dtype=torch.uint8), FORMATS["e2m1"])


@pytest.mark.parametrize("name", ["int8", "int4", "int3", "e4m3", "e2m1"])
def test_bands_change_nothing_and_shapes_are_known_without_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fmt = FORMATS[name]
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, min(256, len(fmt.values)), (37, 13), generator=generator).to(torch.uint8)
    whole = packing.pack(codes, fmt)
    monkeypatch.setattr(packing, "BAND", 40)
    assert packing.pack(codes, fmt).equal(whole)
    assert packing.unpack(whole, fmt, 13).equal(codes)
    assert packing.pack(codes.to("meta"), fmt).shape == whole.shape

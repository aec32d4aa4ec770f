"""Rounding: the arithmetic paths equal the table, and both equal torch and gfloat, an independent implementation."""

import gfloat
import numpy as np
import pytest
import torch
from gfloat import formats as gf
from torch import Tensor

from qarat.maths.packing import from_wire, to_wire
from qarat.maths.rounding import decode, encode, round_, round_to_format
from qarat.values.formats import FORMATS, NumberFormat

LEARNED = NumberFormat("learned", (-3.7, -1.1, -0.2, 0.0, 0.3, 0.9, 1.0, 2.5))
IMPOSTOR = NumberFormat("e2m1", (-1.0, 0.0, 1.0, 1.5))  # a learned table under a taken name
ALL = [*FORMATS.values(), LEARNED, IMPOSTOR]
NAMES = [*FORMATS, "learned", "impostor"]
GFLOATS = {
    "e2m1": gf.format_info_ocp_e2m1,
    "e2m3": gf.format_info_ocp_e2m3,
    "e3m2": gf.format_info_ocp_e3m2,
    "e4m3": gf.format_info_ocp_e4m3,
    "e5m2": gf.format_info_ocp_e5m2,
}
MILLION = 1_000_000


def table_of(fmt: NumberFormat) -> Tensor:
    return torch.tensor(fmt.values, dtype=torch.float32)


def delicate(fmt: NumberFormat) -> Tensor:
    """Every value and midpoint, the float32 on either side of each, and what lies beyond the ends."""
    values = table_of(fmt)
    points = torch.cat([values, (values[1:] + values[:-1]) / 2, torch.tensor([-0.0, 1e-45, -1e-45])])
    around = [
        points,
        torch.nextafter(points, torch.tensor(torch.inf)),
        torch.nextafter(points, torch.tensor(-torch.inf)),
    ]
    ends = torch.tensor([-torch.inf, -3e38, 1.001 * fmt.values[0], 1.001 * fmt.largest, 3e38, torch.inf])
    return torch.cat([*around, ends])


def spread(fmt: NumberFormat, count: int = MILLION) -> Tensor:
    """Random numbers over all of the format's range: half of them uniform, half log-uniform; a few beyond its ends."""
    generator = torch.Generator().manual_seed(len(fmt.values))
    uniform = (torch.rand(count // 2, generator=generator) - 0.5) * 2.4 * fmt.largest
    sign = torch.rand(count // 2, generator=generator).round() * 2 - 1
    logarithmic = sign * torch.exp2(torch.rand(count // 2, generator=generator) * 40 - 36) * fmt.largest
    return torch.cat([uniform, logarithmic])


def by_definition(x: Tensor, fmt: NumberFormat) -> Tensor:
    """Index of the nearest value; of two equally near, the one an even number of steps from zero. Slow, float64."""
    distance = (x.double()[:, None] - table_of(fmt).double()).abs()
    odd = (torch.arange(len(fmt.values)) - fmt.zero) % 2
    nearest = distance == distance.amin(1, keepdim=True)
    return torch.where(nearest, odd, 2).argmin(1)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@pytest.mark.parametrize("fmt", ALL, ids=NAMES)
def test_encode_is_the_definition(fmt: NumberFormat) -> None:
    x = torch.cat([delicate(fmt).clamp(-1e6, 1e6), spread(fmt, 4000)])
    assert torch.equal(encode(x, fmt).long(), by_definition(x, fmt))


@pytest.mark.parametrize("fmt", ALL, ids=NAMES)
def test_rounding_is_encoding_and_decoding_bit_for_bit(fmt: NumberFormat) -> None:
    for x in (delicate(fmt), spread(fmt)):
        assert same_bits(round_to_format(x, fmt), decode(encode(x, fmt), fmt))


@pytest.mark.parametrize("fmt", ALL, ids=NAMES)
def test_values_are_fixed_points_and_infinities_saturate(fmt: NumberFormat) -> None:
    values = table_of(fmt)
    assert same_bits(round_to_format(values, fmt), values)
    indices = torch.arange(len(values), dtype=torch.uint8)
    assert torch.equal(encode(values, fmt), indices)
    assert same_bits(decode(indices, fmt), values)
    ends = round_to_format(torch.tensor([-torch.inf, torch.inf]), fmt)
    assert ends.tolist() == [values[0], values[-1]]


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_equal_torch_round_and_clamp(bits: int) -> None:
    for fmt in (FORMATS[f"int{bits}"], FORMATS[f"sint{bits}"]):
        for x in (delicate(fmt), spread(fmt)):
            assert torch.equal(round_to_format(x, fmt), x.round().clamp(fmt.values[0], fmt.largest))


@pytest.mark.parametrize(("name", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
def test_eight_bit_floats_equal_the_saturating_casts_of_torch(name: str, dtype: torch.dtype) -> None:
    fmt = FORMATS[name]
    for x in (delicate(fmt), spread(fmt)):
        assert torch.equal(round_to_format(x, fmt), x.clamp(-fmt.largest, fmt.largest).to(dtype).float())


@pytest.mark.parametrize("name", GFLOATS)
def test_floats_equal_gfloat_on_a_million_numbers(name: str) -> None:
    fmt = FORMATS[name]
    for x in (delicate(fmt), spread(fmt)):
        theirs = gfloat.round_ndarray(GFLOATS[name], x.double().numpy(), sat=True)
        assert np.array_equal(round_to_format(x, fmt).numpy(), theirs.astype(np.float32))


@pytest.mark.parametrize("name", GFLOATS)
def test_floats_equal_gfloat_on_every_code(name: str) -> None:
    """Every code that is a finite number decodes to the same value here and there, and encodes back to itself."""
    fmt, info = FORMATS[name], GFLOATS[name]
    theirs = gfloat.decode_ndarray(info, np.arange(2**info.bits))
    finite = np.isfinite(theirs)
    codes = torch.arange(2**info.bits, dtype=torch.uint8)[torch.from_numpy(finite)]
    assert np.array_equal(decode(from_wire(codes, fmt), fmt).numpy(), theirs[finite].astype(np.float32))
    back = to_wire(encode(torch.from_numpy(theirs[finite]), fmt), fmt)
    minus_zero = 2 ** (info.bits - 1)
    assert back[codes != minus_zero].tolist() == codes[codes != minus_zero].tolist()
    for code in (2**info.bits - 1, minus_zero - 1):
        if not finite[code]:
            with pytest.raises(ValueError, match="are no"):
                from_wire(torch.tensor([code], dtype=torch.uint8), fmt)


@pytest.mark.parametrize("fmt", ALL, ids=NAMES)
def test_nan_stays_nan_and_has_no_code(fmt: NumberFormat) -> None:
    x = torch.tensor([0.0, torch.nan, 1.0])
    assert round_to_format(x, fmt).isnan().tolist() == [False, True, False]
    with pytest.raises(ValueError, match="1 of 3"):
        encode(x, fmt)


@pytest.mark.parametrize("fmt", ALL, ids=NAMES)
def test_rounding_leaves_its_argument_untouched_and_round_works_in_place(fmt: NumberFormat) -> None:
    x = spread(fmt, 1000)
    before = x.clone()
    rounded = round_to_format(x, fmt)
    encode(x, fmt)
    assert same_bits(x, before)
    assert round_(x, fmt) is x
    assert same_bits(x, rounded)


def test_an_index_beyond_the_table_is_refused() -> None:
    with pytest.raises(IndexError):
        decode(torch.tensor([15], dtype=torch.uint8), FORMATS["e2m1"])


def test_other_dtypes_and_strides_are_rounded_alike() -> None:
    x = torch.randn(64, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    for name in ("int4", "e2m1", "e4m3"):
        expected = round_to_format(x.float(), FORMATS[name])
        assert torch.equal(round_to_format(x, FORMATS[name]), expected)
        assert torch.equal(round_to_format(x.t(), FORMATS[name]), expected.t())
        assert torch.equal(encode(x.t(), FORMATS[name]), encode(x, FORMATS[name]).t())

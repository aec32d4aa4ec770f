"""Quantized tensors: simulation equals storage bit for bit, and equals compressed-tensors given the same scales."""

import math

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization import fake_quantize as their_fake_quantize
from torch import Tensor

from qarat.maths.packing import pack
from qarat.maths.scales import SCALE_DTYPES, choose_scale
from qarat.maths.tensors import QuantizedTensor, fake_quantize, quantize_tensor
from qarat.maths.tiles import Scales
from qarat.values.formats import FORMATS
from qarat.values.parsing import parse_tensor_scheme
from qarat.values.schemes import SCALE_BITS, Granularity, TensorScheme

GRANULARITIES = ["tensor", "channel", "g16", "g32", "8x16"]
WORDS = ["absmax", "asymmetric", "mse", "p95", "scale-float16", "scale-e8m0/mx-floor", "scale-e4m3"]
STATIC = ["int8/tensor/static", "int8/g16/static", "mxfp4/static", "int4/tensor/asymmetric/static"]
WEIGHTS = [
    *(f"{name}/{where}/{words}" for name in ("int8", "int3", "sint4") for where in GRANULARITIES for words in WORDS),
    *(f"{name}/{where}" for name in ("e2m1", "e2m3", "e3m2", "e4m3", "e5m2") for where in GRANULARITIES),
    *("mxint4", "mxint8", "mxfp4", "mxfp6", "mxfp8", "nvfp4"),
    *("int4/g3/scale-uint8", "int3/g2/scale-uint8/asymmetric", "e2m1/2x2/scale-uint8"),  # 352, 512, 256 scales
]


def w(text: str) -> TensorScheme:
    return parse_tensor_scheme(text, "w")


def a(text: str) -> TensorScheme:
    return parse_tensor_scheme(text, "a")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same_bits(x: Tensor, y: Tensor) -> bool:
    return torch.equal(x.contiguous().view(torch.int32), y.contiguous().view(torch.int32))


@pytest.mark.parametrize("words", WEIGHTS)
@pytest.mark.parametrize("shape", [(24, 96), (21, 50)], ids=["whole tiles", "short last tiles"])
def test_simulating_is_storing_and_reading_bit_for_bit(words: str, shape: tuple[int, int]) -> None:
    x, scheme = normal(*shape) ** 3, w(words)
    before = x.clone()
    stored = quantize_tensor(x, scheme)
    assert stored.codes.dtype == torch.uint8
    assert stored.codes.shape == x.shape
    assert same_bits(stored.dequantize(), fake_quantize(x, scheme))
    assert same_bits(fake_quantize(x, scheme, stored.scales), fake_quantize(x, scheme))
    assert same_bits(x, before)


@pytest.mark.parametrize(
    "words", ["int8/tensor/static", "int8/g16/static", "mxfp4/static", "int4/tensor/asymmetric/static"]
)
@pytest.mark.parametrize("shape", [(30, 48), (2, 15, 48), (2, 3, 5, 48)])
def test_static_scales_fit_any_number_of_tokens(words: str, shape: tuple[int, ...]) -> None:
    scheme = a(words)
    scales = choose_scale(normal(100, 48, seed=1), scheme)
    x = normal(*shape)
    once = fake_quantize(x.reshape(-1, 48), scheme, scales)
    assert same_bits(fake_quantize(x, scheme, scales), once.reshape(shape))
    assert same_bits(quantize_tensor(x, scheme, scales).dequantize(), once.reshape(shape))


@pytest.mark.parametrize("words", ["int8/tensor/dynamic", "int8/token", "mxfp4", "nvfp4", "int4/8x16"])
def test_a_batch_is_its_sequences_one_by_one(words: str) -> None:
    scheme, x = a(words), normal(3, 4, 5, 40)
    expected = torch.stack([fake_quantize(sequence.reshape(20, 40), scheme) for sequence in x]).reshape(x.shape)
    assert same_bits(fake_quantize(x, scheme), expected)
    assert same_bits(quantize_tensor(x, scheme).dequantize(), expected)


@pytest.mark.parametrize("words", ["int8/tensor", "int4/g16", "e4m3/channel", "mxfp4"])
def test_strided_and_narrow_inputs_are_cast_and_left_untouched(words: str) -> None:
    x = normal(64, 48).bfloat16()
    before = x.clone()
    expected = fake_quantize(x.float().t().contiguous(), w(words))
    result = fake_quantize(x.t(), w(words))
    assert same_bits(result, expected)
    assert result.is_contiguous()
    assert torch.equal(x, before)


@pytest.mark.parametrize("words", ["int8/channel", "int4/g16/asymmetric", "e4m3/channel", "mxfp4", "nvfp4"])
def test_quantizing_twice_with_the_same_scales_changes_nothing(words: str) -> None:
    stored = quantize_tensor(normal(16, 64), w(words))
    again = quantize_tensor(stored.dequantize(), w(words), stored.scales)
    assert torch.equal(again.codes, stored.codes)


@pytest.mark.parametrize("words", ["int8/tensor", "e4m3/tensor", "e2m1/tensor", "int8/tensor/asymmetric"])
def test_with_scales_given_a_nan_stays_one_nan_and_has_no_code(words: str) -> None:
    x = normal(8, 16)
    scales = choose_scale(x, w(words))
    x[3, 4] = torch.nan
    assert int(fake_quantize(x, w(words), scales).isnan().sum()) == 1
    with pytest.raises(ValueError, match="NaN"):
        quantize_tensor(x, w(words), scales)


@pytest.mark.parametrize("words", ["int8/token", "int4/g16", "mxfp4", "e4m3/token"])
def test_with_scales_of_its_own_a_nan_or_infinity_takes_its_tile_with_it(words: str) -> None:
    for bad in (torch.nan, torch.inf):
        x = normal(8, 64)
        x[3, 4] = bad
        result, cols = fake_quantize(x, a(words)), a(words).granularity.cols or 64
        assert bool(result[3, :cols].isnan().all())
        assert int(result.isnan().sum()) == cols
        with pytest.raises(ValueError, match="NaN"):
            quantize_tensor(x, a(words))


def test_a_static_scheme_is_never_silently_dynamic() -> None:
    for function in (fake_quantize, quantize_tensor):
        with pytest.raises(ValueError, match="calibration"):
            function(normal(4, 8), a("int8/tensor/static"))


def test_scales_of_another_shape_are_refused() -> None:
    scales = choose_scale(normal(4, 64), w("int8/g16"))
    for x in (normal(5, 64), normal(4, 80), normal(2, 4, 80)):
        with pytest.raises(ValueError, match="needs scales"):
            fake_quantize(x, w("int8/g16"), scales)


@pytest.mark.parametrize("words", WEIGHTS)
def test_bits_are_those_of_the_packed_tensors(words: str) -> None:
    """Elements packed, scales in their dtype, zero points packed: their bytes are what the scheme counts."""
    scheme = w(words)
    stored = quantize_tensor(normal(16, 64), scheme)
    scales = stored.scales
    size = pack(stored.codes, scheme.number_format).nbytes + scales.scale.to(SCALE_DTYPES[scheme.scale]).nbytes
    if scales.tensor_scale is not None:
        size += scales.tensor_scale.nbytes
    bits = 8 * size
    if scales.zero_point is not None:
        first = scheme.number_format.values[0]
        row = (scales.zero_point.reshape(1, -1) - first).to(torch.uint8)
        bits += row.numel() * scheme.number_format.bits
        assert 8 * pack(row, scheme.number_format).nbytes - row.numel() * scheme.number_format.bits < 8
    assert bits == scheme.bits(16, 64)
    assert SCALE_DTYPES[scheme.scale].itemsize * 8 == SCALE_BITS[scheme.scale]


# compressed-tensors, given the same scales: every scheme it knows that is also ours.

INTEGERS = [
    (f"{name}/{where}{'' if symmetric else '/asymmetric'}", {"type": "int", "symmetric": symmetric, **args, **place})
    for name, args in {"int8": {"num_bits": 8}, "int6": {"num_bits": 6}, "int4": {"num_bits": 4}}.items()
    for where, place in {
        "tensor": {"strategy": "tensor"},
        "channel": {"strategy": "channel"},
        "g32": {"strategy": "group", "group_size": 32},
        "8x16": {"strategy": "block", "block_structure": [8, 16]},
    }.items()
    for symmetric in (True, False)
]
FLOATS = [
    (f"e4m3/{where}", {"type": "float", "num_bits": 8, **place})
    for where, place in {
        "tensor": {"strategy": "tensor"},
        "channel": {"strategy": "channel"},
        "g32": {"strategy": "group", "group_size": 32},
        "8x16": {"strategy": "block", "block_structure": [8, 16]},
    }.items()
]
MX = {"strategy": "group", "group_size": 32, "type": "float", "scale_dtype": torch.uint8, "zp_dtype": torch.uint8}
MX_SCHEMES = [
    (f"{name}/g32/scale-e8m0/{rule}", {**MX, "num_bits": bits})
    for name, bits in {"e2m1": 4, "e2m3": 6, "e4m3": 8}.items()
    for rule in ("mx-floor", "mx-even")
]
KNOWN = [*INTEGERS, *FLOATS, *MX_SCHEMES]
NVFP4 = {
    "strategy": "tensor_group",
    "group_size": 16,
    "type": "float",
    "num_bits": 4,
    "scale_dtype": torch.float8_e4m3fn,
}


def delicate(scales: Scales, scheme: TensorScheme, rows: int, cols: int) -> Tensor:
    """Numbers at, and just beside, ties between codes and both ends of the table, in the units of each tile."""
    values = torch.tensor(scheme.number_format.values)
    points = torch.cat([values, (values[1:] + values[:-1]) / 2, values[:1] * 1.2, values[-1:] * 1.2])
    chosen = points[torch.randint(len(points), (rows, cols), generator=torch.Generator().manual_seed(5))]
    tall, wide = scales.scale.shape
    factor, zero = (
        t.repeat_interleave(-(-rows // tall), 0)[:rows].repeat_interleave(-(-cols // wide), 1)[:, :cols]
        for t in (scales.effective, torch.zeros_like(scales.scale) if scales.zero_point is None else scales.zero_point)
    )
    return (chosen - zero) * factor


@pytest.mark.parametrize(("words", "arguments"), KNOWN, ids=[words for words, _ in KNOWN])
def test_weights_equal_compressed_tensors(words: str, arguments: dict[str, object]) -> None:
    scheme, args = w(words), QuantizationArgs(**arguments)  # pyright: ignore[reportArgumentType]
    shape = (21, 50) if scheme.granularity.rows == 8 else (24, 96)  # their blocks may be short, their groups may not
    x = normal(*shape)
    scales = choose_scale(0.8 * x, scheme)  # so that some numbers lie beyond the ends
    zero_point = torch.zeros_like(scales.scale) if scales.zero_point is None else scales.zero_point
    for values in (x, delicate(scales, scheme, *shape)):
        theirs = their_fake_quantize(values.clone(), scales.scale, zero_point, args)
        assert torch.equal(fake_quantize(values, scheme, scales), theirs)


@pytest.mark.parametrize(
    ("name", "symmetric"), [("int8", True), ("int8", False), ("int4", True), ("int4", False), ("e4m3", True)]
)
def test_inputs_per_token_equal_compressed_tensors(name: str, symmetric: bool) -> None:
    scheme, x = a(f"{name}/token{'' if symmetric else '/asymmetric'}"), normal(2, 12, 64)
    args = QuantizationArgs(
        num_bits=FORMATS[name].bits,
        type="float" if name == "e4m3" else "int",  # pyright: ignore[reportArgumentType]
        strategy="token",  # pyright: ignore[reportArgumentType]
        symmetric=symmetric,
        dynamic=True,
    )
    scales = choose_scale(x, scheme)
    zero_point = torch.zeros_like(scales.scale) if scales.zero_point is None else scales.zero_point
    theirs = their_fake_quantize(x.clone(), scales.scale, zero_point, args)
    assert torch.equal(fake_quantize(x, scheme, scales), theirs)


def test_nvfp4_equals_compressed_tensors() -> None:
    """They divide by a global scale, we multiply by its reciprocal: equal where that is exact, and as one factor."""
    args = QuantizationArgs(**NVFP4)  # pyright: ignore[reportArgumentType]
    scheme, x = w("nvfp4"), normal(24, 96)
    x *= 2.0 ** math.floor(math.log2(2688)) / 2688 / x.abs().max()
    chosen = choose_scale(x, scheme)
    assert chosen.tensor_scale is not None
    exact = Scales(chosen.scale, None, torch.full((1, 1), 2.0 ** round(math.log2(chosen.tensor_scale.item()))))
    zeros = torch.zeros_like(chosen.scale)
    for values in (x, delicate(exact, scheme, 24, 96)):
        assert exact.tensor_scale is not None
        theirs = their_fake_quantize(values.clone(), exact.scale, zeros, args, 1 / exact.tensor_scale.reshape(1))
        assert torch.equal(fake_quantize(values, scheme, exact), theirs)
        theirs = their_fake_quantize(values.clone(), chosen.effective, zeros, args)
        assert torch.equal(fake_quantize(values, scheme, chosen), theirs)


def test_a_quantized_tensor_reads_back_with_its_own_scheme() -> None:
    codes = torch.tensor([[0, 8, 15], [7, 9, 10]], dtype=torch.uint8)
    scales = Scales(torch.tensor([[0.5], [2.0]]), torch.tensor([[-1.0], [3.0]]))
    scheme = TensorScheme("int4", Granularity(1, None), symmetric=False)
    assert QuantizedTensor(codes, scales, scheme).dequantize().tolist() == [[-3.5, 0.5, 4.0], [-8.0, -4.0, -2.0]]

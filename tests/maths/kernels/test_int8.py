"""The int8 kernels compute what the reference means, by integer sums that are exact."""

import gc

import pytest
import torch
from torch import Tensor

from qarat.maths.kernels import int8, int8_split, reference
from qarat.maths.scales import choose_scale
from qarat.maths.tensors import QuantizedTensor, quantize_tensor
from qarat.maths.tiles import Scales
from qarat.values.parsing import parse_tensor_scheme

TOLERANCE = 1e-5  # of the maximum: the reference sums in float32, the kernel exactly
WEIGHTS = ["int8/channel", "int8/tensor", "int8/channel/scale-e8m0", "int8/channel/scale-e4m3", "int4/channel"]
WEIGHTS += ["int8/channel/asymmetric"]
INPUTS = ["int8/tensor/static", "int8/tensor/dynamic", "int8/token", "int8/token/asymmetric", "int6/token"]
INPUTS += ["int8/tensor/static/asymmetric", "int8/token/outliers-2.5", "int8/token/outliers-100"]
PRODUCTS = {"int8": int8.product, "int8-split": int8_split.product, "int8 on CUDA": int8.int_mm}


def _exact(name: str) -> int8.Product:
    """A product, where this CPU gets it right."""
    if not int8.is_exact(PRODUCTS[name], "cpu"):
        pytest.skip("INT8 products saturate on this CPU, which the kernel finds out and refuses")
    return PRODUCTS[name]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def quantized(words: str, *shape: int) -> QuantizedTensor:
    return quantize_tensor(normal(*shape, seed=1), parse_tensor_scheme(words, "w"))


def test_an_exact_kernel_is_there_on_every_cpu() -> None:
    assert int8.is_exact(int8_split.product, "cpu")
    assert int8.is_exact(int8.int_mm, "cpu")


def test_a_product_that_saturates_is_found_out() -> None:
    def saturating(codes: Tensor, weight: Tensor) -> Tensor:
        """As x86 without VNNI: two neighbours are added in 16 bits, unsigned by signed."""
        products = (codes.int() + 128).unsqueeze(1) * weight.int()
        pairs = products.unflatten(-1, (-1, 2)).sum(-1).clamp(-(2**15), 2**15 - 1)
        return (pairs.sum(-1) - 128 * weight.int().sum(-1)).float()

    small = integers(3, 32) // 4
    assert torch.equal(saturating(small, small), (small.int() @ small.int().T).float())
    assert not int8.is_exact(saturating, "cpu")
    assert not int8.is_exact(int8.product, "meta")


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_weight_whose_order_is_kept_serves_any_number_of_rows(name: str) -> None:
    product, weight = _exact(name), integers(40, 96, seed=1)
    for rows in (70, 1, 256, 3):
        codes = integers(rows, 96, seed=rows)
        assert torch.equal(product(codes, weight).double(), codes.double() @ weight.double().T)


def test_only_the_last_weights_are_kept_and_none_that_is_gone() -> None:
    x, scheme = normal(5, 96), parse_tensor_scheme("int8/token", "a")
    weights = [quantized("int8/channel", 40, 96) for _ in range(int8.KEPT + 3)]
    for weight in weights:
        int8_split.linear(x, weight, None, scheme, None)
    assert len(int8._integers) == len(int8._packed) == int8.KEPT  # pyright: ignore[reportPrivateUsage]
    assert weights[-1].codes in int8._integers  # pyright: ignore[reportPrivateUsage]
    assert weights[0].codes not in int8._integers  # pyright: ignore[reportPrivateUsage]
    del weight, weights
    gc.collect()
    assert not int8._integers  # pyright: ignore[reportPrivateUsage]
    assert not int8._packed  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("shape", [(1, 96, 40), (70, 96, 40), (33, 77, 5), (256, 1000, 64)])
@pytest.mark.parametrize("name", PRODUCTS)
def test_sums_of_any_integers_are_exact(name: str, shape: tuple[int, int, int]) -> None:
    product, (rows, inner, out) = _exact(name), shape
    weight = integers(out, inner, seed=1)
    some = (24 * normal(rows, inner)).clamp(-128, 127).round().to(torch.int8)  # few of them beyond 7 bits
    for codes in (integers(rows, inner), some, some.clamp(-64, 63), torch.full_like(some, -128)):
        assert torch.equal(product(codes, weight).double(), codes.double() @ weight.double().T)


def test_a_row_with_many_inputs_beyond_seven_bits_is_exact() -> None:
    """One row of 300 full of them, so many that sums one by one would leave what float32 holds."""
    codes, weight = torch.zeros(300, 4096, dtype=torch.int8), torch.full((8, 4096), 127, dtype=torch.int8)
    codes[7] = 127
    codes[7, 0] = 126
    sums = int8_split.product(codes, weight)
    assert float(sums[7, 0]) == float(torch.tensor(4096 * 127 * 127 - 127, dtype=torch.float64).float())
    assert not sums[:7].any()
    assert not sums[8:].any()


@pytest.mark.parametrize("shape", [(1, 96), (70, 96), (2, 35, 96), (3, 2, 5, 96), (4, 1, 1001)])
@pytest.mark.parametrize("weight_words", WEIGHTS)
@pytest.mark.parametrize("input_words", INPUTS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_equals_the_reference(shape: tuple[int, ...], weight_words: str, input_words: str, with_bias: bool) -> None:
    x, bias = normal(*shape), normal(40, seed=2) if with_bias else None
    before = x.clone()
    weight, scheme = quantized(weight_words, 40, shape[-1]), parse_tensor_scheme(input_words, "a")
    assert not int8_split.why_not(weight.scheme, scheme, (40, shape[-1]), x.device)
    scales = choose_scale(0.8 * normal(50, shape[-1], seed=3), scheme) if scheme.static else None
    ours = int8_split.linear(x, weight, bias, scheme, scales)
    theirs = reference.linear(x, weight, bias, scheme, scales)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    assert float((ours - theirs).abs().max()) <= TOLERANCE * float(theirs.abs().max())
    assert torch.equal(x, before)


@pytest.mark.parametrize("input_words", ["int8/tensor/static", "int8/token"])
def test_its_integers_are_those_of_the_reference(input_words: str) -> None:
    """With scales that are powers of two nothing is rounded but the input, so the two are equal to the bit."""
    x, scheme = 3 * normal(2, 50, 200), parse_tensor_scheme(f"{input_words}/scale-e8m0", "a")
    weight = quantized("int8/channel/scale-e8m0", 24, 200)
    scales = choose_scale(x, scheme) if scheme.static else None
    ours, theirs = (kernel.linear(x, weight, None, scheme, scales) for kernel in (int8_split, reference))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_sum_is_exact_at_its_extremes(name: str) -> None:
    """−128 · −128 summed over more features than any float32 accumulation would get right."""
    inner, product = int8.MAX_INNER, _exact(name)
    codes = torch.tensor([[-128], [127]], dtype=torch.int8).expand(2, inner).contiguous()
    weight = torch.tensor([[-128], [127], [-1]], dtype=torch.int8).expand(3, inner).contiguous()
    sums = torch.tensor([[128 * 128, -128 * 127, 128], [-127 * 128, 127 * 127, -127]], dtype=torch.float64) * inner
    rounding = 2.0**-23 if name == "int8-split" else 0.0  # beyond 2^24 its two parts are rounded, and their sum
    ours = product(codes, weight).double()
    assert bool(((ours - sums.float().double()).abs() <= rounding * sums.abs()).all())


@pytest.mark.parametrize("input_words", ["int8/tensor/static", "int8/token"])
def test_a_nan_shows_in_its_row_as_in_the_reference(input_words: str) -> None:
    scheme, weight = parse_tensor_scheme(input_words, "a"), quantized("int8/channel", 8, 32)
    x = normal(2, 5, 32)
    scales = choose_scale(x, scheme) if scheme.static else None
    x[1, 2, 3] = torch.nan
    ours, theirs = (kernel.linear(x, weight, None, scheme, scales) for kernel in (int8_split, reference))
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert int(ours.isnan().sum()) == 8


def test_what_it_does_not_compute_is_refused() -> None:
    x, scheme = normal(4, 32), parse_tensor_scheme("int8/token", "a")
    for kernel in (int8, int8_split):
        for weight in (normal(8, 32), quantized("int8/channel", 8, 32)):
            with pytest.raises(ValueError, match="quantized weights and inputs"):
                kernel.linear(x, weight, None, None if isinstance(weight, QuantizedTensor) else scheme, None)
        for weight in (quantized("e4m3/channel", 8, 32), quantized("int8/g16", 8, 32)):
            with pytest.raises(ValueError, match="computes integers"):
                kernel.linear(x, weight, None, scheme, None)
        weight = quantized("int8/channel", 8, 32)
        with pytest.raises(ValueError, match="its scales come from calibration"):
            kernel.linear(x, weight, None, parse_tensor_scheme("int8/tensor/static", "a"), None)
        with pytest.raises(ValueError, match="overflow"):
            kernel.linear(normal(1, 70_000), quantized("int8/channel", 2, 70_000), None, scheme, None)
    assert "overflow" in int8.why_not(weight.scheme, scheme, (2, 70_000), x.device)
    assert "CPUs" in int8_split.why_not(weight.scheme, scheme, (8, 32), torch.device("cuda"))


def test_scales_of_one_tensor_and_of_each_channel_are_applied() -> None:
    codes = torch.tensor([[255, 0], [129, 128]], dtype=torch.uint8)  # 127, −128; 1, 0
    weight = QuantizedTensor(codes, Scales(torch.tensor([[0.5], [2.0]])), parse_tensor_scheme("int8/channel", "w"))
    scheme = parse_tensor_scheme("int8/tensor/static", "a")
    y = int8_split.linear(torch.tensor([[30.0, 300.0]]), weight, None, scheme, Scales(torch.tensor([[0.25]])))
    assert y.tolist() == [[(120 * 127 - 127 * 128) * 0.125, 120 * 0.5]]

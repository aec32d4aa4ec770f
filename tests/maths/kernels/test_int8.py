"""The int8 kernel computes what the reference means."""

import pytest
import torch
from torch import Tensor

from qarat.maths.kernels import int8, reference
from qarat.maths.scales import choose_scale
from qarat.maths.tensors import QuantizedTensor, quantize_tensor
from qarat.maths.tiles import Scales
from qarat.values.parsing import parse_tensor_scheme

TOLERANCE = 1e-5  # of the maximum: the reference sums in float32, the kernel exactly
WEIGHTS = ["int8/channel", "int8/tensor", "int8/channel/scale-e8m0", "int8/channel/scale-e4m3"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(words: str, *shape: int) -> QuantizedTensor:
    return quantize_tensor(normal(*shape, seed=1), parse_tensor_scheme(words, "w"))


@pytest.mark.parametrize("shape", [(1, 96), (70, 96), (2, 35, 96), (3, 2, 5, 96), (4, 1, 1001)])
@pytest.mark.parametrize("weight_words", WEIGHTS)
@pytest.mark.parametrize("input_words", ["int8/tensor/static", "int8/tensor/dynamic", "int8/token"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_equals_the_reference(shape: tuple[int, ...], weight_words: str, input_words: str, with_bias: bool) -> None:
    x, bias = normal(*shape), normal(40, seed=2) if with_bias else None
    before = x.clone()
    weight, scheme = quantized(weight_words, 40, shape[-1]), parse_tensor_scheme(input_words, "a")
    assert int8.supports(weight.scheme, scheme, x.device)
    scales = choose_scale(0.8 * normal(50, shape[-1], seed=3), scheme) if scheme.static else None
    ours = int8.linear(x, weight, bias, scheme, scales)
    theirs = reference.linear(x, weight, bias, scheme, scales)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    assert float((ours - theirs).abs().max()) <= TOLERANCE * float(theirs.abs().max())
    assert torch.equal(x, before)


def test_the_sum_is_exact_at_its_extremes() -> None:
    """−128 · −128 summed over more features than any float32 accumulation would get right."""
    inner = 100_000
    codes = torch.zeros(3, inner, dtype=torch.uint8)
    codes[1], codes[2] = 255, 127
    weight = QuantizedTensor(codes, Scales(torch.ones(3, 1)), parse_tensor_scheme("int8/channel", "w"))
    scheme = parse_tensor_scheme("int8/tensor/static", "a")
    x = torch.tensor([[-200.0], [200.0]]).expand(2, inner)
    y = int8.linear(x, weight, None, scheme, Scales(torch.ones(1, 1)))
    sums = [[128 * 128, -128 * 127, 128], [-127 * 128, 127 * 127, -127]]
    assert torch.equal(y, (torch.tensor(sums) * inner).float())


@pytest.mark.parametrize("input_words", ["int8/tensor/static", "int8/token"])
def test_a_nan_shows_in_its_row_as_in_the_reference(input_words: str) -> None:
    scheme, weight = parse_tensor_scheme(input_words, "a"), quantized("int8/channel", 8, 32)
    x = normal(2, 5, 32)
    scales = choose_scale(x, scheme) if scheme.static else None
    x[1, 2, 3] = torch.nan
    ours, theirs = (kernel.linear(x, weight, None, scheme, scales) for kernel in (int8, reference))
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert int(ours.isnan().sum()) == 8


def test_what_it_does_not_compute_is_refused() -> None:
    x, scheme = normal(4, 32), parse_tensor_scheme("int8/token", "a")
    for weight in (normal(8, 32), quantized("int4/channel", 8, 32), quantized("int8/g16", 8, 32)):
        with pytest.raises(ValueError, match="symmetric int8"):
            int8.linear(x, weight, None, scheme, None)
    weight = quantized("int8/channel", 8, 32)
    with pytest.raises(ValueError, match="symmetric int8"):
        int8.linear(x, weight, None, None, None)
    with pytest.raises(ValueError, match="needs its scales"):
        int8.linear(x, weight, None, parse_tensor_scheme("int8/tensor/static", "a"), None)
    with pytest.raises(ValueError, match="overflow"):
        int8.linear(normal(1, 140_000), quantized("int8/channel", 2, 140_000), None, scheme, None)

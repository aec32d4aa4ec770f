"""The fp8 kernel: its arithmetic, on a CPU; no CUDA device has run it."""

import pytest
import torch

from qarat.maths.kernels import fp8, reference
from qarat.maths.scales import choose_scale
from qarat.maths.tensors import quantize_tensor
from qarat.values.parsing import parse_tensor_scheme


@pytest.mark.parametrize("shape", [(1, 96), (2, 35, 77)])
@pytest.mark.parametrize("weight_words", ["e4m3/channel", "e4m3/tensor"])
@pytest.mark.parametrize("input_words", ["e4m3/tensor/static", "e4m3/token"])
def test_it_equals_the_reference(shape: tuple[int, ...], weight_words: str, input_words: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, bias = torch.randn(*shape, generator=generator), torch.randn(40, generator=generator)
    scheme = parse_tensor_scheme(input_words, "a")
    weight = quantize_tensor(torch.randn(40, shape[-1], generator=generator), parse_tensor_scheme(weight_words, "w"))
    scales = choose_scale(x, scheme) if scheme.static else None
    ours, theirs = (kernel.linear(x, weight, bias, scheme, scales) for kernel in (fp8, reference))
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


def test_it_is_for_cuda_and_for_e4m3() -> None:
    known, token = parse_tensor_scheme("e4m3/channel", "w"), parse_tensor_scheme("e4m3/token", "a")
    cpu = torch.device("cpu")
    assert fp8.why_not(known, token, (40, 96), cpu) == "is for CUDA"
    assert fp8.why_not(known, None, (40, 96), cpu) == "computes e4m3 by e4m3"
    assert "a scale a tensor" in fp8.why_not(parse_tensor_scheme("e4m3/g16", "w"), token, (40, 96), cpu)
    with pytest.raises(ValueError, match="e4m3 weights and inputs"):
        fp8.linear(torch.ones(2, 32), torch.ones(4, 32), None, token, None)

"""Rounding to nearest: taking a weight in bands of rows changes no bit."""

import pytest
import torch

from qarat.maths.tensors import quantize_tensor
from qarat.stages.rounding import nearest, round_weight
from qarat.values.parsing import parse_scheme
from qarat.values.schemes import LinearScheme

SCHEMES = (
    "int8/channel",
    "int8/tensor",
    "int8/channel/mse",
    "int4/g32/asymmetric",
    "int4/channel/p99.9",
    "int3/g16/scale-float16",
    "e4m3/channel",
    "e4m3/32x32",
    "mxfp4/mx-even",
    "nvfp4",
)


@pytest.mark.parametrize("spelling", SCHEMES)
def test_bands_change_no_bit(spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    linear = parse_scheme(f"w={spelling}")
    assert isinstance(linear, LinearScheme)
    assert linear.weight is not None
    weight = torch.randn(75, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    monkeypatch.setitem(nearest.BAND, "cpu", 7 * 96)
    banded, whole = round_weight(weight, linear.weight), quantize_tensor(weight.float(), linear.weight)
    assert torch.equal(banded.codes, whole.codes)
    for part in ("scale", "zero_point", "tensor_scale"):
        a, b = getattr(banded.scales, part), getattr(whole.scales, part)
        assert (a is None) == (b is None), part
        assert a is None or b is None or torch.equal(a, b), part
    assert torch.equal(banded.dequantize(), whole.dequantize())

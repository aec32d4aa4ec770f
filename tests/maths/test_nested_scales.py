"""Scales of kind uint8, quantized themselves: what they weigh, which share a float32, and how near they come."""

import pytest
import torch
from torch import Tensor

from qarat.maths.scales import choose_scale
from qarat.maths.tensors import fake_quantize, quantize_tensor
from qarat.maths.tiles import Scales
from qarat.values.parsing import SchemeError, parse_tensor_scheme
from qarat.values.schemes import SCALES_PER_BLOCK


def w(text):
    return parse_tensor_scheme(text, "w")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_half_a_bit_of_scales_becomes_an_eighth():
    """Blocks of 64 weights, 256 scales under a float32, as bitsandbytes nests: 32/64 → 8/64 + 32/(64 · 256) = 0.127."""
    rows, cols = 8, 64 * 256
    plain, nested = (w(f"int4/g64{words}").bits(rows, cols) / (rows * cols) for words in ("", "/scale-uint8"))
    assert plain == 4 + 32 / 64
    assert nested == 4 + 8 / 64 + 32 / (64 * 256)
    assert nested - 4 == pytest.approx(0.127, abs=5e-4)


def above_of(scales: Scales) -> Tensor:
    """The float32 numbers above scales."""
    assert scales.tensor_scale is not None
    return scales.tensor_scale


@pytest.mark.parametrize(("rows", "cols", "above"), [(4, 64, 1), (16, 1024, 1), (17, 1024, 2), (300, 60, 2)])
def test_a_last_block_of_scales_has_a_float32_too(rows, cols, above):
    scheme = w("int4/g64/scale-uint8")
    tall, wide = scheme.granularity.scale_shape(rows, cols)
    assert scheme.bits(rows, cols) == 4 * rows * cols + 8 * tall * wide + 32 * above
    scales = choose_scale(normal(rows, cols), scheme)
    assert above_of(scales).shape == (1, above) == above_of(Scales.empty(scheme, rows, cols)).shape


@pytest.mark.parametrize("words", ["int4/g4", "int3/g8/asymmetric", "int8/channel", "e2m1/g4", "int4/g8/mse"])
def test_each_scale_is_the_nearest_of_255_under_its_block_s_largest(words):
    x = normal(300, 16) * torch.logspace(-1, 1, 300)[:, None]
    wanted = choose_scale(x, w(words)).scale
    scales = choose_scale(x, w(f"{words}/scale-uint8"))
    blocks = wanted.flatten().split(SCALES_PER_BLOCK)
    codes = scales.scale.flatten().split(SCALES_PER_BLOCK)
    assert above_of(scales).shape == (1, len(blocks))
    assert len(blocks) > 1
    for block, code, above in zip(blocks, codes, above_of(scales).flatten(), strict=True):
        assert float(code.max()) == 255 or "mse" in words
        assert float(code.min()) >= 1
        if "mse" not in words:  # there the choice itself goes by what can be stored
            assert float(above) == pytest.approx(float(block.max()) / 255, rel=1e-6)
            assert torch.equal(code, (block / above).round().clamp(1, 255))
    effective = scales.effective.flatten()
    expected = torch.cat([c * a for c, a in zip(codes, above_of(scales).flatten(), strict=True)])
    assert torch.equal(effective, expected)


def test_it_costs_next_to_nothing_where_scales_are_alike():
    x = normal(64, 512)
    errors = {
        kind: float((fake_quantize(x, w(f"int4/g64/scale-{kind}")) - x).square().mean())
        for kind in ("float32", "uint8")
    }
    assert errors["uint8"] == pytest.approx(errors["float32"], rel=0.01)
    stored = quantize_tensor(x, w("int4/g64/scale-uint8"))
    assert torch.equal(stored.dequantize(), fake_quantize(x, stored.scheme))


def test_matrices_of_a_batch_have_float32_of_their_own():
    scheme = w("int4/g2/scale-uint8")
    batch = normal(3, 40, 32) * torch.tensor([1.0, 10.0, 0.1])[:, None, None]
    together = choose_scale(batch, scheme)
    assert above_of(together).shape == (3, 1, 3)
    for index, matrix in enumerate(batch):
        alone = choose_scale(matrix, scheme)
        assert torch.equal(together.effective[index], alone.effective)


def test_a_nan_shows_and_zeros_stay():
    x = normal(300, 8)
    x[0] = 0
    x[270, 3] = torch.nan
    result = fake_quantize(x, w("int4/channel/scale-uint8"))
    assert bool((result[0] == 0).all())
    assert bool(result[270].isnan().all())
    assert bool(result[:256].isfinite().all())  # the other block of scales does not see it


@pytest.mark.parametrize(
    ("words", "role", "why"),
    [
        ("int8/token/scale-uint8", "a", "belongs to a weight"),
        ("sint4/g32/mx-floor/scale-uint8", "w", "gives powers of two"),
    ],
)
def test_where_it_makes_no_sense_it_is_refused(words, role, why):
    with pytest.raises(SchemeError, match=why):
        parse_tensor_scheme(words, role)

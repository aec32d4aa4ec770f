"""Clip widths: the published best steps of a Gaussian, and that the scale choice `typical` is what they say."""

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from qarat.maths.clipping import gaussian_error, gaussian_step, gaussian_width
from qarat.maths.scales import choose_scale
from qarat.maths.tensors import fake_quantize
from qarat.values.formats import format_named
from qarat.values.parsing import SchemeError, parse_tensor_scheme


def evenly(bits):
    """2^b values about 0, half a step off it: the grid of Max's table."""
    return [i - ((1 << bits) - 1) / 2 for i in range(1 << bits)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("bits", "step", "width", "error"),
    [(2, 0.9957, 1.99, 0.1188), (3, 0.5860, 2.34, 0.03744), (4, 0.3352, 2.68, 0.01154)],
)
def test_the_best_step_of_a_gaussian_is_the_published_one(bits, step, width, error):
    found = gaussian_step(evenly(bits))
    assert found == pytest.approx(step, abs=5e-5)
    assert found * 2 ** (bits - 1) == pytest.approx(width, abs=5e-3)
    assert gaussian_error(evenly(bits), found) == pytest.approx(error, abs=5e-5 if bits < 3 else 5e-6)


@pytest.mark.parametrize("name", ["int3", "sint4", "e2m1", "{-1,-0.3,0,0.2,0.7}"])
def test_the_error_is_its_integral(name):
    values = format_named(name).values
    step = 2.0 / values[-1]
    integral = quad(lambda x: min((x - step * v) ** 2 for v in values) * norm.pdf(x), -12, 12, limit=400)[0]
    assert gaussian_error(values, step) == pytest.approx(integral, rel=1e-6)


@pytest.mark.parametrize("name", [*(f"int{bits}" for bits in range(2, 9)), "sint3", "e2m1", "e4m3"])
def test_no_other_width_errs_less(name):
    fmt = format_named(name)
    width = gaussian_width(fmt)
    least = gaussian_error(fmt.values, width / fmt.largest)
    assert all(least <= gaussian_error(fmt.values, width * factor / fmt.largest) for factor in (0.7, 0.99, 1.01, 1.4))


def test_more_bits_clip_farther_out():
    widths = [gaussian_width(format_named(f"int{bits}")) for bits in range(2, 9)]
    assert widths == sorted(widths)
    assert widths[2] == pytest.approx(2.37, abs=0.005)  # of −8 … 7, not of sixteen values about 0


@pytest.mark.parametrize("words", ["int3/channel", "int4/tensor", "int2/g48", "e2m1/8x100"])
def test_scales_follow_each_tile_s_own_sigma(words):
    scheme = parse_tensor_scheme(f"{words}/typical", "w")
    x = normal(16, 100) * torch.logspace(-2, 2, 16)[:, None]  # groups of 48 leave one of 4, padded
    whole = parse_tensor_scheme(words, "w")
    rows, cols = scheme.granularity.rows or 16, scheme.granularity.cols or 100
    chosen, absmax = choose_scale(x, scheme).scale, choose_scale(x, whole).scale
    for i in range(chosen.shape[0]):
        for j in range(chosen.shape[1]):
            tile = x[i * rows : (i + 1) * rows, j * cols : (j + 1) * cols].double()
            sigma = float(tile.square().mean().sqrt())
            bound = sigma * gaussian_width(scheme.number_format) / scheme.number_format.largest
            assert float(chosen[i, j]) == pytest.approx(min(bound, float(absmax[i, j])), rel=1e-6)
    assert bool((chosen < absmax).any())


def test_on_a_gaussian_it_errs_as_little_as_the_best_clip_and_less_than_none():
    x = normal(256, 1024)
    for bits in (2, 3, 4):
        errors = {
            choice: float(
                (fake_quantize(x, parse_tensor_scheme(f"int{bits}/channel/{choice}", "w")) - x).square().mean()
            )
            for choice in ("absmax", "mse", "typical")
        }
        assert errors["typical"] < 0.8 * errors["absmax"]
        assert errors["typical"] == pytest.approx(errors["mse"], rel=0.02)
        theory = gaussian_error(format_named(f"int{bits}").values, gaussian_step(format_named(f"int{bits}").values))
        assert errors["typical"] == pytest.approx(theory, rel=0.02)


def test_a_tile_of_zeros_and_one_with_a_nan():
    scheme = parse_tensor_scheme("int4/channel/typical", "w")
    x = torch.zeros(3, 8)
    x[1, 2], x[2, 3] = torch.nan, torch.inf
    scale = choose_scale(x, scheme).scale.flatten()
    assert scale[0] == 1
    assert bool(scale[1:].isnan().all())


@pytest.mark.parametrize(
    ("words", "role", "why"),
    [
        ("int4/g32/typical/asymmetric", "w", "knows no zero point"),
        ("int8/tensor/static/typical", "a", "far from Gauss"),
    ],
)
def test_what_it_cannot_go_with_is_refused(words, role, why):
    with pytest.raises(SchemeError, match=why):
        parse_tensor_scheme(words, role)

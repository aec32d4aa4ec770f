import functools
import math

import pytest
import torch

from qarat.ground.errors import UserError
from qarat.maths.rotations import hadamard, hadamard_orders, rotate, rotation_factors

# MLP widths of the reference family, then of LLaMA, Mistral, Qwen and TinyLlama models.
WIDTHS = (160, 256, 352, 448, 608, 4864, 5632, 8192, 8960, 9728, 11008, 12288, 13824, 14336, 17408, 18944, 25600, 28672)
# Every construction: Sylvester; Paley's first over primes and over 7³; his second over primes, 5² and 7².
ORDERS = (1, 2, 4, 64, 12, 20, 44, 140, 344, 28, 36, 76, 52, 100)


@pytest.mark.parametrize("order", ORDERS)
def test_a_hadamard_matrix_is_orthogonal_exactly(order: int):
    matrix = hadamard(order)
    assert matrix.shape == (order, order)
    assert torch.equal(matrix.abs(), torch.ones(order, order))
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order))


@pytest.mark.parametrize("width", WIDTHS)
def test_every_known_width_has_factors_far_cheaper_than_itself(width: int):
    orders = hadamard_orders(width)
    assert math.prod(orders) == width
    assert sum(orders) <= max(100, width / 20)


@pytest.mark.parametrize("width", [3, 6, 18, 100 * 3 + 2])
def test_a_width_without_a_hadamard_matrix_is_refused(width: int):
    with pytest.raises(UserError, match=f"order {width} is known here .there is none: 4 does not divide it"):
        hadamard_orders(width)


def test_an_order_without_a_construction_here_is_refused():
    with pytest.raises(UserError, match="order 172 is known here; this model cannot be rotated"):
        hadamard_orders(172)  # one exists (Williamson), 344 is Paley's
    with pytest.raises(ValueError, match="no construction of order 172"):
        hadamard(172)


@pytest.mark.parametrize("width", [1, 2, 8, 20, 160, 352])
def test_rotating_is_the_product_with_the_whole_matrix(width: int):
    factors = rotation_factors(width)
    whole = functools.reduce(torch.kron, factors)
    x = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, factors)
    torch.testing.assert_close(turned, x @ whole.T)
    # A rotation: rotating rows of both factors of a product changes nothing.
    torch.testing.assert_close(turned @ rotate(x, factors).transpose(1, 2), x @ x.transpose(1, 2))


def test_a_spike_is_spread_over_all_channels_alike():
    x = torch.zeros(1, 352)
    x[0, 7] = 1000.0
    assert torch.allclose(rotate(x, rotation_factors(352)).abs(), torch.tensor(1000 / math.sqrt(352)), rtol=1e-6)


def test_the_dtype_stays():
    assert rotate(torch.ones(2, 8, dtype=torch.bfloat16), rotation_factors(8)).dtype == torch.bfloat16

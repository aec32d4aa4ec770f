"""Local dimension: known of points that lie evenly, and its formula on points by hand."""

import math

import pytest
import torch

from qarat.maths.dimension import local_dimensions


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_points_of_a_plane_have_its_dimensions_wherever_it_lies(dimensions):
    draw = torch.Generator().manual_seed(dimensions)
    flat = torch.rand(2000, dimensions, generator=draw)
    frame = torch.linalg.qr(torch.randn(24, 24, generator=draw)).Q[:dimensions]
    points = flat @ frame + 3.0
    inner = ((flat > 0.2) & (flat < 0.8)).all(1)  # a border has fewer neighbours on one side
    assert float(local_dimensions(points[None])[0, inner].mean()) == pytest.approx(dimensions, rel=0.06)


def test_the_formula_by_hand_and_sets_apart():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0], [100.0]])
    found = local_dimensions(torch.stack([line, 10 * line]), neighbours=3)
    assert found.dtype == torch.float64
    assert found[0, 0].item() == pytest.approx(1 / (math.log(7 / 1) + math.log(7 / 3)))
    assert found[0].tolist() == pytest.approx(found[1].tolist())  # units of length do not matter
    assert local_dimensions(line[None])[0, 0].item() == pytest.approx(2 / sum(math.log(100 / t) for t in (1, 3, 7)))


def test_points_that_coincide_and_too_few():
    points = torch.tensor([[0.0], [0.0], [1.0], [2.0], [4.0]])
    found = local_dimensions(points[None])[0]
    assert bool(found.isfinite().all())
    assert 0 < float(found[0]) < 0.01
    ring = torch.eye(6)  # all as far from each other: as many directions as one likes
    assert bool(local_dimensions(ring[None]).isinf().all())
    with pytest.raises(ValueError, match="at the least"):
        local_dimensions(points[None, :3])

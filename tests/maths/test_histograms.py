"""Bins by leading bits, against the edges that they are said to have."""

import pytest
import torch

from qarat.maths.histograms import EDGES, bin_counts, count_magnitudes, median_of


def binned(values: torch.Tensor) -> torch.Tensor:
    return bin_counts(count_magnitudes(values))


def test_sixteen_bins_an_octave():
    assert float(EDGES[0]) == 0.0
    octaves = 2.0 ** torch.arange(-24, 16)
    assert torch.equal(EDGES[1:-1], (octaves[:, None] * (1 + torch.arange(16) / 16)).flatten())
    assert float(EDGES[-1]) == 2.0**16


def test_a_value_on_an_edge_begins_its_bin():
    assert torch.equal(binned(EDGES[:-1]), torch.ones(len(EDGES) - 1, dtype=torch.int64))
    assert torch.equal(binned(torch.nextafter(EDGES[1:], torch.tensor(0.0))), binned(EDGES[:-1]))


def test_random_values_fall_between_their_edges():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(300, 7, 11, generator=generator) * 2.0 ** torch.randint(
        -30, 22, (300, 7, 11), generator=generator
    )
    index = torch.bucketize(values.abs().flatten(), EDGES[1:-1], right=True)
    assert torch.equal(binned(values), torch.bincount(index, minlength=len(EDGES) - 1))
    assert torch.equal(binned(-values.transpose(0, 2)), binned(values))


def test_ends():
    small = torch.tensor([0.0, -0.0, 1e-45, -(2.0**-25)])
    large = torch.tensor([2.0**16, -3e38, torch.inf, -torch.inf, torch.nan])
    assert int(binned(small)[0]) == 4
    assert int(binned(large)[-1]) == 5


@pytest.mark.parametrize("exact", [3e-7, 0.017, 1.0, 1.99, 40000.0])
def test_median(exact: float):
    assert median_of(binned(torch.tensor([0.0, exact, exact, 2 * exact]))) == pytest.approx(exact, rel=0.032)


def test_the_median_of_zeros_is_zero():
    assert median_of(binned(torch.zeros(5))) == 0.0

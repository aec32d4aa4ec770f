"""Clip search: no tile is worse off by its measure, and with channels that count alike it is `mse`."""

import pytest
import torch
from torch import Tensor

from qarat.maths.tensors import quantize_tensor
from qarat.maths.tiles import to_tiles
from qarat.stages.rounding import clip
from qarat.testing.drawn import normal
from qarat.testing.extensions import WEIGHTS, KnownInputs
from qarat.values.parsing import parse_tensor_scheme
from qarat.values.schemes import TensorScheme


def by_tile(error: Tensor, scheme: TensorScheme) -> Tensor:
    return to_tiles(error[None], scheme.granularity).sum((0, 2, 4))


@pytest.mark.parametrize("spelling", [*WEIGHTS, "int3/g8/asymmetric", "int4/g8/scale-float16"])
def test_no_tile_is_worse_off_in_weighted_error_and_coarse_integers_gain(spelling: str) -> None:
    weight, scheme = normal(12, 24), parse_tensor_scheme(spelling, "w")
    context = KnownInputs(normal(400, 24, seed=1) * normal(24, seed=2).exp())
    counts = context.moments.diagonal().double()
    ours, nearest = (
        by_tile((rounded.dequantize() - weight).double().square() * counts, scheme)
        for rounded in (clip.round_weight(weight, scheme, context), quantize_tensor(weight, scheme))
    )
    assert bool((ours <= nearest).all())
    if scheme.number_format.is_integer and scheme.number_format.bits <= 4:  # elsewhere nothing need be gained
        assert float(ours.sum()) < float(nearest.sum())


@pytest.mark.parametrize("spelling", ["int4/g8", "int3/channel/asymmetric", "e4m3/4x8", "int8/tensor"])
def test_where_channels_count_alike_it_is_mse(spelling: str) -> None:
    class White:
        moments = 4 * torch.eye(24)
        weighted_moments = inputs = fisher = gradient = moments

    weight, scheme = normal(12, 24), parse_tensor_scheme(spelling, "w")
    ours = clip.round_weight(weight, scheme, White())
    theirs = quantize_tensor(weight, parse_tensor_scheme(f"{spelling}/mse", "w"))
    assert torch.equal(ours.scales.scale, theirs.scales.scale)
    assert torch.equal(ours.codes, theirs.codes)
    assert ours.scheme == scheme


def test_it_clips_what_nothing_reads() -> None:
    """One large weight in a channel without inputs: the scale is that of the others."""
    weight = normal(4, 16).clamp(-1, 1)
    weight[:, 3] = 20.0
    inputs = normal(100, 16, seed=1)
    inputs[:, 3] = 0.0
    scheme = parse_tensor_scheme("int4/channel", "w")
    rounded = clip.round_weight(weight, scheme, KnownInputs(inputs))
    assert float(rounded.scales.scale.max()) < 20.0 / 7 / 4

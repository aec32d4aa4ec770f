"""The analysis of AlignedKV in `benchmarks/aligned_cache.py`: bits that are left in memory change next to nothing."""

import importlib.util
from pathlib import Path
from typing import Any

import torch

from qarat.model.opening import open_model

PATH = Path(__file__).parents[1] / "benchmarks" / "aligned_cache.py"
SPEC = importlib.util.spec_from_file_location("aligned_cache", PATH)
assert SPEC is not None
assert SPEC.loader is not None
aligned: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(aligned)


def test_planes_are_float16_up_to_half_of_what_was_left():
    x = torch.cat([torch.randn(4096), torch.zeros(2)]).half().float()
    assert aligned.planes(x, 16).equal(x)
    for bits, mantissa in ((12, 6), (8, 2)):
        error = (aligned.planes(x, bits) - x).abs()
        assert (error <= 2.0 ** (aligned.exponents(x) - mantissa - 1)).all()
        assert aligned.planes(x, bits)[-2:].equal(torch.zeros(2))


def test_levels_go_by_exponents_below_the_sum():
    below = torch.tensor([-1, 0, 3, 4, 7, 8, 2000])
    assert [aligned.BITS[i] for i in aligned.levels(below)] == [16, 16, 16, 12, 12, 8, 8]


@torch.no_grad()
def test_fewer_bits_are_read_and_logits_stay():
    model = open_model("py-64")
    windows = torch.randint(2, 200, (1, 64), generator=torch.Generator().manual_seed(3))
    whole, everything = aligned.run(model, windows, False)
    logits, share = aligned.run(model, windows, True)
    assert everything == {"k": 1.0, "v": 1.0}
    assert 0.5 <= share["k"] < 1
    assert 0.5 <= share["v"] < 1
    change = float((logits - whole).abs().max() / whole.abs().max())
    assert 0 < change < 0.01
    print(share, change)

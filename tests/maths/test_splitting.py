"""Which channels are copied: by hand, and against every choice there is."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qarat.maths.splitting import choose_copies


@pytest.mark.parametrize(
    ("reach", "extra", "copies"),
    [
        ([8.0, 1.0, 3.0], 0, [1, 1, 1]),
        ([8.0, 1.0, 3.0], 1, [2, 1, 1]),
        ([8.0, 1.0, 3.0], 2, [2, 1, 1]),  # 4 is still the largest, and would need two more
        ([8.0, 1.0, 3.0], 3, [4, 1, 1]),
        ([8.0, 1.0, 3.0], 4, [4, 1, 2]),
        ([2.0, 2.0], 1, [2, 1]),  # of equals the first
        ([0.0, 0.0], 5, [1, 1]),  # nothing to gain
        ([4.0, 0.0], 100, [64, 1]),
        ([], 3, []),
    ],
)
def test_by_hand(reach: list[float], extra: int, copies: list[int]) -> None:
    chosen = choose_copies(torch.tensor(reach), extra)
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == copies


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_no_other_choice_reaches_less_far(reach: list[int], extra: int) -> None:
    chosen = choose_copies(torch.tensor(reach, dtype=torch.float32), extra).tolist()
    assert sum(chosen) <= len(reach) + extra
    every = itertools.product((1, 2, 4, 8), repeat=len(reach))
    best = min(max(map(lambda r, k: r / k, reach, c)) for c in every if sum(c) <= len(reach) + extra)
    assert max(map(lambda r, k: r / k, reach, chosen)) == best

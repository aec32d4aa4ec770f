"""Hidden states come back from disk as they went, and a full disk is an error that says so."""

from __future__ import annotations

import errno
import tempfile
from typing import Any

import pytest
import torch

from qarat.ground.errors import UserError
from qarat.model.states import Batches, States


def test_boundaries_come_back_as_they_went():
    states = States()
    boundaries = [[torch.randn(n, 3, 4, dtype=dtype) for n in (2, 1)] for dtype in (torch.bfloat16, torch.float32)]
    for batches in boundaries:
        states.append(batches)
    assert [b.dtype for b in states[0]] == [torch.bfloat16] * 2
    assert all(one.equal(other) for one, other in zip(states[0], boundaries[0], strict=True))
    assert [tuple(b.shape) for b in states.pop()] == [(2, 3, 4), (1, 3, 4)]
    assert all(one.equal(other) for one, other in zip(states.pop(), boundaries[0], strict=True))


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(UserError, match="no space left"):
        States().append([torch.zeros(1, 1, 1)])


@pytest.mark.parametrize("on_disk", [False, True])
def test_batches_are_replaced_one_by_one(on_disk: bool):
    first = [torch.randn(n, 3, 4).to(torch.bfloat16) for n in (2, 1)]
    batches = Batches(iter(first), on_disk=on_disk)
    other = batches.copy()
    for j, tensor in enumerate(batches):
        assert tensor.equal(first[j])
        batches[j] = tensor + 1
    assert len(batches) == 2
    assert [b.dtype for b in batches] == [torch.bfloat16] * 2
    assert all(one.equal(two + 1) for one, two in zip(batches, first, strict=True))
    assert all(one.equal(two) for one, two in zip(other, first, strict=True))


def test_batches_on_disk_take_no_memory():
    batches = Batches((torch.ones(2) for _ in range(3)), on_disk=True)
    assert not any(isinstance(place, torch.Tensor) for place in batches._places)

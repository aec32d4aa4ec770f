"""Embedding and head stay as they are stored until they are used: the same numbers, and not twice the memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from qarat.ground.runtime import Runtime
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.testing import tiny_checkpoint


@torch.no_grad()
def logits_of(model: Model, tokens: torch.Tensor) -> torch.Tensor:
    hidden = model.embed(tokens)
    for index, block in model.walk():
        hidden = model.run_block(index, block, hidden)
    return model.logits(hidden)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "opt"])
def test_logits_of_a_bfloat16_checkpoint_are_those_of_transformers(architecture: str, tied: bool, tmp_path: Path):
    folder = tiny_checkpoint(tmp_path, architecture=architecture, tied=tied, dtype=torch.bfloat16)  # type: ignore[arg-type]
    tokens = torch.randint(2, 100, (2, 24), generator=torch.Generator().manual_seed(1))
    model = open_model(str(folder), Runtime(memory=1))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    with torch.no_grad():
        wanted = theirs(input_ids=tokens).logits
        whole = model.module()(input_ids=tokens).logits
    assert logits_of(model, tokens).equal(wanted)
    assert whole.equal(wanted)
    head = model.module().get_submodule(model.family.head).get_parameter("weight")
    assert head.dtype == torch.float32


def test_they_are_held_as_they_are_stored(tmp_path: Path):
    folder = tiny_checkpoint(tmp_path, dtype=torch.bfloat16)
    model = open_model(str(folder), Runtime(memory=1))
    logits_of(model, torch.zeros(1, 4, dtype=torch.long))
    kinds = {name: value.dtype for name, value in model.outside().items()}
    assert kinds["lm_head.weight"] == kinds["model.embed_tokens.weight"] == torch.bfloat16
    assert kinds["model.norm.weight"] == torch.float32
    assert model._head is not None
    model.block(0)  # which needs the room
    assert model._head is None


def test_a_block_is_emptied_before_the_next_is_read(tmp_path: Path):
    folder = tiny_checkpoint(tmp_path, blocks=3)
    seen = []
    for index, block in open_model(str(folder), Runtime(memory=1)).walk():
        assert not any(list(earlier.parameters()) for earlier in seen), index
        assert list(block.parameters())
        seen.append(block)
    kept = open_model(str(folder), Runtime(memory=1 << 30))
    assert [i for i, _ in kept.walk(1, backwards=True)] == [2, 1]
    assert all(list(block.parameters()) for _, block in list(kept.walk()))

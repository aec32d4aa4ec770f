"""A family keeps its promises: every part is there, every projection is read once, and the walk is the model."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from qarat.model.families import Family
from qarat.model.model import Model
from qarat.values.roles import INPUTS


def check_family(family: Family, model: Model) -> None:
    """Check the wiring of a family on one of its models.

    Args:
        family: To be checked.
        model: In float and float32, of this family; small, as it is computed in whole.

    Raises:
        AssertionError: A part that is not there, a role without a stream or with two, a projection that reads none or
            two, readers of unequal width, or logits that are not those of transformers to the last bit.
    """
    assert model.family == family, f"the model is of the family of {', '.join(model.family.architectures)}"
    whole = model.module()
    for path in filter(None, (family.blocks, family.embedding, family.rotary, family.norm, family.head)):
        whole.get_submodule(path)
    roles = Counter(stream.role for stream in family.streams)
    assert roles == Counter(INPUTS), f"each of {', '.join(INPUTS)} is the role of one stream; got {dict(roles)}"
    for block in whole.get_submodule(family.blocks).children():
        _check_block(family, block)
    _check_walk(model, whole)


def _check_block(family: Family, block: nn.Module) -> None:
    block.get_submodule(family.attention)
    linears = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    assert sorted(family.projections) == sorted(linears), "each projection reads one stream, and none is left out"
    for stream in family.streams:
        widths = {linears[reader].in_features for reader in stream.readers}
        assert len(widths) == 1, f"{stream.name}: its readers are {widths} wide, so they read no one tensor"
        if stream.source:
            block.get_submodule(stream.source)


@torch.no_grad()
def _check_walk(model: Model, whole: nn.Module) -> None:
    """The walk, block by block, against the whole module and against the model as transformers loads it."""
    length = min(model.length, 16)
    tokens = torch.arange(2 * length).reshape(2, length) % model.config.vocab_size
    hidden = model.embed(tokens)
    for index, block in model.walk():
        hidden = model.run_block(index, block, hidden)
    logits = model.logits(hidden)
    ordinary = AutoModelForCausalLM.from_pretrained(model.folder, dtype=model.runtime.torch_dtype)
    assert torch.equal(logits, ordinary(tokens).logits), "the walk's logits are not those of transformers"
    assert torch.equal(logits, whole(tokens).logits), "the walk's logits are not those of the module put together"

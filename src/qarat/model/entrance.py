"""What happens in front of the first block, and what every block is called with.

Masks and position embeddings are not rebuilt here: the skeleton's own forward is run once per shape with recorders in
place of the blocks, and each block later gets the arguments its recorder saw. Sliding windows, rotary variants and
whatever a family adds are therefore transformers' own. What is given up: padding (windows all have one length).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qarat.ground.runtime import Runtime
from qarat.model.families.base import Family
from qarat.model.widening import embedding_of

Shape = tuple[int, int]
"""Windows and tokens of each."""
_SHAPES = 2  # enough for a walk: full batches and a last, shorter one


class _Recorder(nn.Module):
    """Stands in for a block and keeps the arguments it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {}

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        self.arguments = arguments
        return hidden_states


class Entrance:
    """The part of a skeleton in front of its blocks."""

    def __init__(self, skeleton: nn.Module, family: Family, count: int, runtime: Runtime) -> None:
        """Keep the skeleton; nothing is run yet.

        Args:
            skeleton: Real outside its blocks.
            family: Says where in it blocks and embedding are.
            count: How many blocks there are.
            runtime: Where the skeleton is, and the dtype of hidden states.
        """
        parent, _, self._name = family.blocks.rpartition(".")
        self._shell = skeleton.get_submodule(parent)
        self._embedding = skeleton.get_submodule(family.embedding)
        self._count, self._device, self._dtype = count, runtime.device, runtime.torch_dtype
        self._arguments: dict[Shape, list[dict[str, Any]]] = {}

    @torch.no_grad()
    def enter(self, tokens: Tensor) -> Tensor:
        """Hidden states in front of block 0, (windows, length, hidden), of (windows, length) token ids."""
        recorders = [_Recorder() for _ in range(self._count)]
        blocks = getattr(self._shell, self._name)
        entrance: list[Tensor] = []
        handle = recorders[0].register_forward_pre_hook(lambda _, args, kw: entrance.append(args[0]), with_kwargs=True)
        try:
            setattr(self._shell, self._name, nn.ModuleList(recorders))
            with embedding_of(self._embedding, tokens, self._dtype):
                self._shell(input_ids=tokens.to(self._device), use_cache=False)
        finally:
            setattr(self._shell, self._name, blocks)
            handle.remove()
        shape = (tokens.shape[0], tokens.shape[1])
        if shape not in self._arguments and len(self._arguments) == _SHAPES:
            del self._arguments[next(iter(self._arguments))]
        self._arguments[shape] = [r.arguments for r in recorders]
        return entrance[0]

    def arguments(self, index: int, shape: Shape) -> dict[str, Any]:
        """What a block is called with beside its hidden states."""
        if shape not in self._arguments:
            self.enter(torch.zeros(shape, dtype=torch.long))
        return self._arguments[shape][index]

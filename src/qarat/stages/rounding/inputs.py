"""What projections read on the calibration tokens, for the roundings that ask for it: a walk of the float model.

Nothing runs before a rounding asks. Then the blocks up to its own run once, and its own once more for all its streams
together, whose matrices of inputs by inputs are kept until another block is asked about; once for every stream where
memory has no room for them all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from qarat.model.model import Model
from qarat.model.states import Batches
from qarat.model.tokens import TokenSet
from qarat.stages.rounding.weighing import WeightedMoments
from qarat.values.sites import Site


class Calibration:
    """The calibration tokens in a float model."""

    def __init__(self, model: Model, tokens: TokenSet, first: int = 0) -> None:
        """Nothing is run yet.

        Args:
            model: In float.
            tokens: Calibration windows.
            first: Position from which on inputs count; tokens of a prefix, which stay in float, lie in front.
        """
        self._model, self._tokens, self._first = model, tokens, first
        self._entrances: dict[int, Batches] = {}
        self._moments: dict[str, Tensor] = {}
        self._weighted = WeightedMoments(model, tokens, first)
        self._batches = tokens.batches(model.runtime.batch_tokens)
        self._keeps_all = tokens.windows.numel() * model.state_bytes * model.blocks <= model.memory // 4

    @property
    def rows(self) -> int:
        """Tokens whose inputs count."""
        windows, length = self._tokens.windows.shape
        return windows * (length - self._first)

    def of(self, site: Site) -> SiteInputs:
        """The context of one projection."""
        return SiteInputs(self, site)

    def moments(self, site: Site) -> Tensor:
        """As `qarat.stages.rounding.Context`; of a whole block at once, kept until another block is asked about."""
        if site.streams[0] not in self._moments:
            every = {s.streams[0]: s for s in self._model.sites() if s.block == site.block and s.kind == "projection"}
            room = self._model.memory // 4
            together = sum(s.shape[1] ** 2 for s in every.values()) * torch.float32.itemsize <= room
            sums: dict[str, Tensor] = {}
            rows = 0

            def add(x: Tensor, stream: str) -> None:
                nonlocal rows
                rows += len(x) * (stream == site.streams[0])
                sums[stream] = sums[stream].addmm_(x.T, x) if stream in sums else x.T @ x

            self._moments = {}  # the last block's, before there are new ones
            self._watch(every.values() if together else [site], add)
            self._moments = {stream: total / rows for stream, total in sums.items()}
        return self._moments[site.streams[0]]

    def weighted_moments(self, site: Site) -> Tensor:
        """As `qarat.stages.rounding.Context`; of the whole model at once, kept on disk."""
        return self._weighted.of(site)

    def inputs(self, site: Site) -> Tensor:
        """As `qarat.stages.rounding.Context`."""
        rows: list[Tensor] = []
        self._watch([site], lambda x, stream: rows.append(x))
        return torch.cat(rows)

    @torch.no_grad()
    def _watch(self, sites: Collection[Site], see: Callable[[Tensor, str], object]) -> None:
        """Run the block of some sites, and hand over what each reads, (tokens, in) float32 a batch, and its stream."""
        model, (index,) = self._model, {site.block for site in sites}
        block = model.block(index)

        def watch(site: Site) -> RemovableHandle:
            def hand_over(_: object, operands: tuple[Tensor, ...]) -> None:
                see(operands[0][:, self._first :].flatten(0, 1).float(), site.streams[0])

            linear = block.get_submodule(site.name.removeprefix(f"{model.family.blocks}.{index}."))
            return linear.register_forward_pre_hook(hand_over)

        handles = list(map(watch, sites))
        try:
            for states in self._entrance(index):
                model.run_block(index, block, states)
        finally:
            for handle in handles:
                handle.remove()

    def _entrance(self, index: int) -> Batches:
        """Hidden states at a block's entrance, by batch.

        Those of every block are kept where they fit a quarter of the memory bound, since prices ask from the last
        block to the first; else those last asked for, since quantizing goes the other way.
        """
        model = self._model
        start = max((known for known in self._entrances if known <= index), default=-1)
        if start < 0:
            start = 0
            self._entrances[0] = model.enter(self._batches)
        for number in range(start, index):
            states, block = self._entrances[number], model.block(number)
            if not self._keeps_all:
                self._entrances.clear()
            run = partial(model.run_block, number, block)
            self._entrances[number + 1] = model.hold(map(run, states), self._batches)
        return self._entrances[index]


@dataclass(frozen=True, eq=False)
class SiteInputs:
    """What one projection reads (protocol `qarat.stages.rounding.Context`)."""

    calibration: Calibration
    site: Site

    @property
    def moments(self) -> Tensor:
        """Mean of x·xᵀ over the tokens, (in, in) float32."""
        return self.calibration.moments(self.site)

    @property
    def weighted_moments(self) -> Tensor:
        """Mean of ḡ²·x·xᵀ over the tokens, (in, in) float32."""
        return self.calibration.weighted_moments(self.site)

    @property
    def inputs(self) -> Tensor:
        """One row a token, (tokens, in) float32."""
        return self.calibration.inputs(self.site)

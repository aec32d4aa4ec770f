"""What projections read on the calibration tokens, for the roundings that ask for it: a walk of the float model.

Nothing runs before a rounding asks. Then the blocks up to its own run once, and its own once for every stream that is
asked about: a matrix of inputs by inputs is kept of one stream at a time (q, k and v read the same), never of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qarat.model.model import Model
from qarat.model.tokens import TokenSet
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
        self._entrances: dict[int, list[Tensor]] = {}
        self._moments: tuple[str, Tensor] | None = None
        states = tokens.windows.numel() * model.config.hidden_size * model.runtime.torch_dtype.itemsize
        self._keeps_all = states * model.blocks <= model.memory // 4

    def of(self, site: Site) -> SiteInputs:
        """The context of one projection."""
        return SiteInputs(self, site)

    def moments(self, site: Site) -> Tensor:
        """As `qarat.stages.rounding.Context`; kept until another stream is asked about."""
        stream = site.streams[0]
        if self._moments is None or self._moments[0] != stream:
            width = site.shape[1]
            total = torch.zeros(width, width, device=self._model.runtime.device)
            rows = 0

            def add(x: Tensor) -> None:
                nonlocal rows
                rows += len(x)
                total.addmm_(x.T, x)

            self._watch(site, add)
            self._moments = stream, total / rows
        return self._moments[1]

    def inputs(self, site: Site) -> Tensor:
        """As `qarat.stages.rounding.Context`."""
        rows: list[Tensor] = []
        self._watch(site, rows.append)
        return torch.cat(rows)

    @torch.no_grad()
    def _watch(self, site: Site, see: Callable[[Tensor], object]) -> None:
        """Run the site's block, and hand over what the site reads, (tokens, in) float32 a batch."""
        model = self._model
        block = model.block(site.block)
        linear = block.get_submodule(site.name.removeprefix(f"{model.family.blocks}.{site.block}."))

        def hand_over(_: object, operands: tuple[Tensor, ...]) -> None:
            see(operands[0][:, self._first :].flatten(0, 1).float())

        handle = linear.register_forward_pre_hook(hand_over)
        try:
            for states in self._entrance(site.block):
                model.run_block(site.block, block, states)
        finally:
            handle.remove()

    def _entrance(self, index: int) -> list[Tensor]:
        """Hidden states at a block's entrance, by batch.

        Those of every block are kept where they fit a quarter of the memory bound, since prices ask from the last
        block to the first; else those last asked for, since quantizing goes the other way.
        """
        model = self._model
        start = max((known for known in self._entrances if known <= index), default=-1)
        if start < 0:
            start = 0
            self._entrances[0] = [model.embed(batch) for batch in self._tokens.batches(model.runtime.batch_tokens)]
        for number in range(start, index):
            states, block = self._entrances[number], model.block(number)
            if not self._keeps_all:
                self._entrances.clear()
            self._entrances[number + 1] = [model.run_block(number, block, batch) for batch in states]
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
    def inputs(self) -> Tensor:
        """One row a token, (tokens, in) float32."""
        return self.calibration.inputs(self.site)

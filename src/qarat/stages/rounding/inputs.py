"""What projections read on the calibration tokens, for the roundings that ask for it: a walk of the float model.

Nothing runs before a rounding asks. Then the blocks up to its own run once, and its own once more for all its streams
together, whose matrices of inputs by inputs are kept until another block is asked about; once for every stream where
memory has no room for them all.

What is rounded by them waits on disk: a search prices a weight, measures it in many plans and writes it down, and it is
rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from qarat.maths.tensors import QuantizedTensor
from qarat.model.model import Model
from qarat.model.states import Batches
from qarat.model.tokens import TokenSet
from qarat.stages.rounding import ROUNDINGS, Merged, round_weight
from qarat.stages.rounding.kept import KeptWeights
from qarat.stages.rounding.weighing import gradients, squared_gradients, weighted_moments
from qarat.values.schemes import TensorScheme
from qarat.values.sites import Site


class Calibration:
    """The calibration tokens in a float model.

    Attributes:
        tokens: Those.
    """

    def __init__(self, model: Model, tokens: TokenSet, first: int = 0) -> None:
        """Nothing is run yet.

        Args:
            model: In float.
            tokens: Calibration windows.
            first: Position from which on inputs count; tokens of a prefix, which stay in float, lie in front.
        """
        self.tokens = tokens
        self._model, self._first = model, first
        self._entrances: dict[int, Batches] = {}
        self._moments: dict[str, Tensor] = {}
        self._weighted = weighted_moments(model, tokens, first)
        self._fisher = squared_gradients(model, tokens, first)
        self._gradient = gradients(model, tokens, first)
        self._rounded = KeptWeights()
        self._batches = tokens.batches(model.runtime.batch_tokens)
        self._keeps_all = tokens.windows.numel() * model.state_bytes * model.blocks <= model.memory // 4

    def is_of(self, model: Model, first: int) -> bool:
        """Whether it is of this very model, with inputs from this position on."""
        return self._model is model and self._first == first

    @property
    def rows(self) -> int:
        """Tokens whose inputs count."""
        windows, length = self.tokens.windows.shape
        return windows * (length - self._first)

    def of(self, site: Site) -> SiteInputs:
        """The context of one projection."""
        return SiteInputs(self, site)

    def round_weight(self, site: Site, weight: Merged, scheme: TensorScheme) -> QuantizedTensor:
        """Round a projection's weight as its scheme says; once where that takes what it reads.

        Args:
            site: The projection.
            weight: Its own, always the same.
            scheme: Of the weight.

        Raises:
            UserError: An unknown rounding; no room on disk.
        """
        rounding, context = ROUNDINGS.load(scheme.rounding), self.of(site)
        if not rounding.NEEDS:
            return round_weight(weight, scheme)
        if len(weight.parts) > 1 and scheme.is_shared_when_merged and rounding.NEEDS in ("moments", "inputs"):
            # All parts read one stream, so that the whole is the same for each.
            key = " ".join(weight.names), scheme
            return weight.own(self._rounded.get(key, lambda: rounding.round_weight(weight.whole(), scheme, context)))
        return self._rounded.get((site.name, scheme), lambda: round_weight(weight, scheme, context))

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
            behind = self._watch(every.values() if together else [site], add)
            if together and site.block + 1 < self._model.blocks:  # whoever comes from the front asks there next
                self._entrances.setdefault(site.block + 1, behind)
            self._moments = {stream: total / rows for stream, total in sums.items()}
        return self._moments[site.streams[0]]

    def weighted_moments(self, site: Site) -> Tensor:
        """As `qarat.stages.rounding.Context`; of the whole model at once, kept on disk."""
        return self._weighted.of(site)

    def fisher(self, site: Site) -> Tensor:
        """As `qarat.stages.rounding.Context`; of the whole model at once, kept on disk."""
        return self._fisher.of(site)

    def gradient(self, site: Site) -> Tensor:
        """As `qarat.stages.rounding.Context`; of the whole model at once, kept on disk."""
        return self._gradient.of(site)

    def inputs(self, site: Site) -> Tensor:
        """As `qarat.stages.rounding.Context`."""
        rows: list[Tensor] = []
        self._watch([site], lambda x, stream: rows.append(x))
        return torch.cat(rows)

    @torch.no_grad()
    def _watch(self, sites: Collection[Site], see: Callable[[Tensor, str], object]) -> Batches:
        """Run the block of some sites, and hand over what each reads, (tokens, in) float32 a batch, and its stream.

        Returns:
            Hidden states behind the block, by batch.
        """
        model, (index,) = self._model, {site.block for site in sites}
        block = model.block(index)

        def watch(site: Site) -> RemovableHandle:
            def hand_over(_: object, operands: tuple[Tensor, ...]) -> None:
                see(operands[0][:, self._first :].flatten(0, 1).float(), site.streams[0])

            linear = block.get_submodule(site.name.removeprefix(f"{model.family.blocks}.{index}."))
            return linear.register_forward_pre_hook(hand_over)

        handles = list(map(watch, sites))
        try:
            return model.hold(map(partial(model.run_block, index, block), self._entrance(index)), self._batches)
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
        if not self._keeps_all:
            self._entrances = {known: states for known, states in self._entrances.items() if known == start}
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

    @property
    def fisher(self) -> Tensor:
        """Mean of g²·x² over the tokens, (out, in) float32."""
        return self.calibration.fisher(self.site)

    @property
    def gradient(self) -> Tensor:
        """Mean of g·x over the tokens, (out, in) float32."""
        return self.calibration.gradient(self.site)


def inputs_of(model: Model, calibration: TokenSet | Calibration | None, first: int = 0) -> Calibration | None:
    """What a model's projections read: what was gathered already, or else nothing yet.

    Args:
        model: In float.
        calibration: Tokens; or what has gone through them, which counts if it was in this very model.
        first: As of `Calibration`.
    """
    if isinstance(calibration, Calibration):
        if calibration.is_of(model, first):
            return calibration
        calibration = calibration.tokens
    return None if calibration is None else Calibration(model, calibration, first)


def round_site(
    site: Site, weight: Merged, scheme: TensorScheme, calibration: Calibration | None = None
) -> QuantizedTensor:
    """Round a projection's weight as its scheme says.

    Args:
        site: The projection.
        weight: Its own.
        scheme: Of the weight.
        calibration: For roundings that look at what a projection reads.

    Raises:
        UserError: An unknown rounding, or one that needs calibration tokens where there are none.
    """
    return round_weight(weight, scheme) if calibration is None else calibration.round_weight(site, weight, scheme)

"""Means over tokens of what projections read and of the gradients of what they put out, for roundings that ask.

One forward and one backward pass over the calibration tokens, the pass of `qarat.stages.prices.fisher`, when a rounding
first asks. Gradients come from the last block to the first, and roundings may ask in any order; so the matrices of
every block wait on disk, one for each projection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from qarat.ground.runtime import Progress, no_progress
from qarat.model.model import Model
from qarat.model.passes import CapturedBatch, Objective, Subject, backward, draw_labels, next_tokens
from qarat.model.states import States
from qarat.model.tokens import TokenSet
from qarat.values.sites import Site

SEED = 0  # of the labels: the same codes whoever rounds, and whatever else is drawn


class GradientMeans:
    """Of every projection of a float model (protocol `qarat.model.passes.Subject`)."""

    attention: Sequence[str] = ()

    def __init__(
        self,
        model: Model,
        tokens: TokenSet,
        first: int,
        show: Callable[[Subject], Iterator[CapturedBatch]],
        add_up: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        """Nothing is run yet.

        Args:
            model: As `qarat.stages.rounding.inputs.Calibration`, and the next two.
            tokens: Calibration windows.
            first: Position from which on tokens count.
            show: The pass, with gradients of what is asked for.
            add_up: From inputs, (tokens, in), and gradients, (tokens, out), float32, to what is summed over tokens.
        """
        self.model, self.tokens = model, tokens
        self.progress: Progress = no_progress
        self._first, self._show, self._add_up = first, show, add_up
        self._states: States | None = None

    def of(self, site: Site) -> Tensor:
        """As `qarat.stages.rounding.Context`.

        Raises:
            UserError: No room on disk.
        """
        if self._states is None:
            self._states = self._collect()
        name = site.name.removeprefix(f"{self.model.family.blocks}.{site.block}.")
        return self._states[self.model.blocks - 1 - site.block][self.model.family.projections.index(name)]

    def _collect(self) -> States:
        """The means of every block, from the last to the first, of each its projections in the family's order."""
        states, names = States(), self.model.family.projections
        sums: list[Tensor] = []
        windows, length = self.tokens.windows.shape
        left = windows
        for seen in self._show(self):
            operands, gradients = seen.captured.operands, seen.captured.gradients
            shown = [self._sum(operands[name][0], gradients[name]) for name in names]
            sums = [total.add_(more) for total, more in zip(sums, shown, strict=True)] if sums else shown
            left -= len(gradients[names[0]])
            if not left:  # the block's last batch
                states.append([total / (windows * (length - self._first)) for total in sums])
                sums, left = [], windows
        return states

    def _sum(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Over a batch's tokens, of (windows, length, in) and (windows, length, out)."""
        inputs, gradients = (part[:, self._first :].flatten(0, 1).float() for part in (x, gradient))
        return self._add_up(inputs, gradients)


def weighted_moments(model: Model, tokens: TokenSet, first: int) -> GradientMeans:
    """Means of ḡ²·x·xᵀ, (in, in), ḡ² a token's mean over outputs; arguments as `GradientMeans`."""
    return GradientMeans(model, tokens, first, _OF_DRAWN, lambda x, g: (x * g.square().mean(1, keepdim=True)).T @ x)


def squared_gradients(model: Model, tokens: TokenSet, first: int) -> GradientMeans:
    """Means of g²·x², (out, in): the diagonal of the Fisher information; arguments as `GradientMeans`."""
    return GradientMeans(model, tokens, first, _OF_DRAWN, lambda x, g: g.square().T @ x.square())


def gradients(model: Model, tokens: TokenSet, first: int) -> GradientMeans:
    """Means of g·x, (out, in), of the text's own next tokens; arguments as `GradientMeans`."""
    return GradientMeans(model, tokens, first, _OF_TEXT, lambda x, g: g.T @ x)


def _labels_drawn(of: Subject) -> Objective:
    return draw_labels(SEED)


def _labels_of_text(of: Subject) -> Objective:
    return next_tokens(of.tokens)


_OF_DRAWN = backward(_labels_drawn, whole=True)
_OF_TEXT = backward(_labels_of_text, whole=True)

"""Moments of what projections read, each token weighed by what its outputs mean to the model's predictions.

One forward and one backward pass over the calibration tokens, the pass of `qarat.stages.prices.fisher`, when a rounding
first asks. Gradients come from the last block to the first, and roundings may ask in any order; so the moments of every
block wait on disk, a matrix of inputs by inputs for each projection.
"""

from __future__ import annotations

from torch import Tensor

from qarat.ground.runtime import Progress, no_progress
from qarat.model.model import Model
from qarat.model.passes import backward, draw_labels
from qarat.model.states import States
from qarat.model.tokens import TokenSet
from qarat.values.sites import Site

SEED = 0  # of the labels: the same codes whoever rounds, and whatever else is drawn
_PASS = backward(lambda _: draw_labels(SEED), whole=True)


class WeightedMoments:
    """Of every projection of a float model (protocol `qarat.model.passes.Subject`)."""

    has_products = False
    progress: Progress = staticmethod(no_progress)

    def __init__(self, model: Model, tokens: TokenSet, first: int) -> None:
        """Nothing is run yet; arguments as `qarat.stages.rounding.inputs.Calibration`."""
        self.model, self.tokens = model, tokens
        self._first = first
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
        """The moments of every block, from the last to the first, of each its projections in the family's order."""
        states, names = States(), self.model.family.projections
        sums: list[Tensor] = []
        windows, length = self.tokens.windows.shape
        left = windows
        for seen in _PASS(self):
            operands, gradients = seen.captured.operands, seen.captured.gradients
            shown = [self._sum(operands[name][0], gradients[name]) for name in names]
            sums = [total.add_(more) for total, more in zip(sums, shown, strict=True)] if sums else shown
            left -= len(gradients[names[0]])
            if not left:  # the block's last batch
                states.append([total / (windows * (length - self._first)) for total in sums])
                sums, left = [], windows
        return states

    def _sum(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Sum of ḡ²·x·xᵀ over a batch's tokens, of (windows, length, in) and (windows, length, out)."""
        x = x[:, self._first :].flatten(0, 1).float()
        weights = gradient[:, self._first :].flatten(0, 1).float().square().mean(1)
        return (x * weights[:, None]).T @ x

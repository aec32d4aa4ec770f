"""The models that a run measures: float, everything low, the plan as it lies on disk; here, or by workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from qarat.jobs.open_any import Quantizing, Reopening
from qarat.jobs.replicas import Replica
from qarat.jobs.spreading import Spread
from qarat.model.model import Model
from qarat.model.native import read_native
from qarat.model.tokens import TokenSet
from qarat.values.plans import Plan
from qarat.values.records.files import content_hash
from qarat.values.records.streams import ActivationStats


class Walked(NamedTuple):
    """A model, and who walks it.

    Attributes:
        model: Its blocks are brought in as they are walked.
        spread: Passes over it by workers; None for this process alone.
    """

    model: Model
    spread: Spread | None = None

    def quantized(self, plan: Plan, stats: ActivationStats, calibration: TokenSet) -> Walked:
        """What a plan makes of it; arguments as of `qarat.stages.quantize.quantize`."""
        return self.remade(Quantizing(plan, stats, calibration))

    def remade(self, remake: Callable[[Model], Model]) -> Walked:
        """What something that can be pickled makes of it."""
        made = remake(self.model)
        return Walked(made, self.spread and self.spread.over(self.spread.replica.remade(made, remake)))

    def stored(self, folder: Path, plan: Plan) -> Walked:
        """The model that a plan made of it, as it lies in a folder; workers that do not see that folder do not walk."""
        model, _ = read_native(folder, self.model.runtime)
        if self.spread is None or not self.spread.sees_files:
            return Walked(model)
        share = self.spread.replica.opening.share
        replica = Replica(model, str(folder), share=share, opener=Reopening(content_hash(plan)))
        return Walked(model, self.spread.over(replica))


Walking = Callable[[], Walked]

"""What protecting one unit after another bought, measured."""

from __future__ import annotations

import msgspec

from qarat.values.records.origin import Difference, Provenance


class Trial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measured plan on the selection tokens.

    Attributes:
        label: ``k=2``, ``only 1.down low``, ``without 1.down``, …
        sites: The sites the label is about: protected ones, the one left low, the one given up.
        damage: What `Protection` says it is compared with.
    """

    label: str
    sites: tuple[str, ...]
    damage: Difference


class Protection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The measurements behind a plan: protect the first k candidates, k = 0, 1, 2 and so on.

    Attributes:
        provenance: Model and selection tokens.
        order: What ranked the candidates.
        budget: Spelling of the budget.
        budget_nats: The same in nats per token.
        trials: Trial k protects the first k candidates; loss over float.
        alone: Only this site low, everything else in float; loss over float, to be set beside the prediction.
        recoveries: Of each site the plan protects: the loss that leaving it low would add to the plan's.
        verdict: What was chosen, and why there.
    """

    provenance: Provenance
    order: str
    budget: str
    budget_nats: float
    trials: tuple[Trial, ...]
    alone: tuple[Trial, ...]
    recoveries: tuple[Trial, ...]
    verdict: str

    @property
    def protected(self) -> frozenset[str]:
        """Full names of the sites that the plan protects; what a rule overrides is none of them."""
        return frozenset(site for trial in self.recoveries for site in trial.sites)

    def __post_init__(self) -> None:
        if nameless := [t.label for t in (*self.alone, *self.recoveries) if not t.sites]:
            raise ValueError(f"trials of single sites that name none: {', '.join(nameless)}")

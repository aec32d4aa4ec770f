"""Prices of schemes at sites, how well they predict what is measured, and the measured plans that protect some."""

from __future__ import annotations

import math

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.summaries import Summarized
from qarat.values.fingerprints import brief
from qarat.values.records.origin import Difference, Provenance

NATS = "nats per token"
"""The unit of damage, unless a menu names another."""


class MenuEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The predicted price of one scheme at one site.

    Attributes:
        site: Full name.
        scheme: Short spelling.
        damage: In the menu's unit.
        standard_error: Over windows.
    """

    site: str
    scheme: str
    damage: float
    standard_error: float


class Menu(Summarized, msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What every scheme would cost at every site.

    Attributes:
        provenance: Model and selection tokens.
        metric: How it was priced, e.g. ``fisher``.
        stats: Content hash of the stats behind static scales.
        entries: One a site and scheme.
        unit: Of the prices. Where it is not `NATS` they rank sites, and say nothing of the loss.
        prefix: Ids of the tokens in front of every window that are in float whatever a site's scheme.
    """

    provenance: Provenance
    metric: str
    stats: str
    entries: tuple[MenuEntry, ...]
    unit: str = NATS
    prefix: tuple[int, ...] = ()

    def facts(self) -> dict[str, str]:
        """What tells it from another."""
        return {"model": brief(self.provenance.model), "metric": self.metric, "prices": f"{len(self.entries):,}"}

    @property
    def in_nats(self) -> bool:
        """Whether the prices are losses, which add up and can be held against a budget."""
        return self.unit == NATS

    def damages(self, scheme: str) -> dict[str, float]:
        """Site to damage under one scheme, in the menu's unit."""
        return {e.site: e.damage for e in self.entries if e.scheme == scheme}


class Trial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measured plan on the selection tokens.

    Attributes:
        label: ``2 protected``, ``only 1.down low``, …
        sites: The sites the label is about: protected ones, or the one left low.
        damage: Loss over float.
    """

    label: str
    sites: tuple[str, ...]
    damage: Difference


class SiteMeasurements(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one scheme costs at every site alone, and at all of them together, measured.

    Attributes:
        provenance: Model and selection tokens.
        scheme: Short spelling.
        alone: One a site: only this one in the scheme, everything else in float; loss over float.
        joint: All these sites in the scheme; loss over float.
    """

    provenance: Provenance
    scheme: str
    alone: tuple[Trial, ...]
    joint: Trial


class ComparedSite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One site's price beside its measured loss.

    Attributes:
        site: Full name.
        predicted: In the metric's unit.
        predicted_error: Standard error over windows.
        measured: Loss over float, nats per token.
    """

    site: str
    predicted: float
    predicted_error: float
    measured: Difference


class MetricCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How well a metric's prices agree with measured losses.

    Attributes:
        provenance: Of the menu.
        metric: Its name.
        unit: Of its prices.
        scheme: Priced and measured.
        sites: Compared, in the order of the measurements.
        joint: Measured loss of all these sites together, over float.
        rank_correlation: Spearman's, of price and measured loss over the sites; NaN where either does not vary.
        slope: Least squares of measured loss on price, through the origin; nats per unit, 1 if calibrated.
        clear_sites: Of how many the measured loss is more than two of its standard errors above nothing.
        clear_correlation: Rank correlation over these alone: among the others the measured order is mostly chance.
    """

    provenance: Provenance
    metric: str
    unit: str
    scheme: str
    sites: tuple[ComparedSite, ...]
    joint: Difference
    rank_correlation: float
    slope: float
    clear_sites: int = 0
    clear_correlation: float = math.nan

    @property
    def predicted_sum(self) -> float:
        """Of the prices, in their unit."""
        return math.fsum(s.predicted for s in self.sites)

    @property
    def measured_sum(self) -> float:
        """Of the losses of each site alone, nats per token."""
        return math.fsum(s.measured.nats for s in self.sites)

    @property
    def calibration(self) -> float:
        """Predicted sum over measured sum; NaN where the prices are not in nats."""
        return _ratio(self.predicted_sum, self.measured_sum) if self.unit == NATS else math.nan

    @property
    def joint_calibration(self) -> float:
        """Predicted sum over the measured loss of all sites together; NaN where the prices are not in nats."""
        return _ratio(self.predicted_sum, self.joint.nats) if self.unit == NATS else math.nan


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


class Correction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What losses come to that do not simply add: loss = factor · S ** power, S the sum of predictions.

    Attributes:
        factor: In nats per unit of S to that power.
        power: 1 where only a factor was fitted.
        residual: Standard deviation of the logarithm of the loss about the fit, so that 0.1 is some 10 %; NaN where no
            pair was left over to show it.
        pairs: Number of measured combinations behind it.
        smallest: Sum of predictions from which,
        largest: and up to which it was fitted.
    """

    factor: float
    power: float
    residual: float
    pairs: int
    smallest: float
    largest: float

    def apply(self, predicted: float) -> float:
        """The loss to expect, nats per token, where predictions sum to ``predicted``.

        Raises:
            UserError: A negative sum.
        """
        if predicted < 0:
            raise UserError(f"predictions that sum to {predicted:g}: a correction is for sums from 0 on")
        return self.factor * predicted**self.power


class Protection(Summarized, msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The measurements behind a plan: a few sets of protected sites, closing in on a loss budget.

    Attributes:
        provenance: Model and selection tokens.
        order: What priced or chose the candidates.
        budget: Spelling of the budget.
        budget_nats: The same in nats per token.
        trials: In the order measured, first with nothing protected; the sites are the protected ones, the damage is
            the loss over float.
        predicted: One a trial: the prices of all candidates that it leaves low, summed and uncorrected.
        kept: Full names of the sites that the plan protects, in the order of the model.
        verdict: What was chosen, and why there.
        unit: Of the prices. Where it is not `NATS` they rank sets of sites, and say nothing of the loss.
    """

    provenance: Provenance
    order: str
    budget: str
    budget_nats: float
    trials: tuple[Trial, ...]
    predicted: tuple[float, ...]
    kept: tuple[str, ...]
    verdict: str
    unit: str = NATS

    def facts(self) -> dict[str, str]:
        """What tells it from another."""
        return {
            "model": brief(self.provenance.model),
            "budget": self.budget,
            "plans measured": str(len(self.trials)),
            "verdict": self.verdict,
        }

    @property
    def protected(self) -> frozenset[str]:
        """Full names of the sites that the plan protects; what a rule overrides is none of them."""
        return frozenset(self.kept)

    def __post_init__(self) -> None:
        if len(self.predicted) != len(self.trials):
            raise ValueError(f"{len(self.trials)} trials have {len(self.predicted)} predictions: one each is needed")

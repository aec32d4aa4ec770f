"""What many searches come to: a ratio study, predicted plans beside the best of many random ones; a family sweep."""

from __future__ import annotations

import math

import msgspec

from qarat.values.records.origin import Difference, Provenance
from qarat.values.records.search import NOTHING, SearchCost


class RatioPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A plan that a search came to.

    Attributes:
        ratio: Q_r that it has; NaN where there is no plan.
        bits: A weight, scales included.
        selection: Loss on the selection tokens, on which it was chosen.
        report: Loss on the report tokens.
    """

    ratio: float = math.nan
    bits: float = math.nan
    selection: Difference = NOTHING
    report: Difference = NOTHING


class RatioPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Random and predicted search at one ratio.

    Attributes:
        ratio: Q_r that random search was asked for.
        random: The best random plan at that ratio, or at a higher one if it is better.
        predicted: The predicted plan at the ratio that the random one has, or a higher one.
        more: What the predicted plan loses over the random one on the report tokens, paired.
    """

    ratio: float
    random: RatioPlan
    predicted: RatioPlan
    more: Difference


class RatioReach(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a loss budget reaches.

    Attributes:
        budget: Spelling.
        plan: The one with the highest Q_r within it on the selection tokens.
        low: Lower end of the 95 % interval of Q_r (`qarat.values.records.search.Reached`).
        high: Upper end.
    """

    budget: str
    plan: RatioPlan
    low: float
    high: float


class RatioArm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Both searches at one granularity and block size.

    Attributes:
        granularity: ``matmul`` or ``layer``.
        block: Q_b.
        low: Spelling of the low scheme.
        units: How many are decided.
        points: One a ratio.
        random_reach: One a budget, from the random plans.
        predicted_reach: One a budget, from the predicted plans.
        random_cost: Of all random plans.
        predicted_cost: Of the prices, and of all predicted plans, those for the budgets among them.
    """

    granularity: str
    block: int
    low: str
    units: int
    points: tuple[RatioPoint, ...]
    random_reach: tuple[RatioReach, ...]
    predicted_reach: tuple[RatioReach, ...]
    random_cost: SearchCost
    predicted_cost: SearchCost


class BestOf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The best of so many random plans (the second founding paper, App. D, Fig. 19).

    Attributes:
        trials: How many.
        best: Loss of the best of the first that were drawn, on the selection tokens.
        expected: Its mean over every choice of so many among all that were drawn.
        spread: Its standard deviation over the same choices.
    """

    trials: int
    best: float
    expected: float
    spread: float


class Windows(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What so many windows say of one plan (the second founding paper, App. E, Fig. 20).

    Attributes:
        windows: How many of the report windows, evenly spread.
        loss: Of float, nats per token.
        more: What the plan loses over it.
    """

    windows: int
    loss: float
    more: Difference


class RatioStudy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The second founding paper's experiment on one model, and predicted search beside it.

    Attributes:
        provenance: Model and selection tokens.
        report: Fingerprint of the report tokens.
        basis: What Q_r counts.
        metric: Behind the predictions.
        trials: Random plans at each ratio.
        arms: One for each block size and granularity.
        ablated: In words, which plans the two ablations are about.
        best_of: Loss against the number of random plans.
        windows: Loss of the best of them all against the number of evaluated windows.
    """

    provenance: Provenance
    report: str
    basis: str
    metric: str
    trials: int
    arms: tuple[RatioArm, ...]
    ablated: str
    best_of: tuple[BestOf, ...]
    windows: tuple[Windows, ...]


class FamilyPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One search of a sweep: a model, a low format and a block size.

    Attributes:
        model: Name.
        size: N, parameters of all sites: what Q_r is a share of.
        tokens: D, training tokens; NaN where the model does not say.
        format: In words, without the block size: ``mxint4 weights and inputs``.
        low: Spelling of the low scheme.
        granularity: Which weights share a scale: ``group``, ``channel`` or ``tensor``.
        block: Q_b: weights that share a scale, on the average over all sites.
        evaluation: Text, cut and number of windows, in words.
        ratios: Those that were asked for.
        plans: The best plan at each of them.
        reached: One a budget.
        failure: Why the point could not be measured; empty where it was.
    """

    model: str
    size: float
    tokens: float
    format: str
    low: str
    granularity: str
    block: float
    evaluation: str
    ratios: tuple[float, ...] = ()
    plans: tuple[RatioPlan, ...] = ()
    reached: tuple[RatioReach, ...] = ()
    failure: str = ""


class FamilySweep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Predicted search over models, formats and block sizes.

    Attributes:
        family: Models that share recipe and data.
        planning: ``matmul-wise`` or ``layer-wise``.
        basis: What Q_r counts.
        points: In the order of models, formats and blocks.
    """

    family: str
    planning: str
    basis: str
    points: tuple[FamilyPoint, ...]

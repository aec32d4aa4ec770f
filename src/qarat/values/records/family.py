"""What a sweep over a family of models measured."""

from __future__ import annotations

import msgspec

from qarat.values.records.ratios import RatioPlan, RatioReach


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
        asked: Ratios that were asked for.
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
    asked: tuple[float, ...] = ()
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

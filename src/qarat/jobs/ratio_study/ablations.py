"""The second founding paper's two ablations, from losses that are there already (arXiv 2410.06722v1, App. D and E)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from qarat.values.records.ratios import BestOf, Windows
from qarat.values.records.scores import Evaluation, paired_difference

FEWEST = 4  # windows from which on the second ablation goes, by doubling


def best_of(losses: Sequence[float], trials: int) -> BestOf:
    """The best of so many random plans: of the first ones, and over every choice of so many among all.

    Args:
        losses: Of all plans, in the order in which they were drawn.
        trials: At most as many.
    """
    ordered, total = sorted(losses), math.comb(len(losses), trials)
    # The i-th best is the best of a choice if it is in it and the others are among those behind it.
    chances = [math.comb(len(losses) - 1 - i, trials - 1) / total for i in range(len(losses))]
    mean = math.fsum(p * loss for p, loss in zip(chances, ordered, strict=True))
    variance = math.fsum(p * (loss - mean) ** 2 for p, loss in zip(chances, ordered, strict=True))
    return BestOf(trials, min(losses[:trials]), mean, math.sqrt(variance))


def windows_taken(plan: Evaluation, base: Evaluation) -> tuple[Windows, ...]:
    """What ever more windows of two evaluations say, evenly spread: 4, 8, 16, … and all of them."""
    total = len(base.nats)
    counts = [n for n in (FEWEST << k for k in range(total.bit_length())) if n < total]
    taken: list[Windows] = []
    for count in (*counts, total):
        rows = [i * total // count for i in range(count)]
        a, b = _take(plan, rows), _take(base, rows)
        taken.append(Windows(count, b.loss, paired_difference(a, b)))
    return tuple(taken)


def _take(evaluation: Evaluation, rows: Sequence[int]) -> Evaluation:
    return msgspec.structs.replace(
        evaluation,
        nats=tuple(evaluation.nats[i] for i in rows),
        predicted=tuple(evaluation.predicted[i] for i in rows),
        sources=tuple(evaluation.sources[i] for i in rows),
    )

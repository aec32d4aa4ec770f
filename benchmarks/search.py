"""Claim: predicted plans match or beat the best of 50 random ones, at a thirtieth of their cost.

    python benchmarks/search.py py-64 py-128 -o search.json
    python benchmarks/search.py MODEL --calibration TEXT -o other.json

The second founding paper's search: 50 random plans at every ratio. Choices on the selection tokens, losses on the
report tokens; the predicted plan is asked for at the ratio that the best random plan came to, or higher. Cost is
block × token forwards, random with the same caches. With --optimum, all 4096 plans of a model in which 12 sites are
open, the rest in float, say how far each strategy is from the best.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import common
import msgspec

from qarat.data import TokenSet, load_token_sets
from qarat.models import Model, open_model
from qarat.records import Difference, paired_difference
from qarat.report.progress import StageProgress
from qarat.runners import open_runner
from qarat.searches import Reached, SearchResult
from qarat.searching import SearchJob, SearchRequest
from qarat.workspace import Progress, Run, Runtime

RATIOS = (0.5, 0.75, 0.9, 0.95)
OPEN = 12
Tokens = tuple[TokenSet, TokenSet, TokenSet]


class Bench:
    """One model, on which searches are run."""

    def __init__(self, name: str, asked: argparse.Namespace, progress: Progress) -> None:
        self.name, self.seed_count, self.low, self.progress = name, asked.seeds, asked.low, progress
        self.model: Model = open_model(name, Runtime(threads=asked.threads))
        self.tokens: Tokens = load_token_sets(
            self.model, calibration=asked.calibration, samples=asked.samples, report_samples=asked.report_samples
        )

    def search(self, seed: int, **request: Any) -> SearchResult:
        """Run one search in a folder that is thrown away."""
        asked = SearchRequest(self.low, **request)
        asked.check()
        with tempfile.TemporaryDirectory() as folder, open_runner() as runner:
            run = Run(Path(folder) / "run")
            run.begin()
            job = SearchJob(
                self.model, self.tokens, asked, runner, name=self.name, seed=seed, progress=self.progress
            )
            return job.execute(run)

    def compare(self, seed: int, metric: str) -> dict[str, Any]:
        """Random search against the predicted plans at the ratios that it came to."""
        budgets = tuple(f"ratio={ratio}" for ratio in RATIOS)
        random = self.search(seed, strategy="random", budgets=budgets)
        achieved = [random.trials[r.trial].ratio for r in random.reached]
        # A ratio just below the one achieved, so that rounding does not make it out of reach.
        asked = tuple(f"ratio={ratio - 1e-9:.12f}" for ratio in achieved)
        predicted = self.search(seed, budgets=asked, metric=metric)
        points = [
            _point(ratio, random, r, predicted, p)
            for ratio, r, p in zip(RATIOS, random.reached, predicted.reached, strict=True)
        ]
        spent = {name: msgspec.to_builtins(r.cost) for name, r in (("random", random), ("predicted", predicted))}
        total = [sum(cost.values()) for cost in spent.values()]
        return {"seed": seed, "points": points, "cost": spent, "random_over_predicted": total[0] / total[1]}

    def optimum(self) -> dict[str, Any]:
        """Every subset of twelve sites, and how far what each strategy comes to is from the best."""
        blocks = (0, self.model.blocks - 1)
        rules = ("*: float", *(f"{block}.{leaf}: {self.low}" for block in blocks for leaf in OPEN))
        budgets = tuple(f"ratio={1 - 2 * share / 3:.12f}" for share in self._shares(rules))
        found = {
            name: self.search(0, strategy=name, budgets=budgets, rules=rules) for name in ("predicted", "greedy", "random")
        }
        every = self.search(0, strategy="every", budgets=budgets, rules=rules)
        return {name: [_loss(r.on_report(x)) for x in r.reached] for name, r in {**found, "every": every}.items()}

    def _shares(self, rules: tuple[str, ...]) -> list[float]:
        raise NotImplementedError


def _point(ratio: float, random: SearchResult, r: Reached, predicted: SearchResult, p: Reached) -> dict[str, Any]:
    best, chosen = random.trials[r.trial], predicted.trials[p.trial]
    ours = msgspec.structs.replace(predicted.float_report, label="predicted", nats=p.report)
    theirs = msgspec.structs.replace(random.float_report, label="random", nats=r.report)
    more = paired_difference(ours, theirs)
    return {
        "asked": ratio,
        "random": {"ratio": best.ratio, **_loss(random.on_report(r))},
        "predicted": {"ratio": chosen.ratio, **_loss(predicted.on_report(p))},
        "predicted_minus_random": _loss(more),
        "met": chosen.ratio >= best.ratio - 1e-9 and more.nats <= 2 * more.standard_error,
    }


def _loss(difference: Difference) -> dict[str, float]:
    return {"nats": difference.nats, "standard_error": difference.standard_error}


_ = (product, json, common, StageProgress)

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
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import common
import msgspec

from qarat.ground.runtime import Progress, Runtime
from qarat.jobs.bench import Bench, Member
from qarat.jobs.folder import Run
from qarat.jobs.protecting import draft_plan
from qarat.jobs.runners import open_runner
from qarat.jobs.search.job import KIND, SearchJob
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.model.tokens import TokenSet
from qarat.stages.choose.driver import Driver
from qarat.stages.choose.space import Space, make_space
from qarat.stages.choose.strategies.base import Asking, Goal, Proposal
from qarat.stages.choose.trials import TrialLog
from qarat.surfaces.progress import StageProgress
from qarat.values.records.origin import Difference
from qarat.values.records.scores import paired_difference
from qarat.values.records.search import Reached, SearchResult
from qarat.values.requests.search import SearchRequest

RATIOS = (0.5, 0.75, 0.9, 0.95)
CLOSED = "k"  # of the first and the last block, whose other six projections each are open: twelve sites
STRATEGIES = ("predicted", "greedy", "random")
Tokens = tuple[TokenSet, TokenSet, TokenSet]


class Subject:
    """One model, on which searches are run."""

    def __init__(self, name: str, asked: argparse.Namespace, progress: Progress) -> None:
        self.name, self.low, self.progress = name, getattr(asked, "low", ""), progress
        self.price_windows: int = getattr(asked, "price_windows", 16)
        self.model: Model = open_model(name, Runtime(threads=asked.threads))
        self.tokens: Tokens = load_token_sets(
            self.model, calibration=asked.calibration, samples=asked.samples, report_samples=asked.report_samples
        )

    def search(self, seed: int, **request: Any) -> SearchResult:
        """Run one search in a folder that is thrown away."""
        asked = SearchRequest(self.low, price_windows=self.price_windows, **request)
        asked.check()
        with tempfile.TemporaryDirectory() as folder, open_runner() as runner:
            run = Run(Path(folder) / "run", KIND)
            run.begin()
            member, setting = Member(self.name, self.model, self.tokens), Bench(runner, seed, self.progress)
            return SearchJob(member, asked, setting).execute(run)

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
        """Every subset of twelve sites low, and how far what each strategy comes to is from the best, in nats."""
        first, *middle, last = range(self.model.blocks)
        rules = (f"{first}.{CLOSED}: float", f"{last}.{CLOSED}: float", *(f"{block}.*: float" for block in middle))
        request = SearchRequest(self.low, rules=rules)
        base = draft_plan(self.model, request.as_plan_request())
        space = make_space(base, request.options())
        with open_runner() as runner:
            measurer = Bench(runner).measurer(Member(self.name, self.model, self.tokens), self.tokens[1], None)
            every = Driver(space, measurer.meter(TrialLog(None, {})), progress=self.progress)
            every.run(_Every(), Goal((), ()))
        # Shares of the twelve sites' parameters, as ratios of the whole model's.
        ratios = [share * space.ratio((0,) * len(space.units)) for share in RATIOS]
        budgets = tuple(f"ratio={ratio:.9f}" for ratio in ratios)
        found = {name: self.search(0, strategy=name, budgets=budgets, rules=rules) for name in STRATEGIES}
        best = [min(t.damage.nats for t in every.trials if t.ratio >= ratio - 1e-9) for ratio in ratios]
        return {
            "plans": len(every.trials),
            "shares": RATIOS,
            "optimum": best,
            "above_optimum": {
                name: [r.trials[x.trial].damage.nats - y for x, y in zip(r.reached, best, strict=True)]
                for name, r in found.items()
            },
        }


class _Every:
    """Every choice there is."""

    METRIC: str = ""
    DRAWS: bool = False

    def propose(self, space: Space, goal: Goal) -> Asking:
        choices = product(range(len(space.options)), repeat=len(space.units))
        yield [Proposal(choice, "every") for choice in choices]


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


def main() -> None:
    """Run the searches of every model and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders or names of reference models")
    parser.add_argument("--low", default="w=mxint4 a=mxint4")
    parser.add_argument("--metric", default="fisher")
    parser.add_argument("--calibration", help="text, where the models are not the reference models")
    parser.add_argument("--samples", type=int, default=64, help="selection windows")
    parser.add_argument("--report-samples", type=int, default=128)
    parser.add_argument("--price-windows", type=int, default=4, help="selection windows that prices come from")
    parser.add_argument("--seeds", type=int, default=3, help="of random search")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--optimum", action="store_true", help="all plans of twelve sites instead")
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    with StageProgress() as bars:
        for name in asked.models:
            bench = Subject(name, asked, bars)
            runs = [bench.optimum()] if asked.optimum else [bench.compare(s, asked.metric) for s in range(asked.seeds)]
            found[name] = runs
    result = {"low": asked.low, "metric": asked.metric, "models": found, "machine": common.machine()}
    common.emit(result, asked.output)


if __name__ == "__main__":
    main()

"""What MixQuant's rule loses beside predicted search, in as many bits: weights alone, a menu of 2 to 8 bits.

    python benchmarks/mixquant.py py-64 py-128 -o mixquant.json

MixQuant is asked for each budget of bits; predicted search for the bits that its plan came to, and `mixquant` with the
prices of `fisher` as well, which is its rule with another score. Prices come from selection windows, losses from the
report tokens; differences are paired, ± one standard error over windows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import common
import torch

from qarat.ground.runtime import Runtime
from qarat.jobs.bench import Bench, Member
from qarat.jobs.runners import open_runner
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.stages.choose.driver import Driver
from qarat.stages.choose.space import Space, make_space
from qarat.stages.choose.strategies import STRATEGIES
from qarat.stages.choose.strategies.base import Goal
from qarat.stages.choose.trials import PlanMeter, TrialLog
from qarat.stages.prices.pricing import price
from qarat.values.parsing import parse_scheme
from qarat.values.plans import assign
from qarat.values.records.prices import Menu
from qarat.values.records.scores import Evaluation, paired_difference
from qarat.values.records.search import SearchTrial
from qarat.values.requests.search import SearchRequest

ARMS = (("mixquant", "weight-error"), ("predicted", "fisher"), ("mixquant", "fisher"))


def main() -> None:
    """Every model at every budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--menu", default="int{}/channel", help="spelling of a weight with {} for the bits")
    parser.add_argument("--bits", type=float, nargs="+", default=[3.5, 4.5, 5.5, 6.5])
    parser.add_argument("--price-windows", type=int, default=16)
    parser.add_argument("--report-samples", type=int, default=128)
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    common.emit({name: compare(name, asked) for name in asked.models} | {"machine": common.machine()}, asked.output)


def compare(name: str, asked: argparse.Namespace) -> list[dict[str, object]]:
    """Losses of every arm at every budget of one model."""
    model = open_model(name, Runtime(threads=1))
    tokens = load_token_sets(model, samples=asked.price_windows, report_samples=asked.report_samples)
    low, *menu, high = [f"w={asked.menu.format(bits)}" for bits in range(2, 9)]
    request = SearchRequest(low, high, menu=tuple(menu), rewrites=False)
    base = assign(model.fingerprint, model.source_bits, model.sites(), low)
    space = make_space(base, tuple(map(request.option, request.ordered_schemes(base))), axis="bits")
    schemes = [parse_scheme(text) for text in (low, *menu, high)]
    menus = {metric: price(model, tokens[1], schemes, metric=metric) for metric in ("weight-error", "fisher")}
    with open_runner() as runner:
        measurer = Bench(runner).measurer(Member(name, model, tokens), tokens[2], None)
        meter = measurer.meter(TrialLog(None, {}))
        return [at(bits, space, menus, meter) for bits in asked.bits]


def at(bits: float, space: Space, menus: dict[str, Menu], meter: PlanMeter) -> dict[str, object]:
    """Losses of every arm at one budget."""
    point, found = -bits, dict[str, tuple[SearchTrial, Evaluation]]()
    for strategy, metric in ARMS:
        driver = Driver(space, meter)
        goal = Goal((point,), (), space.predictions(menus[metric]), space.prediction_errors(menus[metric]))
        driver.run(STRATEGIES.load(strategy), goal)
        (trial,) = driver.trials
        outcome = meter.loss(space.plan(trial.choice, strategy))
        found[f"{strategy} by {metric}"] = trial, outcome
        point = space.position(found["mixquant by weight-error"][0].choice)  # as many bits as MixQuant took
    line: dict[str, object] = {"asked": bits}
    base = found["mixquant by weight-error"][1]
    for arm, (trial, outcome) in found.items():
        more = paired_difference(outcome, base)
        line[arm] = {
            "bits": trial.bits,
            "label": trial.label,
            "loss": [trial.damage.nats, trial.damage.standard_error],
            "minus mixquant": [more.nats, more.standard_error],
        }
    return line


if __name__ == "__main__":
    main()

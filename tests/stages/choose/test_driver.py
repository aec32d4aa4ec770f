"""The driver and its log: each plan measured once, also over a kill."""

import math

import pytest

from qarat.ground.errors import UserError
from qarat.ground.runtime import no_progress
from qarat.stages.choose.driver import Driver
from qarat.stages.choose.outcomes import point_of, reach
from qarat.stages.choose.strategies import STRATEGIES
from qarat.stages.choose.strategies.base import Goal
from qarat.stages.choose.trials import PlanMeter, TrialLog
from qarat.values.budgets import AccuracyBudget, CostBudget, LossBudget, parse_budget
from qarat.values.records.origin import Difference, Provenance
from qarat.values.records.scores import Evaluation, Failure
from qarat.values.records.search import SearchTrial, interval_words

GOAL = Goal((0.5, 0.75), (), trials=10)
BLANK = Evaluation("x", Provenance("m", "t", "windows-11-bos", {}), "", (), (1,), ("a",))


def budgeted(text) -> LossBudget | CostBudget:
    budget = parse_budget(text)
    assert not isinstance(budget, AccuracyBudget)
    return budget


def costing(text) -> CostBudget:
    budget = parse_budget(text)
    assert isinstance(budget, CostBudget)
    return budget


def run(made, log, progress=no_progress):
    driver = Driver(made.space(), made.meter(log), progress=progress)
    driver.run(STRATEGIES.load("random"), GOAL)
    return driver


def test_no_plan_is_measured_twice(fake):
    made = fake()
    log = TrialLog(None, {})
    first = run(made, log)
    assert made.measured == 1 + len({t.choice for t in first.trials})
    again = run(made, log)
    assert again.trials == first.trials
    assert made.measured == 1 + len({t.choice for t in first.trials})


def test_a_killed_search_goes_on_to_the_same_result(fake, tmp_path):
    whole = run(fake(), TrialLog(tmp_path / "whole.jsonl", {"model": "m"}))
    made, path = fake(), tmp_path / "cut.jsonl"

    def kill(stage, done, wanted):
        if done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(made, TrialLog(path, {"model": "m"}), kill)
    path.write_bytes(path.read_bytes()[:-20])  # the kill came in the middle of a line
    before = made.measured
    after = run(made, TrialLog(path, {"model": "m"}))
    assert after.trials == whole.trials
    # The line that was cut short, and what had not been asked.
    assert made.measured - before == 1 + len({t.choice for t in whole.trials}) - 12


def test_a_log_of_another_search_is_refused(fake, tmp_path):
    path = tmp_path / "trials.jsonl"
    run(fake(), TrialLog(path, {"model": "m", "tokens": "t"}))
    with pytest.raises(UserError, match="another search: tokens"):
        TrialLog(path, {"model": "m", "tokens": "other"})
    path.write_text("not json\n")
    with pytest.raises(UserError, match="no trial log"):
        TrialLog(path, {"model": "m"})


def test_a_failed_trial_is_kept_with_its_plan_and_words(fake, tmp_path):
    made = fake()
    made.broken = made.sites[2].name
    driver = run(made, TrialLog(tmp_path / "t.jsonl", {}))
    failed = [t for t in driver.trials if t.failure]
    assert failed
    assert all(t.choice[2] == 0 and "nan" in t.failure for t in failed)
    assert all(t.failure for t in driver.trials if t.choice[2] == 0)


def test_a_float_model_that_cannot_be_measured_ends_the_search(fake):
    made = fake()
    with pytest.raises(UserError, match="float model cannot be measured"):
        Driver(made.space(), PlanMeter(lambda plans: [(0, Failure("", "nan"))], TrialLog(None, {}), BLANK))


def outcome(made, budget, name="predicted", points=(), losses=()):
    space = made.space()
    driver = Driver(space, made.meter())
    driver.run(STRATEGIES.load(name), Goal(points, losses, space.predictions(made.prices()), trials=10))
    return driver, reach(budgeted(budget), driver.trials, space, driver.float_loss)


def test_a_loss_budget_takes_the_cheapest_plan_within_it(fake):
    driver, reached = outcome(fake(seed=5), "nats+0.1", losses=(0.1,))
    chosen = driver.trials[reached.trial]
    assert chosen.damage.nats <= 0.1
    assert all(t.ratio <= chosen.ratio for t in driver.trials if t.damage.nats <= 0.1)
    # The curve between measured plans is a line, moved up and down by the errors.
    assert chosen.ratio - 0.1 < reached.low < reached.high < chosen.ratio + 0.1


def test_a_cost_budget_takes_the_plan_that_loses_least(fake):
    driver, reached = outcome(fake(seed=5), "ratio=0.6", points=(0.5, 0.6, 0.9))
    chosen = driver.trials[reached.trial]
    assert chosen.ratio >= 0.6
    assert chosen.damage.nats == min(t.damage.nats for t in driver.trials if t.ratio >= 0.6)


def test_bits_and_bytes_are_the_same_limit(fake):
    menu = ("w=int4/channel", "w=int8/channel", "float")
    made = fake(menu=menu)
    space = made.space()
    weights = sum(s.parameters for s in made.sites)
    in_bytes = costing(f"bytes={weights}")
    assert point_of(in_bytes, space) == point_of(costing("bits=8"), space) == -8


def test_two_schemes_are_ordered_by_bits_where_a_budget_asks_for_them(fake):
    made = fake(seed=5)
    space = made.space(axis="bits")
    driver = Driver(space, made.meter())
    budget = costing("bits=8")
    driver.run(
        STRATEGIES.load("predicted"),
        Goal((point_of(budget, space),), (), space.predictions(made.prices())),
    )
    chosen = driver.trials[reach(budget, driver.trials, space, driver.float_loss).trial]
    assert 7 < chosen.bits <= 8
    with pytest.raises(UserError, match="ordered by bits; search for it alone"):
        point_of(costing("ratio=0.5"), space)


def ends(made, nats, *trials, axis="ratio", error=0.01):
    """The interval within a budget of 0.1, given (how many units are low, loss) of each trial."""
    space = made.space(axis=axis)
    units = len(space.units)

    def trial(low, loss):
        choice = (0,) * low + (1,) * (units - low)
        return SearchTrial("x", choice, space.ratio(choice), space.bits(choice), 0.0, Difference(loss, error, 9))

    driver = Driver(space, made.meter())
    reached = reach(budgeted(nats), [trial(*t) for t in trials], space, driver.float_loss)
    return reached.low, reached.high


def test_an_interval_is_open_where_plans_lie_beyond_the_last_trial(fake):
    made = fake()
    units = len(made.space().units)
    low, high = ends(made, "nats+0.1", (units // 2, 0.05))
    assert 0 < low < 1
    assert math.isnan(high)
    assert interval_words(low, high) == f"{low:.3f} or more"
    fewest, most = ends(made, "nats+0.1", (units // 2, 0.05), axis="bits")
    assert math.isnan(fewest)
    assert interval_words(fewest, most) == f"{most:.3f} or less"
    # Nothing lies beyond everything low.
    low, high = ends(made, "nats+0.1", (units // 2, 0.05), (units, 0.09))
    assert low < high == pytest.approx(1)
    assert interval_words(low, high) == f"{low:.3f} to 1.000"
    assert interval_words(math.nan, math.nan) == ""
    # A text of one source gives no error, and so no interval.
    assert all(map(math.isnan, ends(made, "nats+0.1", (units // 2, 0.05), (units, 0.2), error=math.nan)))
    # A straight line to a plan far beyond the budget crosses it well beyond the plan that is chosen.
    low, high = ends(made, "nats+0.1", (units // 2, 0.05), (units, 0.2))
    assert low == made.space().ratio((0,) * (units // 2) + (1,) * (units - units // 2)) < high


def test_what_nothing_meets_says_the_best(fake):
    _, reached = outcome(fake(seed=5), "nats+0.000001", points=(0.9,))
    assert reached.trial == -1
    assert "no plan that was tried keeps it; the best, predicted at 0.9" in reached.verdict
    _, reached = outcome(fake(seed=5), "ratio=0.9", points=(0.5,))
    assert reached.trial == -1
    assert "the nearest has 0.5" in reached.verdict


def test_a_budget_within_the_noise_says_how_many_tokens_would_do(fake):
    made = fake()
    space = made.space()
    float_loss = Driver(space, made.meter()).float_loss
    lowest = (0,) * len(space.units)
    trial = SearchTrial("x", lowest, 1.0, 4.0, 0.0, Difference(0.005, 0.01, 3))
    reached = reach(budgeted("nats+0.0098"), [trial], space, float_loss)
    # Four times the tokens halve the error: 1.96 · 0.01 is twice the budget.
    assert reached.verdict.endswith("some 200 tokens would do, not 50")
    assert "tokens" not in reach(budgeted("nats+0.02"), [trial], space, float_loss).verdict

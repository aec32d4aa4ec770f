"""Every strategy on the made-up model: what it proposes, what it finds, and that it always does the same."""

from itertools import product

import numpy as np
import pytest

from qarat.ground.errors import UserError
from qarat.stages.choose.driver import Driver
from qarat.stages.choose.strategies import STRATEGIES
from qarat.stages.choose.strategies.base import Goal, lower_in_order

POINTS = (0.5, 0.9)


def searched(made, name, goal_points=POINTS, losses=(), trials=12, seed=0):
    space = made.space()
    driver = Driver(space, made.meter())
    driver.run(
        STRATEGIES.load(name), Goal(goal_points, losses, space.predictions(made.prices()), trials=trials, seed=seed)
    )
    return space, driver


def best(space, trials, point):
    return min(t.damage.nats for t in trials if space.position(t.choice) >= point - 1e-9)


def optimum(made, space, point):
    """By going through every choice."""
    choices = product(range(len(space.options)), repeat=len(space.units))
    return min(made.loss(space.plan(c, "")) for c in choices if space.position(c) >= point - 1e-9)


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_a_strategy_reaches_the_ratio_and_does_the_same_again(fake, name):
    space, first = searched(fake(), name)
    _, second = searched(fake(), name)
    assert first.trials == second.trials
    for point in POINTS:
        assert any(space.position(t.choice) >= point for t in first.trials)


def test_predicted_is_optimal_where_losses_add_and_measures_a_point_once(fake):
    made = fake(seed=3)
    space, driver = searched(made, "predicted")
    assert len(driver.trials) == len(POINTS)
    for point in POINTS:
        assert best(space, driver.trials, point) == pytest.approx(optimum(made, space, point), rel=1e-9)


def test_among_what_errors_cannot_tell_apart_the_earlier_stays_high(fake):
    made = fake()
    space = made.space()
    assert space.depths.tolist() == pytest.approx([unit // 3 / 3 for unit in range(12)])  # three in each block
    size = np.array([[unit.parameters, 0.0] for unit in space.units])
    driver = Driver(space, made.meter())
    for errors, kept in ((None, None), (0.1 * size, [0] * 6 + [1] * 6)):
        driver.run(STRATEGIES.load("predicted"), Goal((0.5,), (), size, errors))
        low = [1 - option for option in driver.trials[-1].choice]
        assert driver.trials[-1].predicted == pytest.approx(float(size[:, 0] @ low))  # as priced, not as shifted
        assert kept is None or low == kept


@pytest.mark.parametrize("together", [0.0, 20.0])
def test_predicted_finds_the_edge_of_a_loss_budget(fake, together):
    made = fake(seed=5, together=together)
    budget = 0.1
    space, driver = searched(made, "predicted", (), (budget,))
    found = max(space.position(t.choice) for t in driver.trials if t.damage.nats <= budget)
    choices = product(range(2), repeat=len(space.units))
    reachable = max(space.position(c) for c in choices if made.loss(space.plan(c, "")) <= budget)
    assert len(driver.trials) <= 10
    # Where damages do not add the frontier itself is off; a site or two of twelve is what that may cost.
    assert found == pytest.approx(reachable, abs=1e-9 if not together else 0.15)


def test_predicted_measures_nothing_but_the_edge_where_all_fits(fake):
    space, driver = searched(fake(), "predicted", (), (10.0,))
    assert max(space.position(t.choice) for t in driver.trials) == 1.0
    assert len(driver.trials) == 1


def test_greedy_finds_the_optimum_of_equal_units(fake):
    made = fake(seed=1)
    space, driver = searched(made, "greedy", (1.0,))
    units = len(space.units)
    assert len(driver.trials) == units * (units + 1) // 2
    assert any(t.ratio == pytest.approx(1) for t in driver.trials)


def test_a_menu_of_three_is_searched_by_bits(fake):
    menu = ("w=int4/channel", "w=int8/channel", "float")
    made = fake(seed=2, menu=menu)
    space, driver = searched(made, "predicted", (-8.0, -6.0))
    assert space.axis == "bits"
    assert all(t.bits <= 8.0 + 1e-9 for t in driver.trials)
    for name in ("random", "tpe"):
        _, other = searched(made, name, (-8.0,))
        assert best(space, driver.trials, -8.0) <= best(space, other.trials, -8.0) + 1e-12


def test_random_draws_every_unit_and_other_seeds_draw_others(fake):
    space, driver = searched(fake(), "random", (0.5,), trials=40)
    lowered = {u for t in driver.trials for u, option in enumerate(t.choice) if option == 0}
    assert lowered == set(range(len(space.units)))
    _, other = searched(fake(), "random", (0.5,), trials=40, seed=1)
    assert [t.choice for t in other.trials] != [t.choice for t in driver.trials]


def test_no_unit_is_lowered_that_the_ratio_does_not_need(fake):
    space = fake().space()
    order = list(range(len(space.units)))
    choice = lower_in_order(space, 0.5, order, [0] * len(order))
    for unit in order:
        if choice[unit] == 0:
            higher = (*choice[:unit], 1, *choice[unit + 1 :])
            assert space.position(higher) < 0.5 <= space.position(choice)


def test_equal_units_give_just_the_ratio_however_sums_round(fake):
    made = fake(shapes={"q_proj": (10, 10), "up_proj": (7, 10)}, blocks=12)
    space = made.space(layers=True)
    below = 0
    for seed in range(50):
        order = np.random.default_rng(seed).permutation(12).tolist()
        choice = lower_in_order(space, 0.5, order, [0] * 12)
        assert sorted(choice) == [0] * 6 + [1] * 6
        below += space.ratio(choice) < 0.5
    assert below  # else nothing was rounded, and nothing shown
    for name in ("predicted", "greedy"):
        driver = Driver(space, made.meter())
        driver.run(STRATEGIES.load(name), Goal((0.5,), (), space.predictions(made.prices())))
        assert max(t.choice.count(0) for t in driver.trials) == 6


def test_a_failed_trial_stops_no_strategy(fake):
    for name in STRATEGIES.names():
        made = fake(seed=4)
        made.broken = made.sites[0].name
        _, driver = searched(made, name)
        failed = [t for t in driver.trials if t.failure]
        assert all(t.choice[0] == 0 for t in failed)
        uniform = name == "mixquant"  # with one scheme that quantizes, its rule lowers all at once
        assert failed or name == "predicted"
        assert len(failed) < len(driver.trials) or name == "predicted" or uniform


def test_an_unknown_strategy_names_the_nearest():
    with pytest.raises(UserError, match="predicted"):
        STRATEGIES.load("predict")

"""Allocation: the optimum is that of enumeration and of an integer-programming solver; bounds and limits hold."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from qarat.ground.errors import UserError
from qarat.maths import allocation
from qarat.maths.allocation import Problem, allocate, allocate_greedy, frontier


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Small problems, with ties, missing options and negative damages; 4096 choices at most."""
    options = draw(st.integers(1, 4))
    units = draw(st.integers(1, 12 if options < 3 else 6))
    # Of 1/1024 and whole numbers, so that sums have no rounding and comparisons are exact.
    damage = st.one_of(st.integers(-50, 1000).map(lambda n: n / 1024), st.sampled_from([0.0, math.inf]))
    cost = st.one_of(st.integers(0, 10_000), st.sampled_from([0, 32, 4096, 8192])).map(float)
    row = st.lists(damage, min_size=options, max_size=options).filter(lambda row: min(row) < math.inf)
    damages = draw(st.lists(row, min_size=units, max_size=units))
    costs = [draw(st.lists(cost, min_size=options, max_size=options)) for _ in range(units)]
    return Problem(np.array(damages), np.array(costs))


def within(problem: Problem, share: float) -> float:
    """A limit so far between the least cost and the most."""
    most = problem.costs.max(axis=1, where=np.isfinite(problem.costs), initial=0).sum()
    return math.floor(problem.least_cost() + share * (most - problem.least_cost()))


def enumerate_all(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Damage and cost of every choice there is."""
    choices = np.array(list(itertools.product(*(np.flatnonzero(np.isfinite(row)) for row in problem.damages))))
    units = np.arange(len(problem.damages))
    return problem.damages[units, choices].sum(axis=1), problem.costs[units, choices].sum(axis=1)


def like_a_model(units: int, seed: int) -> Problem:
    """Six schemes over a model's sites: bits with their scales, damages that fall by four a bit, up to noise."""
    random = np.random.default_rng(seed)
    weights = random.choice([4096 * 4096, 4096 * 11008, 4096 * 1024], units)[:, None]
    bits = np.array([3, 4, 6, 8, 8, 16])
    costs = weights * bits + weights // 32 * np.array([16, 8, 8, 1, 0, 0]) + 32 * (bits == 8)
    damages = random.lognormal(0, 2, (units, 1)) * 4.0**-bits * random.lognormal(0, 0.3, (units, 6))
    damages[:, -1] = 0
    return Problem(damages, costs)


# ---------------------------------------------------------------- the optimum


@given(problems(), st.floats(0, 1))
def test_no_choice_there_is_does_better(problem: Problem, share: float) -> None:
    limit = within(problem, share)
    damages, costs = enumerate_all(problem)
    found = allocate(problem, limit)
    assert found.damage == damages[costs <= limit].min()
    assert found.gap == 0
    assert found.cost <= limit
    assert (found.damage, found.cost) == (problem.damage(found.choice), problem.cost(found.choice))


@given(problems(), st.floats(0, 1))
def test_greedy_and_its_bound_enclose_the_optimum(problem: Problem, share: float) -> None:
    limit = within(problem, share)
    greedy, optimum = allocate_greedy(problem, limit), allocate(problem, limit)
    assert greedy.bound <= optimum.damage + 1e-12 <= greedy.damage + 1e-12
    assert greedy.cost <= limit
    assert (greedy.damage, greedy.cost) == (problem.damage(greedy.choice), problem.cost(greedy.choice))


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.3])
def test_an_integer_programming_solver_finds_the_same(share: float) -> None:
    random = np.random.default_rng(1)
    problem = Problem(random.uniform(-0.1, 1, (60, 5)), random.uniform(0, 1, (60, 5)))
    limit = problem.least_cost() + share * 30
    greedy, found = allocate_greedy(problem, limit), allocate(problem, limit)
    assert found.gap == 0
    # The solver's own tolerances are 1e-6.
    assert found.damage == pytest.approx(by_solver(problem, limit), abs=1e-6)
    assert greedy.bound == pytest.approx(by_solver(problem, limit, integral=False), abs=1e-6)
    assert greedy.damage - greedy.bound > 1e-4


def by_solver(problem: Problem, limit: float, *, integral: bool = True) -> float:
    """The least damage by HiGHS, or that of the linear relaxation."""
    units, options = problem.damages.shape
    damages, costs = problem.damages.ravel(), problem.costs.ravel()
    one_each = LinearConstraint(np.repeat(np.eye(units), options, axis=1), 1, 1)
    affordable = LinearConstraint(costs[None], -np.inf, limit)
    result = milp(
        damages,
        integrality=np.full(len(damages), int(integral)),
        bounds=Bounds(0, 1),
        constraints=[one_each, affordable],
        options={"mip_rel_gap": 0},
    )
    assert result.success
    return float(damages @ result.x)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.8])
def test_four_hundred_units_of_six_options_are_quick(share: float) -> None:
    problem = like_a_model(400, seed=0)
    begun = time.process_time()
    found = allocate(problem, within(problem, share))
    assert time.process_time() - begun < 2
    assert found.gap == 0
    assert allocate_greedy(problem, within(problem, share)).bound <= found.damage


def test_the_same_choice_every_time_also_among_equals() -> None:
    problem = Problem(np.array([[0.5, 0.0]] * 9), np.array([[1.0, 2.0]] * 9))
    assert len({allocate(problem, 14).choice for _ in range(3)}) == 1
    assert allocate(problem, 14).damage == 2.0


def test_too_many_partial_choices_give_an_honest_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    dear = random.uniform(1, 2, 14)  # damage is cost up to a constant: nothing tells the units apart
    problem = Problem(np.stack([dear + 0.1, 0 * dear], axis=1), np.stack([0 * dear, dear], axis=1))
    limit = 0.7 * dear.sum()
    optimum = allocate(problem, limit)
    assert optimum.gap == 0
    monkeypatch.setattr(allocation, "STATES", 20)
    found = allocate(problem, limit)
    assert found.gap > 0
    assert found.cost <= limit
    assert found.bound <= optimum.damage < found.damage


# ---------------------------------------------------------------- limits


@given(problems(), st.lists(st.floats(0, 1), min_size=1, max_size=6))
@settings(max_examples=50)
def test_a_frontier_is_monotone_and_optimal_throughout(problem: Problem, shares: list[float]) -> None:
    limits = [within(problem, share) for share in shares]
    found = frontier(problem, limits)
    assert [a.damage for a in found] == [allocate(problem, limit).damage for limit in limits]
    assert all(a.cost <= limit for a, limit in zip(found, limits, strict=True))
    ranked = [a for _, a in sorted(zip(limits, found, strict=True), key=lambda pair: pair[0])]
    assert all(a.damage > b.damage or a.choice == b.choice for a, b in itertools.pairwise(ranked))


def test_the_least_cost_can_be_met_exactly_and_nothing_below() -> None:
    problem = Problem(np.array([[0.3, 0.1], [0.2, 0.0]]), np.array([[10.0, 30.0], [20.0, 40.0]]))
    assert allocate(problem, 30).choice == (0, 0)
    assert allocate(problem, math.inf).choice == (1, 1)
    for solve in (allocate, allocate_greedy):
        for limit in (29.5, math.nan):
            with pytest.raises(UserError, match=rf"at most {limit}: the least reachable cost is 30$"):
                solve(problem, limit)
    with pytest.raises(UserError, match="at most 5, 7: the least reachable cost is 30"):
        frontier(problem, [5, 30, 7])


def test_damages_below_zero_are_taken_where_they_cost_nothing_else() -> None:
    problem = Problem(np.array([[-0.01, 0.0], [0.2, -0.03]]), np.array([[4.0, 16.0], [4.0, 16.0]]))
    assert allocate(problem, 20).choice == (0, 1)
    assert allocate(problem, 20).damage == -0.04


# ---------------------------------------------------------------- bad input

ZEROS = [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("damages", "costs", "message"),
    [
        ([0.0, 0.1], [1.0, 2.0], r"must have the same shape \(units, options\)"),
        (ZEROS, [[1.0, 2.0]], r"damages \(2, 2\) and costs \(1, 2\)"),
        (np.empty((0, 2)), np.empty((0, 2)), r"must have the same shape"),
        ([[0.0, math.nan], [0.0, -math.inf]], ZEROS, r"damage of unit 0, option 1 \(nan\); unit 1, option 1 \(-inf\)"),
        (ZEROS, [[0.0, -1.0], [math.inf, 1.0]], r"cost of unit 0, option 1 \(-1\); unit 1, option 0 \(inf\)"),
        ([[math.inf] * 2, [0.0, 0.1]], ZEROS, "no option at all for unit 0"),
        ([[math.nan] * 2] * 4, [[0.0] * 2] * 4, "unit 2, option 0 .nan. and 3 more"),
    ],
)
def test_impossible_problems_name_every_offender(damages: object, costs: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Problem(np.array(damages), np.array(costs))


def test_the_cost_of_an_option_there_is_not_does_not_matter() -> None:
    problem = Problem(np.array([[0.1, math.inf]]), np.array([[3.0, math.nan]]))
    assert allocate(problem, 3).choice == (0,)


def test_a_problem_does_not_change_with_the_arrays_it_was_made_of() -> None:
    damages = np.array(ZEROS)
    problem = Problem(damages, np.array(ZEROS))
    damages[0, 0] = 1
    assert allocate(problem, 0).damage == 0
    with pytest.raises(ValueError, match="read-only"):
        problem.damages[0, 0] = 1

"""MixQuant's rule on errors of real weights: the ratios it lives on, what it chooses, and the budgets it meets."""

import numpy as np
import pytest
import torch

from qarat.jobs.checks import metric_of
from qarat.maths.tensors import quantize_tensor
from qarat.stages.choose.driver import Driver
from qarat.stages.choose.strategies import STRATEGIES
from qarat.stages.choose.strategies.base import Goal
from qarat.stages.choose.strategies.mixquant import error_ratios
from qarat.values.parsing import parse_tensor_scheme
from qarat.values.requests.search import SearchRequest

MENU = tuple(f"w=int{bits}/tensor/asymmetric" for bits in range(2, 9))


def squared_error(weight, spelling):
    quantized = quantize_tensor(weight, parse_tensor_scheme(spelling.removeprefix("w="), "w"))
    return float((quantized.dequantize() - weight).double().square().mean())


def errors_of(space):
    """Round-off of Gaussian weights, of which every second holds outliers: min-max grids then starve the rest."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for unit in range(len(space.units)):
        weight = torch.randn(64, 64, generator=draw)
        weight[0, 0] = 6.0 * (1 + unit % 3)
        rows.append([squared_error(weight, spelling) for spelling in MENU] + [0.0])
    return np.array(rows)


def made_space(fake):
    made = fake(menu=(*MENU, "float"))
    made.price = lambda name, scheme: (
        0.0 if str(scheme) == "float" else made.costs[name] / 2.0 ** (scheme.weight.number_format.bits)
    )
    return made, made.space()


def test_the_error_of_a_gaussian_grows_fourfold_a_bit():
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    errors = [squared_error(weight, spelling) for spelling in reversed(MENU)]  # 8 bits to 2
    published = [1, 4, 16, 68, 289]
    assert [error / errors[0] for error in errors[:5]] == pytest.approx(published, rel=0.03)


def test_every_unit_gets_the_fewest_bits_that_keep_the_bound(fake):
    made, space = made_space(fake)
    errors = errors_of(space)
    driver = Driver(space, made.meter())
    driver.run(STRATEGIES.load("mixquant"), Goal((-7.0, -5.5, -4.0), (), errors))
    assert len({trial.choice for trial in driver.trials}) == 3
    for trial in driver.trials:
        multiplier = float(trial.label.removeprefix("QEM ")) * (1 + 1e-3)  # as printed, four digits
        feasible = [[b for b, e in enumerate(row) if e <= multiplier * row[6]] for row in errors.tolist()]
        assert list(trial.choice) == [min(options) for options in feasible]
        assert trial.predicted == pytest.approx(float(errors[range(12), list(trial.choice)].sum()))


@pytest.mark.parametrize("point", [-7.0, -5.5, -4.0, -3.0])
def test_no_smaller_multiplier_meets_the_budget(fake, point):
    made, space = made_space(fake)
    ratios = error_ratios(space, errors_of(space))
    driver = Driver(space, made.meter())
    driver.run(STRATEGIES.load("mixquant"), Goal((point,), (), errors_of(space)))
    (trial,) = driver.trials
    assert trial.bits <= -point + 1e-9
    used = max(ratios[unit, option] for unit, option in enumerate(trial.choice))
    smaller = tuple((ratios < used * (1 - 1e-12)).argmax(axis=1).tolist())
    assert space.bits(smaller) > -point


def test_a_loss_budget_is_met_at_its_edge(fake):
    made, space = made_space(fake)
    driver = Driver(space, made.meter())
    budget = 0.02
    driver.run(STRATEGIES.load("mixquant"), Goal((), (budget,), errors_of(space)))
    within = [t for t in driver.trials if t.damage.nats <= budget]
    beyond = [t for t in driver.trials if t.damage.nats > budget]
    assert max(space.position(t.choice) for t in within) < min(space.position(t.choice) for t in beyond)
    assert len(driver.trials) <= 8


def test_a_multiplier_below_one_leaves_everything_high(fake):
    made, space = made_space(fake)
    driver = Driver(space, made.meter())
    driver.run(STRATEGIES.load("mixquant"), Goal((-16.0,), (), errors_of(space)))
    assert [t.choice for t in driver.trials] == [space.highest]
    fp8 = fake(menu=("w=int4/channel", "w=int8/channel")).space(axis="bits")
    ratios = error_ratios(fp8, np.array([[4.0, 1.0]] * 12))
    assert ratios.tolist() == [[4.0, 1.0]] * 12


def test_predictions_come_from_weights_unless_told_otherwise():
    assert metric_of(SearchRequest(strategy="mixquant")) == "weight-error"
    assert metric_of(SearchRequest(strategy="mixquant", metric="fisher")) == "fisher"
    assert metric_of(SearchRequest()) == "fisher"
    assert metric_of(SearchRequest(strategy="random", metric="kl")) == ""

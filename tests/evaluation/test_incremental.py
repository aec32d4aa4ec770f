"""Measuring many plans with shared prefixes: the results of measuring each alone, at a lower cost."""

import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from qarat.conversion import WeightCache, build_block, quantize
from qarat.data import TokenSet
from qarat.errors import UserError
from qarat.evaluation.incremental import Meter
from qarat.evaluation.perplexity import measure_perplexity
from qarat.models import Model, open_model
from qarat.observation import observe
from qarat.plans import Plan, assign
from qarat.records import ActivationStats
from qarat.schemes import Scheme
from qarat.testing import tiny_checkpoint
from qarat.workspace import Runtime

BLOCKS, LENGTH, WINDOWS = 3, 16, 5
UNIT = WINDOWS * LENGTH  # tokens through one block
STATE = UNIT * 32 * 4  # bytes of the hidden states at one boundary
SPELLINGS = ["float", "w=int8/channel a=int8/tensor/static", "w=int4/g8", "w=int3/channel a=int8/token"]


def token_set(seed: int = 9) -> TokenSet:
    ids = torch.randint(2, 98, (WINDOWS, LENGTH), generator=torch.Generator().manual_seed(seed))
    return TokenSet("selection", f"windows-{LENGTH}-nobos", ids, ("text",) * WINDOWS, ("0" * 64,), ("text",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "three", blocks=BLOCKS)


@pytest.fixture
def model(folder: Path) -> Model:
    return open_model(str(folder), Runtime(batch_tokens=2 * LENGTH))  # three batches, the last shorter


@pytest.fixture(scope="module")
def stats(folder: Path) -> ActivationStats:
    return observe(open_model(str(folder)), token_set(1))


def meter_of(model: Model, stats: ActivationStats | None = None, keep_bytes: int | None = None) -> Meter:
    cache: WeightCache = {}
    return Meter(model, token_set(), lambda i, s: build_block(model, i, s, stats, cache), keep_bytes=keep_bytes)


def plan_of(model: Model, *spellings: str) -> Plan:
    """One scheme a block, for all its projections."""
    rules = [(f"model.layers.{i}.*_proj", spelling) for i, spelling in enumerate(spellings)]
    return assign(model.fingerprint, 32, model.sites(), "float", rules)


def random_plans(model: Model, count: int) -> list[Plan]:
    """Plans that share prefixes now and then, in random order, some of them twice, some with quantized products."""
    chance = random.Random(0)
    plans = [plan_of(model, *(chance.choice(SPELLINGS[:3]) for _ in range(BLOCKS))) for _ in range(count)]
    for i in range(0, count, 3):
        site = chance.choice([s.name for s in model.sites() if s.kind == "projection"])
        plans[i] = assign(model.fingerprint, 32, model.sites(), "w=int4/g8", [(site, SPELLINGS[3])])
    for i in range(1, count, 4):
        plans[i] = assign(model.fingerprint, 32, model.sites(), "w=int4/g8", [("1.qk", "l=int8/token r=int8/token")])
    return chance.sample(plans + plans[:4], count + 4)


def test_every_plan_measures_as_it_does_alone(model: Model, stats: ActivationStats):
    plans = random_plans(model, 16)
    meter = meter_of(model, stats)
    for number, plan in enumerate(plans):
        alone = measure_perplexity(quantize(model, plan, stats), token_set(), label=str(number))
        assert meter.measure(plan, str(number)) == alone
    assert len({plan.to_json() for plan in plans}) > 8
    assert meter.forwards < len(plans) * BLOCKS * UNIT


@pytest.mark.parametrize("states", [0, 1, 2, 4])
def test_a_bound_changes_the_cost_and_not_the_results(model: Model, stats: ActivationStats, states: int):
    plans = random_plans(model, 12)
    free, bound = meter_of(model, stats), meter_of(model, stats, keep_bytes=states * STATE)
    for number, plan in enumerate(plans):
        assert free.measure(plan, str(number)) == bound.measure(plan, str(number))
        assert sum(t.nbytes for kept in bound._kept.values() for t in kept) <= states * STATE
    assert free.forwards <= bound.forwards
    if states == 0:
        assert bound.forwards == len(plans) * BLOCKS * UNIT


def test_it_restarts_from_the_deepest_shared_prefix(model: Model):
    built: list[int] = []

    def build(index: int, schemes: Mapping[str, Scheme]) -> nn.Module:
        built.append(index)
        return build_block(model, index, schemes, None)

    meter = Meter(model, token_set(), build)
    a, b, c = "float", "w=int4/g8", "w=int3/channel"
    for spellings, blocks in [
        ((a, a, a), [0, 1, 2]),
        ((a, a, b), [2]),
        ((a, a, a), [2]),  # the states behind the last block are not kept, those in front of it are
        ((a, b, a), [1, 2]),
        ((a, b, c), [2]),
        ((b, a, a), [0, 1, 2]),  # the same schemes further on are no use behind another beginning
        ((b, b, a), [1, 2]),
        ((a, a, c), [2]),
    ]:
        built.clear()
        before = meter.forwards
        meter.measure(plan_of(model, *spellings), "x")
        assert built == blocks
        assert meter.forwards - before == len(blocks) * UNIT


def test_nothing_is_run_before_the_first_plan(model: Model):
    assert meter_of(model).forwards == 0


def test_the_least_recently_used_states_go_first(model: Model):
    meter = meter_of(model, keep_bytes=3 * STATE)  # the entrance and two boundaries: one plan's
    one, other = plan_of(model, "float", "float", "float"), plan_of(model, "w=int4/g8", "float", "float")
    costs = []
    for plan in (one, one, other, other, one):
        before = meter.forwards
        meter.measure(plan, "x")
        costs.append((meter.forwards - before) // UNIT)
    assert costs == [3, 1, 3, 1, 3]


def test_a_site_is_told_from_its_neighbour(model: Model):
    """Two plans with the same schemes at other sites share no prefix."""
    meter = meter_of(model)
    plans = [assign(model.fingerprint, 32, model.sites(), "float", [(s, "w=int2/channel")]) for s in ("0.q", "0.k")]
    found = [meter.measure(plan, "x") for plan in plans]
    assert found[0].nats != found[1].nats
    assert meter.forwards == 2 * BLOCKS * UNIT


def test_nan_is_reported_with_the_label(model: Model):
    class Broken(nn.Module):
        def forward(self, hidden: torch.Tensor, **_: object) -> torch.Tensor:
            return hidden * float("nan")

    meter = Meter(model, token_set(), lambda *_: Broken())
    with pytest.raises(UserError, match=r"k=2: the loss of window 0 \(text\) is nan"):
        meter.measure(plan_of(model), "k=2")

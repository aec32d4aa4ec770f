"""Measuring many plans with shared prefixes: the results of measuring each alone, at a lower cost."""

import random
import weakref
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.measure.meter import Meter, prefix_order
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.observe import observe
from qarat.stages.quantize import WeightCache, build_block, quantize
from qarat.testing import tiny_checkpoint
from qarat.values.plan_files import encode_plan
from qarat.values.plans import Plan, assign
from qarat.values.records.scores import Failure
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import Scheme

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
    cache = WeightCache(1 << 30)
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
    assert len({encode_plan(plan) for plan in plans}) > 8
    assert meter.forwards < len(plans) * BLOCKS * UNIT


def test_many_plans_measure_as_each_does(model: Model, stats: ActivationStats):
    plans = random_plans(model, 16)
    labels = [f"number {n}" for n in range(len(plans))]
    one, many = meter_of(model, stats), meter_of(model, stats)
    assert many.measure_many(plans, labels) == [one.measure(p, label) for p, label in zip(plans, labels, strict=True)]
    different = len({spelt(plan) for plan in plans})
    assert many.forwards == distinct_steps(plans) * UNIT
    assert one.forwards == (distinct_steps(plans) + len(plans) - different) * UNIT  # the last block of what comes again
    assert many.measure_many(plans, labels) == one.measure_many(plans, labels)
    assert many.forwards == (distinct_steps(plans) + different) * UNIT


def spelt(plan: Plan) -> tuple[str, ...]:
    return tuple(str([str(scheme) for scheme in plan.block(index).values()]) for index in range(BLOCKS))


def distinct_steps(plans: list[Plan]) -> int:
    """Blocks to run if none is run twice behind the same beginning."""
    return len({spelt(plan)[: k + 1] for plan in plans for k in range(BLOCKS)})


@pytest.mark.parametrize("states", [0, 1, 2, 5, 12, 100])
def test_a_bound_changes_the_cost_and_not_the_results(
    model: Model, stats: ActivationStats, states: int, monkeypatch: pytest.MonkeyPatch
):
    plans = random_plans(model, 12)
    labels = [str(n) for n in range(len(plans))]
    free = meter_of(model, stats)
    wanted = free.measure_many(plans, labels)
    held = watch_states(model, monkeypatch)
    bound = meter_of(model, stats, keep_bytes=states * STATE)
    assert bound.measure_many(plans, labels) == wanted
    # A batch that a block is at work on lies beside what is held.
    assert max(held.peaks) <= max(1, states) * STATE + STATE // WINDOWS * 2
    assert held.now() <= states * STATE
    assert bound.measure_many(plans[::-1], labels[::-1]) == wanted[::-1]
    assert free.forwards <= bound.forwards
    if states == 0:
        assert bound.forwards == 2 * len({spelt(plan) for plan in plans}) * BLOCKS * UNIT


class Held:
    """Bytes of all hidden states that are alive, and how many they were after each block."""

    def __init__(self) -> None:
        self.alive = weakref.WeakSet[torch.Tensor]()
        self.peaks = [0]

    def now(self) -> int:
        return sum(t.nbytes for t in list(self.alive))

    def add(self, states: torch.Tensor) -> torch.Tensor:
        self.alive.add(states)
        self.peaks.append(self.now())
        return states


def watch_states(model: Model, monkeypatch: pytest.MonkeyPatch) -> Held:
    held = Held()
    embed, run_block = model.embed, model.run_block
    monkeypatch.setattr(model, "embed", lambda tokens: held.add(embed(tokens)))

    def run(index: int, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        return held.add(run_block(index, block, hidden))

    monkeypatch.setattr(model, "run_block", run)
    return held


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


def costs(meter: Meter, *groups: list[Plan]) -> list[int]:
    """Blocks run for each group of plans."""
    found: list[int] = []
    for plans in groups:
        before = meter.forwards
        meter.measure_many(plans, ["x"] * len(plans))
        found.append((meter.forwards - before) // UNIT)
    return found


def test_the_least_recently_used_states_go_first(model: Model):
    meter = meter_of(model, keep_bytes=2 * STATE)  # one plan's two boundaries
    one, other = (plan_of(model, spelling, "float", "float") for spelling in ("w=int4/g8", "w=int3/channel"))
    assert costs(meter, [one], [one], [other], [other], [one]) == [3, 1, 3, 1, 3]


def test_float_states_go_last(model: Model):
    meter = meter_of(model, keep_bytes=2 * STATE)
    one, other = (plan_of(model, spelling, "float", "float") for spelling in ("w=int4/g8", "w=int3/channel"))
    late = plan_of(model, "float", "float", "w=int4/g8")
    assert costs(meter, [plan_of(model)], [one], [one], [other], [one], [late]) == [3, 3, 1, 3, 3, 1]


def test_plans_join_where_they_begin(model: Model):
    """One plan begins at the entrance, one behind block 0, one behind block 1, which is known from before."""
    a, b = "float", "w=int4/g8"
    meter = meter_of(model)
    meter.measure(plan_of(model, a, a, a), "x")
    assert costs(meter, [plan_of(model, b, a, a), plan_of(model, a, b, a), plan_of(model, a, a, b)]) == [3 + 2 + 1]


def test_a_block_is_built_once_for_all_that_go_through_it(model: Model):
    built: list[int] = []

    def build(index: int, schemes: Mapping[str, Scheme]) -> nn.Module:
        built.append(index)
        return build_block(model, index, schemes, None)

    a, b = "float", "w=int4/g8"
    plans = [plan_of(model, *(a if n & bit else b for bit in (1, 2, 4))) for n in range(8)]
    Meter(model, token_set(), build).measure_many(plans, ["x"] * 8)
    assert built == [0, 0, 1, 1, 2, 2]


def test_progress_ends_with_every_plan(model: Model):
    seen: list[tuple[str, int, int]] = []
    plans = random_plans(model, 8)
    different = len({spelt(plan) for plan in plans})
    meter = meter_of(model, observe(model, token_set(1)), keep_bytes=4 * STATE)
    meter.measure_many(plans, ["x"] * len(plans), progress=lambda *now: seen.append(now))
    assert seen[0] == ("measure", 0, different)
    assert seen[-1] == ("measure", different, different)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_prefix_order_puts_neighbours_together(model: Model):
    a, b = "float", "w=int4/g8"
    plans = [plan_of(model, *beginning, last) for last in (a, b) for beginning in ((b, a), (a, b), (a, a))]
    ordered = [spelt(plans[i])[:2] for i in prefix_order(plans)]
    assert ordered[0::2] == ordered[1::2]


def test_a_site_is_told_from_its_neighbour(model: Model):
    """Two plans with the same schemes at other sites share no prefix."""
    meter = meter_of(model)
    plans = [assign(model.fingerprint, 32, model.sites(), "float", [(s, "w=int2/channel")]) for s in ("0.q", "0.k")]
    found = [meter.measure(plan, "x") for plan in plans]
    assert found[0].nats != found[1].nats
    assert meter.forwards == 2 * BLOCKS * UNIT


class Broken(nn.Module):
    def forward(self, hidden: torch.Tensor, **_: object) -> torch.Tensor:
        return hidden * float("nan")


def test_nan_is_reported_with_the_label(model: Model):
    meter = Meter(model, token_set(), lambda *_: Broken())
    with pytest.raises(UserError, match=r"k=2: the loss of window 0 \(text\) is nan"):
        meter.measure(plan_of(model), "k=2")


def test_a_failed_trial_leaves_the_others_alone(model: Model):
    """A block under int3 gives NaN; what is measured beside it comes out as without it."""

    def build(index: int, schemes: Mapping[str, Scheme]) -> nn.Module:
        if any("int3" in str(scheme) for scheme in schemes.values()):
            return Broken()
        return build_block(model, index, schemes, None)

    a, b, bad = "float", "w=int4/g8", "w=int3/channel"
    plans = [plan_of(model, *three) for three in ((a, bad, a), (a, b, a), (bad, b, b), (a, a, bad), (b, b, b))]
    found = Meter(model, token_set(), build).measure_many(plans, list("abcde"))
    for label, plan, outcome in zip("abcde", plans, found, strict=True):
        if label in "acd":
            assert outcome == Failure(label, f"{label}: the loss of window 0 (text) is nan")
        else:
            assert outcome == meter_of(model).measure(plan, label)


def test_after_an_error_it_measures_as_before(model: Model):
    class StopError(Exception):
        pass

    faults = iter([True])

    def build(index: int, schemes: Mapping[str, Scheme]) -> nn.Module:
        if index == 2 and next(faults, False):
            raise StopError
        return build_block(model, index, schemes, None)

    plans = [plan_of(model, *three) for three in (("float",) * 3, ("w=int4/g8", "float", "float"))]
    meter = Meter(model, token_set(), build, keep_bytes=2 * STATE)
    with pytest.raises(StopError):
        meter.measure_many(plans, ["a", "b"])
    assert meter.measure_many(plans, ["a", "b"]) == meter_of(model).measure_many(plans, ["a", "b"])

"""Passes shared out to workers: the same to the byte as one process, whoever has how many windows."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from qarat.ground.errors import UserError
from qarat.ground.runtime import no_progress
from qarat.jobs.bench import make_meter
from qarat.jobs.open_any import Opened, Quantizing
from qarat.jobs.replicas import Replica
from qarat.jobs.runners import open_runner
from qarat.jobs.runners.base import Runner, ThisProcess
from qarat.jobs.spreading import PARTS, Spread, _grouped, cut
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.measure.divergence import measure_divergence
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.measure.tasks.harness_model import wrap_model
from qarat.stages.observe import observe
from qarat.stages.prices.pricing import price
from qarat.testing import tiny_documents
from qarat.values.parsing import parse_scheme
from qarat.values.plans import assign
from qarat.values.records.files import encode_record
from qarat.values.records.streams import ActivationStats

NO_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: qarat[ray]")
SUMS = {"position_maxima", "channel_square"}
KINDS = {"parts": 1, "processes": 2, "ray": 2}


@pytest.fixture(scope="module", params=["parts", "processes", pytest.param("ray", marks=NO_RAY)])
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """This process with parts all the same, two processes, or two actors."""
    with open_runner(KINDS[request.param], "local" if request.param == "ray" else None) as opened:
        yield opened


@pytest.fixture
def model(tiny_llama: Path) -> Model:
    """In batches of two windows."""
    model = open_model(str(tiny_llama))
    return open_model(str(tiny_llama), type(model.runtime)("cpu", batch_tokens=32))


@pytest.fixture
def tokens() -> TokenSet:
    """Seven windows: three batches of two and one of one."""
    ids = torch.randint(2, 98, (7, 16), generator=torch.Generator().manual_seed(0))
    return TokenSet("selection", "windows-16-nobos", ids, tuple("abcdefg"), ("0" * 64,), ("a",))


def spread_over(model: Model, runner: Runner) -> Spread:
    return Spread(runner, Replica(model, str(model.folder), share=runner.share))


def test_parts_hold_all_windows_in_order_and_whole_batches(tokens: TokenSet):
    parts = cut(tokens, 32, 3)
    assert [(part.first, len(part.tokens)) for part in parts] == [(0, 2), (2, 2), (4, 3)]
    assert torch.equal(torch.cat([part.tokens.windows for part in parts]), tokens.windows)
    assert sum((part.tokens.sources for part in parts), ()) == tokens.sources
    assert [len(part.tokens) for part in cut(tokens, 32, 99)] == [2, 2, 2, 1]
    assert [len(part.tokens) for part in cut(tokens, 1, 1)] == [7]


def sums_left_out(stats: ActivationStats) -> dict[str, Any]:
    """What is the same to the byte whatever the parts."""
    fields = ("maximum", "peaks", "ratio", "typical_maximum", "median_energy", "element_median", "tokens", "width")
    return {
        name: (
            *(getattr(stream, field) for field in fields),
            *(array.tolist() for key, array in stream.arrays.items() if key not in SUMS),
        )
        for name, stream in stats.streams.items()
    }


@pytest.mark.parametrize("prefix", [0, 2])
def test_observing(runner: Runner, model: Model, tokens: TokenSet, prefix: int):
    tokens.windows[:, :2] = 5
    alone = observe(model, tokens, prefix=prefix, sampled_windows=3)
    told: list[tuple[str, int, int]] = []
    more: dict[str, Any] = {"collect": spread_over(model, runner).collect, "progress": lambda *now: told.append(now)}
    shared = observe(model, tokens, prefix=prefix, sampled_windows=3, **more)
    assert sums_left_out(shared) == sums_left_out(alone)
    for name, stream in alone.streams.items():
        for key in SUMS & stream.arrays.keys():
            torch.testing.assert_close(shared.streams[name].arrays[key], stream.arrays[key], rtol=1e-6, atol=0)
    assert told[0] == ("observe", 0, 4)
    assert told[-1] == ("observe", 4, 4)


def test_observing_is_the_same_to_the_byte_for_any_number_of_workers(runner: Runner, model: Model, tokens: TokenSet):
    one = observe(model, tokens, collect=spread_over(model, ThisProcess()).collect)
    assert encode_record(observe(model, tokens, collect=spread_over(model, runner).collect)) == encode_record(one)


def test_a_stream_that_overflows_is_named_with_its_window_in_the_whole_set(model: Model, tokens: TokenSet):
    def overflow(tokens: torch.Tensor) -> torch.Tensor:
        hidden = embed(tokens)
        hidden[(tokens == 97).all(1)] = torch.inf
        return hidden

    embed, tokens.windows[5] = model.embed, 97
    model.embed = overflow
    with pytest.raises(UserError, match=r"NaN or Inf in the stream .*, window 5, token 0"):
        observe(model, tokens, collect=spread_over(model, ThisProcess()).collect)


@pytest.mark.parametrize("metric", ["fisher", "output-error", "gradient-error", "kl", "weight-error"])
def test_prices_are_the_same_to_the_byte(runner: Runner, model: Model, tokens: TokenSet, metric: str):
    stats = observe(model, tokens)
    schemes = [parse_scheme("w=int4/g8"), parse_scheme("w=int8/channel a=int8/tensor/static")]
    alone = price(model, tokens, schemes, stats, metric=metric, seed=3)
    shared = price(model, tokens, schemes, stats, metric=metric, seed=3, windows=spread_over(model, runner).prices)
    assert encode_record(shared) == encode_record(alone)


def test_prices_of_roundings_that_look_at_inputs(runner: Runner, model: Model, tokens: TokenSet):
    schemes, calibration = [parse_scheme("w=int4/g8/round-gptq")], tokens.part(slice(0, 5))
    alone = price(model, tokens, schemes, calibration=calibration)
    shared = price(model, tokens, schemes, calibration=calibration, windows=spread_over(model, runner).prices)
    assert encode_record(shared) == encode_record(alone)


def test_losses_are_the_same_to_the_byte(runner: Runner, model: Model, tokens: TokenSet):
    alone = measure_perplexity(model, tokens, label="float")
    shared = measure_perplexity(model, tokens, label="float", losses=spread_over(model, runner).losses)
    assert encode_record(shared) == encode_record(alone)


@pytest.mark.parametrize("runner", ["processes", pytest.param("ray", marks=NO_RAY)], indirect=True)
def test_the_windows_of_a_worker_that_is_killed_are_done_again(runner: Runner, model: Model, tokens: TokenSet):
    spread, alone = spread_over(model, runner), measure_perplexity(model, tokens, label="float")
    killed: list[int] = []

    def kill(stage: str, done: int, total: int) -> None:
        if 0 < done < total and not killed:
            killed.append(a_worker(runner))
            os.kill(killed[0], signal.SIGKILL)

    shared = measure_perplexity(model, tokens, label="float", losses=spread.losses, progress=kill)
    assert killed
    assert encode_record(shared) == encode_record(alone)


def a_worker(runner: Any) -> int:
    """The process id of one that is busy, or free."""
    crew = runner._crew
    if hasattr(crew, "_processes"):
        busy = [crew._processes[worker] for worker in runner._busy] or list(crew._processes.values())
        return busy[0].pid
    import ray

    worker = next(iter({*runner._busy, *runner._idle}))
    return ray.get(worker.__ray_call__.remote(lambda self: os.getpid()))


def test_another_model_than_the_described_one_is_a_mistake_of_ours(model: Model, tokens: TokenSet):
    spread = spread_over(model, ThisProcess())
    spread.replica.fingerprint = "another"
    with pytest.raises(ValueError, match="not over"):
        measure_perplexity(model, tokens, label="float", losses=spread.losses)


def test_up_to_four_workers_have_the_same_parts():
    assert PARTS == 2 * 4


def test_divergences_are_the_same_to_the_byte(runner: Runner, model: Model, tokens: TokenSet):
    plan = assign(model.fingerprint, 32, model.sites(), "w=int4/g8")
    quantizing = Quantizing(plan, None, None)
    folder = str(model.folder)
    low = Opened(quantizing(model), "low", "", folder, remake=quantizing)
    alone = measure_divergence(low.model, model, tokens, label="low")
    compare = Spread(runner, low.replica(runner.share)).comparing(Replica(model, folder, share=runner.share))
    assert encode_record(measure_divergence(low.model, model, tokens, label="low", compare=compare)) == encode_record(
        alone
    )
    losses = Spread(runner, low.replica(runner.share)).losses
    assert measure_perplexity(low.model, tokens, label="low", losses=losses) == measure_perplexity(
        low.model, tokens, label="low"
    )


def test_plans_are_measured_the_same_to_the_byte(runner: Runner, model: Model, tokens: TokenSet):
    stats = observe(model, tokens)
    spellings = ("float", "w=int4/g8", "w=int8/channel a=int8/tensor/static")
    plans = [replace(assign(model.fingerprint, 32, model.sites(), text), note=text) for text in spellings]
    alone = make_meter(model, tokens, stats).measure_many(plans, spellings)
    measure = spread_over(model, runner).measuring(model, tokens, stats, None, None)
    assert [outcome for _, outcome in measure(plans)] == alone
    assert list(measure(plans[1:])) == list(enumerate(alone[1:]))


def test_questions_are_shared_out_whole_and_answered_in_order(runner: Runner, model: Model):
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    text = tiny_documents(1)[0].text
    pairs = [(text[: 5 + n], text[40 : 44 + n % 5]) for n in range(27)]
    requests = [instance("loglikelihood", {}, pair, n, metadata=("task", n // 3, 1)) for n, pair in enumerate(pairs)]
    alone = wrap_model(model, "", no_progress).loglikelihood(requests)
    shared = spread_over(model, runner).answering(model)("loglikelihood", requests, no_progress)
    assert [nats for nats, _ in shared] == pytest.approx([nats for nats, _ in alone], rel=1e-6)
    assert [greedy for _, greedy in shared] == [greedy for _, greedy in alone]
    groups = _grouped(requests, 4)
    assert [request for group in groups for request in group] == requests
    assert [len(group) for group in groups] == [6, 6, 6, 9]

"""Runners: items go out, results come back once each, and lost workers' items are done again.

What workers do here is `eval`, since they are processes that do not know this file's functions.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import multiprocessing
import os
import platform
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from msgspec.structs import replace

import qarat
from qarat.ground.errors import UserError
from qarat.jobs.bench import MeterSpec, make_meter
from qarat.jobs.replicas import Replica
from qarat.jobs.runners import open_runner
from qarat.jobs.runners.base import GROUP, Runner, WorkGroups
from qarat.jobs.runners.cluster import Actors, connected
from qarat.jobs.runners.pool import Lost, Pool
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.values.budgets import parse_size
from qarat.values.plans import assign
from qarat.values.records.scores import Evaluation

EVALUATE = functools.partial(functools.partial, map, eval)
KINDS = {"here": (1, None), "processes": (2, None), "ray": (2, "local")}
NO_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: qarat[ray]")


@pytest.fixture(scope="module", params=["here", "processes", pytest.param("ray", marks=NO_RAY)])
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    workers, ray = KINDS[request.param]
    with open_runner(workers, ray) as opened:
        yield opened


def answers(runner: Runner, items: list[str], make: Any = EVALUATE) -> list[Any]:
    found = dict(runner.map(make, items))
    assert sorted(found) == list(range(len(items)))
    return [found[i] for i in range(len(items))]


def workers_of(runner: Runner) -> set[int]:
    """The process ids of both workers, once both are there."""
    pids: set[int] = set()
    while len(pids) < 2:
        pids = set(answers(runner, ["__import__('time').sleep(0.05) or __import__('os').getpid()"] * 4))
    return pids


def skip_if_alone(runner: Runner) -> None:
    if runner.share == 1:
        pytest.skip("this process is no worker that can be lost")


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
def test_every_item_has_its_result(runner: Runner, count: int):
    seen: list[tuple[str, int, int]] = []
    found = dict(runner.map(EVALUATE, [f"{i} ** 2" for i in range(count)], progress=lambda *now: seen.append(now)))
    assert found == {i: i * i for i in range(count)}
    assert seen[0] == ("measure", 0, count)
    assert seen[-1] == ("measure", count, count)


def test_more_tensors_come_back_than_a_process_may_have_files_open(runner: Runner):
    """What a model's streams come to is thousands of them, and torch would send each as a file."""
    (sent,) = answers(runner, ["[__import__('torch').full((1,), i) for i in range(25_000)]"])
    assert [int(tensor) for tensor in sent] == list(range(25_000))


def test_neighbours_go_out_together(runner: Runner):
    pids = answers(runner, ["__import__('os').getpid()"] * 60)
    changes = sum(a != b for a, b in itertools.pairwise(pids))
    assert len(set(pids)) <= 2
    assert changes < 20


def test_workers_keep_what_they_made(runner: Runner):
    """The work made counts its calls, in every process by itself."""
    make = functools.partial(eval, "(lambda calls: lambda items: [calls.append(0) or len(calls) for _ in items])([])")
    first, again = answers(runner, ["x"] * 4, make), answers(runner, ["x"] * 4, make)
    assert max(again) > len(again) // 2
    assert not set(again).intersection([1]) or max(first) == 4  # a worker that had nothing to do at first
    assert min(answers(runner, ["x"] * 4, functools.partial(eval, make.args[0]))) == 1


def test_an_error_of_the_work_comes_at_once(runner: Runner):
    before = answers(runner, ["0"])
    with pytest.raises((RuntimeError, ZeroDivisionError), match="division by zero"):
        answers(runner, ["1", "1 / 0", "2"])
    assert answers(runner, ["0"]) == before


def test_a_worker_that_cannot_be_made_is_an_error_with_its_words(runner: Runner):
    with pytest.raises(UserError, match="'nonsense' is no size; write for example 8GB"):
        answers(runner, ["1"] * 8, functools.partial(parse_size, "keep", "nonsense"))
    assert answers(runner, ["1 + 1"]) == [2]


def test_a_worker_of_another_version_is_refused(runner: Runner, monkeypatch: pytest.MonkeyPatch):
    skip_if_alone(runner)
    with monkeypatch.context() as patch:
        patch.setattr("qarat.jobs.runners.base.__version__", "9.9")
        words = f"the worker on {platform.node()} has qarat {qarat.__version__}, the process that asks it qarat 9.9, "
        with pytest.raises(UserError, match=re.escape(words) + r".*; there: pip install qarat==9\.9$"):
            answers(runner, ["1 + 1"], functools.partial(EVALUATE))
    assert answers(runner, ["1 + 1"], functools.partial(EVALUATE)) == [2]


def test_a_list_left_early_leaves_nothing_behind(runner: Runner):
    for index, result in runner.map(EVALUATE, [f"'old {i}'" for i in range(40)]):
        assert result == f"old {index}"
        break
    assert answers(runner, [f"'new {i}'" for i in range(5)]) == [f"new {i}" for i in range(5)]


def test_a_lost_workers_items_are_done_again(runner: Runner, tmp_path: Path):
    skip_if_alone(runner)
    before = workers_of(runner)
    mark = tmp_path / "killed"
    kill = f"__import__('os').kill(__import__('os').getpid(), {signal.SIGKILL:d})"
    once = f"7 if __import__('os').path.exists({str(mark)!r}) else (open({str(mark)!r}, 'w'), {kill})"
    items = [once if i == 7 else str(i) for i in range(30)]
    assert answers(runner, items) == list(range(30))
    assert mark.exists()
    assert len(workers_of(runner) & before) == 1


def test_every_runner_measures_the_same(runner: Runner, tiny_model: Model):
    """Ray's also where a worker is killed midway."""
    ids = torch.randint(2, 98, (4, 16), generator=torch.Generator().manual_seed(0))
    tokens = TokenSet("selection", "windows-16-nobos", ids, tuple("abcd"), ("0" * 64,), ("a",))
    plans = [
        assign(tiny_model.fingerprint, 32, tiny_model.sites(), "w=int4/g8", [(s.name, "w=int8/channel a=int8/token")])
        for s in tiny_model.sites()
        if s.kind == "projection"
    ]
    labels = [str(number) for number in range(len(plans))]
    alone = make_meter(tiny_model, tokens, None).measure_many(plans, labels)
    named = [replace(plan, note=label) for plan, label in zip(plans, labels, strict=True)]

    replica = Replica(tiny_model, str(tiny_model.folder), share=runner.share)
    victim = min(workers_of(runner)) if isinstance(getattr(runner, "_crew", None), Actors) else None
    results = runner.map(MeterSpec(replica, tokens, None), named)
    found = dict([next(results)])
    if victim is not None:
        os.kill(victim, signal.SIGKILL)
    found |= dict(results)
    if victim is not None:
        assert victim not in workers_of(runner)
    for number, expected in enumerate(alone):
        outcome = found[number].outcome
        assert isinstance(outcome, Evaluation)
        assert isinstance(expected, Evaluation)
        assert outcome.nats == pytest.approx(expected.nats, rel=1e-6)
        assert msgspec.structs.replace(outcome, nats=expected.nats) == expected
    blocks = sum(measured.forwards for measured in found.values()) / ids.numel()
    assert len(plans) <= blocks <= len(plans) * tiny_model.blocks


@pytest.mark.parametrize("runner", ["processes"], indirect=True)
def test_items_that_kill_every_worker_are_an_error(runner: Runner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("qarat.jobs.runners.pool.LOSSES", 2)
    with pytest.raises(UserError, match=r"2 workers were lost over the same 1 items, the last one so: "):
        answers(runner, ["__import__('os')._exit(3)"])
    assert answers(runner, ["1 + 1"]) == [2]


@pytest.mark.parametrize("runner", [pytest.param("ray", marks=NO_RAY)], indirect=True)
def test_a_cluster_that_is_too_small_is_refused_and_left_as_it_is(runner: Runner):
    with pytest.raises(UserError, match="has 2 processors; ask for no more"), open_runner(3, "local"):
        pass
    assert answers(runner, ["1 + 1"]) == [2]


def blocked_signals(pid: int | None) -> int:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("needs /proc")
    return int(next(line for line in status.read_text().splitlines() if line.startswith("SigBlk:")).split()[1], 16)


def test_ctrl_c_stops_the_workers():
    def interrupted() -> None:
        with open_runner(2) as runner:
            for _ in runner.map(EVALUATE, ["1 + 1"]):
                (process,) = multiprocessing.active_children()
                # Ctrl-C reaches all of a terminal's processes; only this one is to act on it.
                assert blocked_signals(process.pid) & (1 << (signal.SIGINT - 1))
                signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not multiprocessing.active_children()


def test_groups_cover_all_and_shrink():
    groups = WorkGroups(200, workers=3)
    taken = []
    while groups:
        taken.append(groups.take().indices)
    assert [i for indices in taken for i in indices] == list(range(200))
    sizes = [len(indices) for indices in taken]
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (GROUP, 1)


def test_no_workers():
    with pytest.raises(UserError, match="`workers` 0: at least one"), open_runner(0):
        pass


@NO_RAY
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:999999"])
def test_an_address_where_nothing_answers(address: str):
    with pytest.raises(UserError, match=f"`ray` {address}: nothing answers there"), open_runner(1, address):
        pass


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'qarat\[ray\]'"), open_runner(2, "local"):
        pass


def test_machines_without_processors_have_no_workers(monkeypatch: pytest.MonkeyPatch):
    def node(alive: bool, **resources: float) -> dict[str, Any]:
        return {"Alive": alive, "Resources": resources}

    nodes = [
        node(True, memory=1.0),
        node(True, CPU=0.0),
        node(True, CPU=4.0),
        node(True, CPU=4.0),
        node(False, CPU=4.0),
    ]
    ray = SimpleNamespace(
        __spec__=object(), is_initialized=lambda: True, cluster_resources=lambda: {"CPU": 8.0}, nodes=lambda: nodes
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    with connected("local", 6) as share:
        assert share == 3


class Stillborn:
    """A crew whose workers end before they are ready."""

    hired = 0

    def hire(self) -> int:
        self.hired += 1
        return self.hired

    def give(self, worker: Any, job: Any, items: Any) -> None:
        raise AssertionError

    def wait(self) -> tuple[int, Lost]:
        return self.hired, Lost("it imported the script again")

    def dismiss(self, worker: Any) -> None:
        pass


def test_workers_that_never_start_name_the_usual_reason():
    with pytest.raises(UserError, match=r"imported the script again.*if __name__ == '__main__':"):
        answers(Pool(Stillborn(), 1, share=1), ["1"])

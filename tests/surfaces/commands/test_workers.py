"""Verbs whose passes are shared out write what they write alone.

Workers are objects of this process here, which open models anew and get everything pickled, as other processes would.
"""

import functools
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qarat.ground.runtime import Runtime
from qarat.jobs.runners.base import Resident
from qarat.jobs.runners.pool import Job
from qarat.surfaces.options.groups import BUNDLED
from qarat.values.records.files import decode_record
from qarat.values.records.scores import Divergence, Evaluation

Qarat = Callable[..., Any]


class Residents:
    """A crew of objects."""

    questions: int

    def __init__(self) -> None:
        self._said: deque[tuple[Any, Any]] = deque()

    def hire(self) -> Resident:
        worker = Resident()
        self._said.append((worker, worker.ready()))
        return worker

    def give(self, worker: Resident, job: Job, items: Sequence[Any]) -> None:
        Residents.questions += len(items)
        self._said.append((worker, worker.run(job.number, job.make, items)))

    def wait(self) -> tuple[Any, Any]:
        return self._said.popleft()

    def dismiss(self, worker: Resident) -> None:
        pass


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own; in batches of two windows, so that there are parts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qarat.surfaces.commands.common.Runtime", functools.partial(Runtime, batch_tokens=64))
    monkeypatch.setattr("qarat.jobs.runners.Processes", Residents)
    Residents.questions = 0


@pytest.fixture
def words(tiny_llama: Path, tiny_text: Path) -> list[str]:
    sizes = ["--samples", "6", "--report-samples", "6", "--length", "32", "--threads", "1"]
    return [str(tiny_llama), "--calibration", str(tiny_text), *sizes]


def well(answer: Any) -> Any:
    assert answer.code == 0, answer.err
    return answer


def test_every_verb_that_walks(qarat: Qarat, words: list[str]) -> None:
    turned = [*words, "--transform", "hadamard"]
    wrote: dict[str, list[bytes]] = {}
    for workers in ([], ["--workers", "2"]):
        before = Residents.questions
        # One for both: sums are equal to 1e-6, so hashes of stats may differ.
        well(qarat("profile", *turned, "-o", "seen.safetensors", "--overwrite", *workers))
        if not workers:
            Path("seen.safetensors").rename("stats.safetensors")
        well(qarat("damage", *turned, "--overwrite", *workers))
        well(qarat("plan", *turned, "--budget", "nats+9", "--overwrite", *workers))
        if not workers:
            well(qarat("quantize", *turned[:1], "--transform", "hadamard"))
        well(qarat("evaluate", "quantized", *words[1:], "-o", "loss.json", "--overwrite", *workers))
        against = ["--against", words[0], "-o", "divergence.json", "--overwrite"]
        well(qarat("evaluate", "quantized", *words[1:], *against, *workers))
        schemes = [words[0], "w=int8/channel a=int8/tensor/static", *words[1:]]
        well(qarat("compare", *schemes, "-o", "comparison.json", "--overwrite", *workers))
        for name in ("menu.json", "plan.json", "plan.protection.json", "loss.json", "divergence.json"):
            wrote.setdefault(name, []).append(Path(name).read_bytes())
        assert (Residents.questions > before) == bool(workers)
    assert all(alone == shared for alone, shared in wrote.values())
    assert decode_record(Path("divergence.json"), Divergence).worst


def test_a_run(qarat: Qarat, words: list[str]) -> None:
    for out, workers in (("alone", []), ("shared", ["--workers", "2"])):
        well(qarat("run", *words, "--no-page", "-o", out, *workers))
    assert Residents.questions
    for name in ("evaluation-float", "evaluation-naive", "evaluation-plan"):
        alone, shared = (decode_record(Path(out) / f"{name}.json", Evaluation) for out in ("alone", "shared"))
        assert shared.nats == pytest.approx(alone.nats, rel=1e-6)
        assert msgspec.structs.replace(shared, nats=(), plan="") == msgspec.structs.replace(alone, nats=(), plan="")


def test_zero_shot(qarat: Qarat) -> None:
    pytest.importorskip("lm_eval")
    tasks = [BUNDLED, "--tasks", "code_continuation", "--limit", "6", "--threads", "1"]
    for out, workers in (("alone", []), ("shared", ["--workers", "2"])):
        well(qarat("evaluate", *tasks, "-o", f"{out}.json", *workers))
    assert Residents.questions == 4
    assert Path("shared.json").read_bytes() == Path("alone.json").read_bytes()

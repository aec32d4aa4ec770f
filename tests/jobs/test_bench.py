"""Measuring by a description: the model opened again elsewhere gives what the one that is open gives."""

import pickle
from pathlib import Path

import msgspec
import pytest
import torch

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.jobs.bench import MeterSpec, make_meter, measure_with
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.observe import observe
from qarat.testing import tiny_checkpoint
from qarat.values.plans import Plan, assign
from qarat.values.records.scores import Failure

SPELLINGS = ("float", "w=int4/g8", "w=int8/channel a=int8/tensor/static")


@pytest.fixture
def tokens() -> TokenSet:
    ids = torch.randint(2, 98, (4, 16), generator=torch.Generator().manual_seed(0))
    return TokenSet("selection", "windows-16-nobos", ids, tuple("abcd"), ("0" * 64,), ("a",))


def plans_of(model: Model) -> list[Plan]:
    return [assign(model.fingerprint, 32, model.sites(), spelling) for spelling in SPELLINGS]


def elsewhere(spec: MeterSpec) -> MeterSpec:
    return pickle.loads(pickle.dumps(spec))


def test_a_spec_gives_what_the_open_model_gives(tiny_model: Model, tokens: TokenSet):
    stats = observe(tiny_model, tokens)
    spec = MeterSpec(tiny_model, str(tiny_model.folder), tokens, stats)
    meter = make_meter(tiny_model, tokens, stats)
    wanted = measure_with(meter)(plans_of(tiny_model))
    assert spec()(plans_of(tiny_model)) == wanted
    assert elsewhere(spec)()(plans_of(tiny_model)) == wanted
    assert sum(measured.forwards for measured in wanted) == meter.forwards


def test_only_the_description_travels(tiny_model: Model, tokens: TokenSet):
    spec = MeterSpec(tiny_model, str(tiny_model.folder), tokens, None)
    assert spec.model is tiny_model
    assert elsewhere(spec).model is None
    assert len(pickle.dumps(spec)) < 5000


def test_a_relative_folder_is_found_from_anywhere(
    tiny_llama: Path, tokens: TokenSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tiny_llama.parent)
    model = open_model(tiny_llama.name)
    spec = elsewhere(MeterSpec(model, tiny_llama.name, tokens, None))
    monkeypatch.chdir(tmp_path)
    assert len(spec()(plans_of(model)[:1])) == 1


def test_another_model_by_the_same_name_is_refused(tiny_model: Model, tokens: TokenSet, tmp_path: Path):
    other = tiny_checkpoint(tmp_path / "other", seed=1)
    spec = elsewhere(MeterSpec(tiny_model, str(other), tokens, None))
    with pytest.raises(UserError, match=r"other on .* is another model \(.*put the same files there"):
        spec()


def test_workers_of_one_machine_share_its_memory_and_threads(
    tiny_llama: Path, tokens: TokenSet, monkeypatch: pytest.MonkeyPatch
):
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)

    def opened(threads: int, share: int) -> Runtime:
        model = open_model(str(tiny_llama), Runtime(memory=1 << 20, threads=threads))
        found = elsewhere(MeterSpec(model, str(tiny_llama), tokens, None, share=share))._open().runtime
        assert msgspec.structs.replace(found, memory=1 << 20, threads=threads) == model.runtime
        assert taken[-1] == found.threads
        return found

    assert [opened(6, share).memory for share in (1, 4)] == [1 << 20, 1 << 18]
    assert [opened(6, share).threads for share in (1, 3, 16)] == [6, 2, 1]
    assert [opened(0, share).threads for share in (1, 4)] == [6, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Ray says to an actor of one processor
    assert opened(0, 1).threads == 1


def test_failures_travel():
    failure = Failure("x", "the loss of window 0 (text) is nan")
    assert pickle.loads(pickle.dumps(failure)) == failure

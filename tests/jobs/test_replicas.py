"""Models described for workers: what is opened elsewhere is what is open here, or an error that says where."""

import functools
import pickle
import platform
import shutil
from pathlib import Path

import msgspec
import pytest
import torch

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.jobs.replicas import Replica
from qarat.jobs.transforming import apply_again
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.stages.transforms import parse_transform
from qarat.testing import tiny_checkpoint


def elsewhere(replica: Replica) -> Replica:
    return pickle.loads(pickle.dumps(replica))


def test_a_relative_folder_is_found_from_anywhere(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tiny_llama.parent)
    model = open_model(tiny_llama.name)
    replica = elsewhere(Replica(model, tiny_llama.name))
    monkeypatch.chdir(tmp_path)
    assert replica().fingerprint == model.fingerprint


def test_only_the_description_travels_and_what_was_opened_stays(tiny_model: Model):
    replica = Replica(tiny_model, str(tiny_model.folder))
    assert replica() is tiny_model
    assert elsewhere(replica).model is None
    assert elsewhere(replica)() is elsewhere(replica)()


def test_what_was_done_to_the_model_is_done_again(tiny_model: Model):
    turned = parse_transform("hadamard").apply(tiny_model, None)
    remake = functools.partial(apply_again, transforms=("hadamard",), made_from=(None,))
    assert elsewhere(Replica(turned, str(tiny_model.folder), remake=remake))().fingerprint == turned.fingerprint


def test_a_machine_without_the_model_says_which_it_is(tiny_model: Model, tmp_path: Path):
    gone = tiny_checkpoint(tmp_path / "gone")
    replica = Replica(tiny_model, str(gone))
    shutil.rmtree(gone)
    words = f"the worker on {platform.node()} cannot open the model: .*workers open .*/gone by that name, so put the"
    with pytest.raises(UserError, match=words):
        elsewhere(replica)()


def test_another_model_by_the_same_name_is_refused(tiny_model: Model, tmp_path: Path):
    other = tiny_checkpoint(tmp_path / "other", seed=1)
    replica = elsewhere(Replica(tiny_model, str(other)))
    with pytest.raises(UserError, match=r"other on .* is another model \(.*put the same files there"):
        replica()


def test_workers_of_one_machine_share_its_memory_and_threads(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)

    def opened(threads: int, share: int) -> Runtime:
        model = open_model(str(tiny_llama), Runtime(memory=1 << 20, threads=threads))
        found = elsewhere(Replica(model, str(tiny_llama), share=share)).opening.open().runtime
        assert msgspec.structs.replace(found, memory=1 << 20, threads=threads) == model.runtime
        assert taken[-1] == found.threads
        return found

    assert [opened(6, share).memory for share in (1, 4)] == [1 << 20, 1 << 18]
    assert [opened(6, share).threads for share in (1, 3, 16)] == [6, 2, 1]
    assert [opened(0, share).threads for share in (1, 4)] == [6, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Ray says to an actor of one processor
    assert opened(0, 1).threads == 1

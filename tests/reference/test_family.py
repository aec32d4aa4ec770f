"""The shipped models are what their records say; the trainer keeps its promises (on toys: nothing is trained here)."""

import hashlib
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from qarat.model.opening import open_model
from qarat.model.reference_models import reference_models

ROOT = Path(__file__).parents[2]
PACKAGE_LIMIT, FAMILY_LIMIT, FILE_LIMIT = 10_000_000, 45_000_000, 12_000_000  # bytes


@pytest.fixture(scope="module")
def train(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("train")


@pytest.fixture(scope="module")
def corpus(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("corpus")


@pytest.fixture(scope="module")
def cutting(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("windows")


@pytest.fixture
def toy(train: ModuleType, cutting: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A recipe of seconds, its work and its result in a folder of the test's own; not compiled."""
    for module in (train, cutting):
        monkeypatch.setattr(module, "WORK", tmp_path / "work")
    monkeypatch.setattr(train, "MODELS", tmp_path / "models")
    monkeypatch.setattr(train, "NOTE_EVERY", 2)
    monkeypatch.setattr(train, "SAVE_EVERY", 4)
    windows = np.random.default_rng(0).integers(1, train.VOCABULARY, (40, 16)).astype(np.uint16)
    tokenizer = Tokenizer(models.BPE(vocab={train.BOS: 0}, merges=[]))
    monkeypatch.setattr(train, "prepare", lambda packed: (tokenizer, windows))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    return train.Recipe("toy", 32, 64, blocks=1, steps=12, batch=2, warmup=2, keep_at=(0.5,))


@pytest.mark.parametrize("name", reference_models())
def test_weights_are_the_recorded_ones_and_load(name: str):
    folder = reference_models()[name]
    record = json.loads((folder / "training.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == record["weights_sha256"]
    listing = (ROOT / "reference" / "corpus.tsv").read_bytes()
    assert hashlib.sha256(listing).hexdigest() == record["corpus_sha256"]
    assert len(weights) < FILE_LIMIT
    model = open_model(name)
    assert model.blocks == record["recipe"]["blocks"]


def test_the_family_is_small():
    sizes = {name: sum(f.stat().st_size for f in folder.iterdir()) for name, folder in reference_models().items()}
    assert sum(sizes.values()) < FAMILY_LIMIT
    bundled = ROOT / "src" / "qarat" / "bundled"
    assert sum(f.stat().st_size for f in bundled.rglob("*") if f.is_file()) < PACKAGE_LIMIT


@pytest.mark.parametrize("name", reference_models())
def test_what_was_watched_reaches_the_last_step(train: ModuleType, name: str):
    record = json.loads((reference_models()[name] / "training.json").read_text())
    noted = list(range(train.NOTE_EVERY, record["steps_done"] + 1, train.NOTE_EVERY))
    assert [step for step, _ in record["curve"]] == noted
    assert [step for step, _ in record["spikes"]] == noted


def test_the_command_of_a_shipped_model_makes_it_again(train: ModuleType):
    for folder in reference_models().values():
        record = json.loads((folder / "training.json").read_text())
        train.refuse_to_replace(train.FAMILY[record["recipe"]["name"]], record["threads"], [folder])


def test_every_model_has_the_same_tokenizer():
    assert len({(folder / "tokenizer.json").read_bytes() for folder in reference_models().values()}) == 1


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_killed_training_ends_with_the_same_bytes(train: ModuleType, toy: Any):
    whole = weights_of(train.train(toy, threads=1))
    half = weights_of(train.MODELS / "toy-50pct")
    assert whole != half
    assert train.train(toy, threads=1, stop_after=8) is None
    assert not (train.WORK / "toy" / "state.pt.partial").exists()
    assert weights_of(train.train(toy, threads=1)) == whole
    assert weights_of(train.MODELS / "toy-50pct") == half
    assert not (train.WORK / "toy").exists()


def test_a_resumed_training_records_one_curve(train: ModuleType, toy: Any):
    train.train(toy, threads=1)
    records = [json.loads((train.MODELS / "toy" / "training.json").read_text())]
    train.train(toy, threads=1, stop_after=4)
    train.train(toy, threads=1)
    records.append(json.loads((train.MODELS / "toy" / "training.json").read_text()))
    assert records[0]["curve"] == records[1]["curve"]
    assert records[0]["spikes"] == records[1]["spikes"]
    assert [step for step, _ in records[0]["curve"]] == [2, 4, 6, 8, 10, 12]


def test_a_state_of_another_recipe_is_refused(train: ModuleType, toy: Any):
    train.train(toy, threads=1, stop_after=4)
    with pytest.raises(SystemExit, match="belongs to another recipe"):
        train.train(replace(toy, weight_decay=0.0), threads=1)
    assert (train.WORK / "toy" / "state.pt").exists()


def test_a_state_of_another_corpus_or_number_of_threads_is_refused(
    train: ModuleType, corpus: ModuleType, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train.train(toy, threads=1, stop_after=4)
    monkeypatch.setattr(corpus, "LISTING", tmp_path / "corpus.tsv")
    corpus.LISTING.write_text("another\n")
    with pytest.raises(SystemExit) as told:
        train.train(toy, threads=2)
    torch.set_num_threads(1)
    assert "belongs to another corpus" in str(told.value)
    assert "belongs to another number of threads:\n  there 1\n  here  2" in str(told.value)


def test_a_state_of_other_windows_is_refused(train: ModuleType, toy: Any, monkeypatch: pytest.MonkeyPatch):
    train.train(toy, threads=1, stop_after=4)
    tokenizer, windows = train.prepare(packed=False)
    monkeypatch.setattr(train, "prepare", lambda packed: (tokenizer, windows[::-1]))
    with pytest.raises(SystemExit, match="belongs to another set of windows"):
        train.train(toy, threads=1)


def test_a_state_of_another_version_is_refused_and_one_that_names_none_is_taken(
    train: ModuleType, toy: Any, monkeypatch: pytest.MonkeyPatch
):
    train.train(toy, threads=1, stop_after=4)
    here = train.transformers.__version__
    with monkeypatch.context() as other:
        other.setattr(train.transformers, "__version__", "4.0.0")
        with pytest.raises(SystemExit, match=f"another version of transformers:\n  there {here}\n  here  4.0.0"):
            train.train(toy, threads=1)
    state = train.WORK / "toy" / "state.pt"
    saved = torch.load(state, weights_only=True)
    torch.save({key: value for key, value in saved.items() if not key.startswith("version of")}, state)
    assert train.train(toy, threads=1, stop_after=2) is None
    assert torch.load(state, weights_only=True)["version of torch"] == str(torch.__version__)


def test_a_model_made_otherwise_is_not_replaced(train: ModuleType, toy: Any, tmp_path: Path):
    folder = train.train(toy, threads=1)
    whole = weights_of(folder)
    with pytest.raises(SystemExit) as told:
        train.train(replace(toy, seed=1), threads=2)
    lines = str(told.value).splitlines()
    assert (
        lines[1] == f"  {folder}, by `python reference/train.py toy --threads 1`: seed 0, asked 1; threads 1, asked 2"
    )
    assert lines[2].startswith(f"  {folder}-50pct, by ")  # a copy is no less a model
    assert "-o FOLDER" in lines[-1]
    assert weights_of(folder) == whole
    assert not (train.WORK / "toy").exists()
    assert train.train(replace(toy, seed=1), threads=1, stop_after=2, out=tmp_path / "other") is None


@pytest.mark.parametrize("threads", ["0", "-1", "two"])
def test_threads_that_cannot_compute_are_refused(
    train: ModuleType, threads: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["train.py", "py-64", f"--threads={threads}"])
    with pytest.raises(SystemExit):
        train.main()
    assert f"--threads: {threads}: give a whole number of threads, 1 or more" in capsys.readouterr().err


def test_a_model_of_another_folder_leaves_the_family_alone(train: ModuleType, toy: Any, tmp_path: Path):
    assert train.train(toy, threads=1, stop_after=8, out=tmp_path / "other") is None
    assert train.train(toy, threads=1, out=tmp_path / "other") == tmp_path / "other" / "toy"
    assert {path.name for path in (tmp_path / "other").iterdir()} == {"toy", "toy-50pct", "work"}
    assert not train.MODELS.exists()
    assert not train.WORK.exists()


def test_a_kept_copy_records_all_that_came_before_it(train: ModuleType, toy: Any):
    train.train(toy, threads=1)
    half = json.loads((train.MODELS / "toy-50pct" / "training.json").read_text())
    assert half["steps_done"] == half["curve"][-1][0] == 6


def test_a_gradient_that_is_no_number_stops_before_it_does_harm(
    train: ModuleType, toy: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, clip: torch.tensor(float("inf")))
    with pytest.raises(SystemExit, match="norm of the gradient is inf at step 0; no state was saved yet"):
        train.train(toy, threads=1)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(
    train: ModuleType, toy: Any, monkeypatch: pytest.MonkeyPatch
):
    calls = iter(range(100))
    monkeypatch.setattr(torch, "compile", lambda f: lambda batch: f(batch) * (float("nan") if next(calls) == 6 else 1))
    with pytest.raises(SystemExit, match=r"loss is nan at step 6.*state\.pt"):
        train.train(toy, threads=1)
    assert torch.load(train.WORK / "toy" / "state.pt", weights_only=True)["step"] == 4
    assert not (train.MODELS / "toy").exists()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes: what a full disk does, done by the system to every library alike."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("keep_at", "what"), [((), "state.pt"), ((0.5,), "toy-50pct")])
def test_a_full_disk_keeps_the_state_before(train: ModuleType, toy: Any, keep_at: tuple[float, ...], what: str):
    recipe = replace(toy, keep_at=keep_at)
    train.train(recipe, threads=1, stop_after=4)
    before = (train.WORK / "toy" / "state.pt").read_bytes()
    with files_of_at_most(200_000), pytest.raises(SystemExit, match=f"{what} cannot be written") as told:
        train.train(recipe, threads=1)
    assert "the same command continues" in str(told.value)
    assert (train.WORK / "toy" / "state.pt").read_bytes() == before
    assert [path.name for path in (train.WORK / "toy").iterdir()] == ["state.pt"]
    assert train.train(recipe, threads=1) == train.MODELS / "toy"


def test_too_few_windows_are_refused(train: ModuleType, toy: Any):
    with pytest.raises(SystemExit, match="40 windows"):
        train.train(replace(toy, steps=30), threads=1)


def test_a_corpus_of_other_versions_is_told_file_by_file(corpus: ModuleType, monkeypatch: pytest.MonkeyPatch):
    label, _, name = corpus.LISTING.read_text().splitlines()[1].split("\t")
    lines = corpus.check({name: "other text", "stdlib/new.py": "x"}, {label: [name, "stdlib/new.py"]})
    assert f"changed: {name}" in lines
    assert "not recorded: stdlib/new.py" in lines
    assert any(line.startswith("missing: ") for line in lines)


def test_of_many_differences_some_are_named_and_the_rest_counted(corpus: ModuleType):
    told = corpus.describe([f"changed: {i}" for i in range(25)]).splitlines()
    assert told[0].startswith("corpus: 25 files differ")
    assert told[1:] == [*(f"  changed: {i}" for i in range(20)), "  … and 5 more: python reference/corpus.py check"]
    assert corpus.describe([]) == ""


def test_all_missing_packages_are_named(corpus: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus, "PACKAGES", ("torch", "no-such", "nor-this"))
    with pytest.raises(SystemExit, match="not installed at the usual place: no-such, nor-this; run `make setup`"):
        next(corpus.python_files())


def test_a_missing_listing_is_told(
    cutting: ModuleType, corpus: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cutting, "WORK", tmp_path / "work")
    monkeypatch.setattr(corpus, "LISTING", tmp_path / "corpus.tsv")
    with pytest.raises(SystemExit, match=r"corpus\.tsv is missing: restore it.*corpus\.py record"):
        cutting.prepare(packed=False)


def test_windows_of_another_corpus_are_told_at_every_start(
    cutting: ModuleType,
    corpus: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(cutting, "WORK", tmp_path)
    text = "def f(x):\n    return x + 1\n" * 200
    builds = iter([({"train": [("stdlib/f.py", text)]}, ["changed: stdlib/f.py"])])
    monkeypatch.setattr(corpus, "build", lambda: next(builds))
    for _ in range(2):  # the second time from the kept windows
        _, windows = cutting.prepare(packed=False)
        assert windows.shape[1] == cutting.WINDOW
        told = capsys.readouterr().out
        assert "changed: stdlib/f.py" in told
        assert "results will differ" in told
    assert cutting.known_differences(packed=False) == ["changed: stdlib/f.py"]


def test_a_model_of_another_corpus_says_so(train: ModuleType, cutting: ModuleType, toy: Any):
    assert "corpus_differences" not in json.loads((train.train(toy, threads=1) / "training.json").read_text())
    cutting.differences_file(packed=False).write_text("changed: stdlib/f.py\nmissing: stdlib/g.py")
    assert json.loads((train.train(toy, threads=1) / "training.json").read_text())["corpus_differences"] == 2

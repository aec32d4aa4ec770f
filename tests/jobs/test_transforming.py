"""A run with transforms: prepared once, taken up again from its files, compared with the model that was asked for."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qarat.ground.errors import UserError
from qarat.ground.runtime import no_progress
from qarat.jobs import transforming
from qarat.jobs.checks import check_plan_request
from qarat.jobs.folder import Run
from qarat.jobs.open_any import open_for_evaluation
from qarat.jobs.transforming import apply_again, outline, prepare
from qarat.jobs.whole_run import Pipeline
from qarat.model.model import Model
from qarat.model.native import read_native
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.model.tokens import TokenSet
from qarat.stages.observe import observe
from qarat.stages.read_back.readback import logits_of
from qarat.testing import tiny_checkpoint
from qarat.values.fingerprints import source_of, transforms_of
from qarat.values.records.files import decode_record
from qarat.values.records.scores import Evaluation, paired_difference
from qarat.values.requests.protect import ProtectRequest

Sets = tuple[TokenSet, TokenSet, TokenSet]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return open_model(str(tiny_checkpoint(folder, hidden=64, intermediate=96, dtype=torch.bfloat16)))


@pytest.fixture(scope="module")
def sets(model: Model, tiny_text: Path) -> Sets:
    return load_token_sets(model, calibration=str(tiny_text), length=32, samples=4, report_samples=4)


@pytest.fixture
def job(model: Model, sets: Sets) -> Callable[..., Pipeline]:
    def make(*transforms: str, exports: tuple[str, ...] = ()) -> Pipeline:
        request = ProtectRequest(sites=("0.down",), transforms=transforms)
        return Pipeline(
            model, sets, request, seed=0, prompt=None, exports=exports,
            progress=no_progress, show=lambda *_, **__: None, note=lambda _: None,
        )  # fmt: skip

    return make


def run_of(pipeline: Pipeline, out: Path) -> Path:
    run = Run(out, "run")
    run.begin()
    pipeline.execute(run)
    return out


def test_a_run_plans_and_writes_the_transformed_model(
    job: Callable[..., Pipeline], model: Model, sets: Sets, tmp_path: Path
):
    out = run_of(job("smooth/0.5/all", "hadamard"), tmp_path / "out")
    read, plan = read_native(out / "model")
    words = [word.partition("@")[0] for word in transforms_of(plan.model)]
    assert words == ["smooth/0.5/all", "hadamard"]
    assert source_of(plan.model) == model.fingerprint
    assert read.is_rotated
    losses = {
        label: decode_record(out / f"evaluation-{label}.json", Evaluation) for label in ("float", "naive", "plan")
    }
    # Compared with the model that was asked for, not with its equal.
    assert losses["float"].provenance.model == model.fingerprint
    assert losses["plan"].provenance.model == plan.model
    assert paired_difference(losses["plan"], losses["float"]).nats != 0


def test_a_run_is_taken_up_again_without_preparing_anew(
    job: Callable[..., Pipeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pipeline = job("smooth/auto")
    run = Run(tmp_path / "out", "run")
    run.begin()
    pipeline._transform(run)
    chosen = pipeline.model.fingerprint
    assert transforms_of(chosen)[0].startswith("smooth/0.")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("prepared again")

    monkeypatch.setattr("qarat.jobs.transforming.prepare", never)
    again = job("smooth/auto")
    run = Run(tmp_path / "out", "run")
    run.begin()
    again._transform(run)
    assert again.model.fingerprint == chosen
    other = job("smooth/0.5")
    with pytest.raises(AssertionError, match="prepared again"):
        other._transform(run)


def test_auto_takes_the_strength_that_loses_least(model: Model, sets: Sets, monkeypatch: pytest.MonkeyPatch):
    tried: list[str] = []

    class Measured:
        def __init__(self, label: str) -> None:
            tried.append(label)
            self.loss = abs(float(label.split("/")[1]) - 0.7)

    monkeypatch.setattr("qarat.jobs.transforming.measure_perplexity", lambda *_, label, progress: Measured(label))
    done = prepare(model, ProtectRequest(transforms=("smooth/auto/all",)), sets[0], sets[1])
    assert done.transforms == ("smooth/0.7/all",)
    assert tried == [f"smooth/{a:g}/all" for a in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)]
    again = apply_again(model, done.transforms, done.made_from)
    assert again.fingerprint == done.model.fingerprint
    windows = sets[2].windows
    assert torch.equal(logits_of(again, windows), logits_of(done.model, windows))


def test_a_smoothed_run_is_exported_with_its_folded_norms(job: Callable[..., Pipeline], model: Model, tmp_path: Path):
    pipeline = job("smooth/0.5", exports=("compressed-tensors",))
    out = run_of(pipeline, tmp_path / "out")
    stored = load_file(out / "compressed-tensors" / "model.safetensors")
    name = "input_layernorm.weight"
    found = stored[f"model.layers.1.{name}"]
    assert torch.equal(found, pipeline.model.block(1).state_dict()[name].bfloat16())
    assert not torch.equal(found, model.block(1).state_dict()[name].bfloat16())


def test_a_split_run_is_planned_quantized_and_exported_as_wide_as_it_became(
    job: Callable[..., Pipeline], model: Model, tmp_path: Path
):
    pipeline = job("split/32", exports=("compressed-tensors",))
    widths = {site.shape[1] for site in pipeline.draft.sites if site.leaf == "down_proj"}
    assert widths == {model.inner_width + 32}
    out = run_of(pipeline, tmp_path / "out")
    read, plan = read_native(out / "model")
    assert [word.partition("@")[0] for word in transforms_of(plan.model)] == ["split/32"]
    assert read.config.intermediate_size == read.inner_width == model.inner_width + 32
    exported = open_for_evaluation(str(out / "compressed-tensors")).model
    assert exported.config.intermediate_size == model.inner_width + 32
    ids = pipeline.report.windows[:1]
    assert torch.equal(logits_of(exported, ids), logits_of(read, ids))


def test_what_cannot_be_exported_is_refused_before_any_work(job: Callable[..., Pipeline]):
    with pytest.raises(UserError, match="`format` compressed-tensors cannot hold this model: it rotates"):
        job("hadamard", exports=("compressed-tensors",))
    with pytest.raises(UserError, match="before smooth/auto; export the weights"):
        job("smooth/auto", exports=("torchao",))


def test_bad_requests_are_refused_before_any_work(model: Model):
    with pytest.raises(UserError, match="unknown transform 'smoothe'"):
        check_plan_request(ProtectRequest(transforms=("smoothe/0.5",)))
    with pytest.raises(UserError, match=r"`transforms` hadamard: .*rotated already"):
        outline(model, ProtectRequest(transforms=("hadamard", "hadamard")))
    with pytest.raises(UserError, match=r"`transforms` split/8: .*split first"):
        outline(model, ProtectRequest(transforms=("hadamard", "split/8")))


def test_an_outline_is_as_wide_as_the_model_will_be(model: Model):
    outlined = outline(model, ProtectRequest(transforms=("smooth/0.5", "split/32", "hadamard")))
    assert outlined.inner_width == model.inner_width + 32
    assert outlined.is_rotated


def test_auto_takes_the_strength_that_loses_least_and_the_first_of_equals(
    model: Model, sets: Sets, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {
        "smooth/0.4": 3.0,
        "smooth/0.5": 2.0,
        "smooth/0.6": 1.0,
        "smooth/0.7": 1.0,
        "smooth/0.8": 2.0,
        "smooth/0.9": 3.0,
    }

    class Known:
        def __init__(self, label: str) -> None:
            self.loss = losses[label]

    monkeypatch.setattr(transforming, "measure_perplexity", lambda *_, label, **__: Known(label))
    request = ProtectRequest(transforms=("smooth/auto",))
    chosen = transforming._chosen(
        model, tuple(losses), request, observe(model, sets[0], attention=False), sets[0], sets[1], no_progress
    )
    assert chosen == "smooth/0.6"

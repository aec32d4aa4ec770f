"""Opening whatever can be measured, and comparing what was named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from qarat.ground.errors import UserError
from qarat.jobs import run_steps as pipeline
from qarat.jobs.compare import RUN_EVALUATION, compare_named
from qarat.jobs.open_any import Opened, find_native, open_for_evaluation
from qarat.model.model import Model
from qarat.model.native import write_native
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.export.base import MARK, export_model
from qarat.stages.measure.divergence import measure_divergence
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.quantize import quantize
from qarat.testing import tiny_checkpoint
from qarat.values.plans import assign
from qarat.values.records.comparison import Comparable
from qarat.values.records.files import content_hash, encode_record

LOW = "w=int4/g32 a=int8/token"
Measure = Callable[[Opened], Comparable]


@pytest.fixture(scope="module")
def tokens() -> TokenSet:
    ids = torch.randint(2, 98, (6, 24), generator=torch.Generator().manual_seed(3))
    return TokenSet("report", "windows-24-nobos", ids, tuple("aabbcc"), ("0" * 64,), ("text",))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A float model, its quantized folder, and the export of that; no test may change them."""
    home = tmp_path_factory.mktemp("comparing")
    source = tiny_checkpoint(home / "float")
    model = open_model(str(source))
    plan = assign(model.fingerprint, model.source_bits, model.sites(), LOW)
    quantized = quantize(model, plan)
    write_native(quantized, plan, home / "native")
    export_model(quantized, plan, home / "export", "compressed-tensors")
    return source, home / "native", home / "export"


@pytest.fixture(scope="module")
def measure(tokens: TokenSet) -> Measure:
    return lambda opened: measure_perplexity(opened.model, tokens, label=opened.label, plan=opened.plan)


def test_every_kind_is_opened(made: tuple[Path, Path, Path], tokens: TokenSet, measure: Measure):
    float_, plan, exported = (open_for_evaluation(str(path)) for path in made)
    assert [o.label for o in (float_, plan, exported)] == ["float", "plan", "export"]
    assert float_.plan == ""
    assert plan.plan == exported.plan != ""
    assert float_.model.fingerprint == plan.model.fingerprint == exported.model.fingerprint
    assert measure(plan).nats == pytest.approx(measure(exported).nats, rel=1e-6)  # type: ignore[union-attr]
    divergences = [measure_divergence(o.model, float_.model, tokens, label=o.label) for o in (plan, exported)]
    assert divergences[0].mean[0] == pytest.approx(divergences[1].mean[0], rel=1e-4)
    assert divergences[0].mean[0] > 0


def test_an_export_is_a_whole_module(made: tuple[Path, Path, Path], tokens: TokenSet):
    """As the harness is given it."""
    exported = open_for_evaluation(str(made[2])).model
    native = open_for_evaluation(str(made[1])).model
    with torch.no_grad():
        ours, theirs = (m.module()(tokens.windows, use_cache=False).logits for m in (exported, native))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_somebody_elses_folder_goes_by_its_own_fingerprint(made: tuple[Path, Path, Path], tmp_path: Path):
    copied = shutil.copytree(made[2], tmp_path / "foreign")
    (copied / MARK).unlink()
    opened = open_for_evaluation(str(copied))
    assert (opened.label, opened.plan) == ("export", "")
    assert opened.model.fingerprint != open_model(str(made[0])).fingerprint


def test_a_broken_export_is_refused_with_every_error(made: tuple[Path, Path, Path], tmp_path: Path):
    copied = shutil.copytree(made[2], tmp_path / "broken")
    config = json.loads((copied / "config.json").read_text())
    groups = config["quantization_config"]["config_groups"]
    groups["group_0"]["targets"] = groups["group_0"]["targets"][2:]
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"(?s)cannot be computed.*layers\.0\.self_attn\.q_proj.*qarat verify"):
        open_for_evaluation(str(copied))


def test_what_cannot_be_opened(made: tuple[Path, Path, Path], tmp_path: Path):
    gguf = tmp_path / "gguf"
    gguf.mkdir()
    shutil.copy(made[2] / MARK, gguf)
    with pytest.raises(UserError, match="an export that is not read back here; compressed-tensors is"):
        open_for_evaluation(str(gguf))
    with pytest.raises(UserError, match="no such folder"):
        open_for_evaluation(str(tmp_path / "nothing"))
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    (unfinished / "manifest.json").write_text('{"kind": "run"}')
    with pytest.raises(UserError, match="has not come to its quantized model"):
        find_native(unfinished)


def test_models_are_measured_and_compared(made: tuple[Path, Path, Path], measure: Measure):
    found = compare_named([str(path) for path in made], measure)
    assert [c.label for c in found.compared] == ["float", "native", "export"]
    assert len(found.models) == 1
    native, export = found.contrasts
    assert native.difference == pytest.approx(export.difference, rel=1e-3)


def test_a_run_stands_for_what_it_measured(made: tuple[Path, Path, Path], measure: Measure, tmp_path: Path):
    assert pipeline.EVALUATE[-1].files == (RUN_EVALUATION,)
    assert pipeline.MODEL == "model"
    source, native, _ = made
    base = measure(open_for_evaluation(str(source)))
    record = tmp_path / "float.json"
    record.write_bytes(encode_record(base))
    run = tmp_path / "run"
    shutil.copytree(native, run / "model")
    told = replace(measure(open_for_evaluation(str(native))), nats=tuple(n + 1 for n in base.nats))  # type: ignore
    (run / RUN_EVALUATION).write_bytes(encode_record(told))

    def never(opened: Opened) -> Comparable:
        raise AssertionError(opened)

    (contrast,) = compare_named([str(record), str(run)], never).contrasts
    assert contrast.difference == pytest.approx(6 / (6 * 23))
    assert (contrast.base, contrast.label) == ("float", "run")
    again = compare_named([str(record), str(run)], measure, recorded=False)
    assert again.contrasts[0].difference != contrast.difference


def test_other_tokens_are_refused(made: tuple[Path, Path, Path], measure: Measure, tokens: TokenSet, tmp_path: Path):
    model: Model = open_model(str(made[0]))
    record = tmp_path / "elsewhere.json"
    record.write_bytes(encode_record(measure_perplexity(model, tokens.subset(3), label="float")))
    with pytest.raises(UserError, match="elsewhere and native do not belong together: tokens: "):
        compare_named([str(record), str(made[1])], measure)
    record.write_bytes(encode_record(assign(model.fingerprint, 32, model.sites(), LOW)))
    with pytest.raises(UserError, match="is of kind plan; give an evaluation"):
        compare_named([str(record), str(made[1])], measure)
    with pytest.raises(UserError, match="named twice"):
        compare_named([str(made[1]), str(made[1])], measure)


def test_labels_are_whole_paths_where_names_are_alike(made: tuple[Path, Path, Path], measure: Measure, tmp_path: Path):
    copied = shutil.copytree(made[1], tmp_path / "native")
    found = compare_named([str(made[1]), str(copied)], measure)
    assert [c.label for c in found.compared] == [str(made[1]), str(copied)]
    assert found.contrasts[0].verdict == "identical"
    assert content_hash(found)

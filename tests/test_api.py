"""The public names: all there with their types, quick to import, and the verbs that are functions."""

from __future__ import annotations

import gc
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import qarat
from qarat.ground.errors import UserError
from qarat.jobs.folder import PLAN
from qarat.jobs.run_steps import MODEL
from qarat.model.model import Model
from qarat.testing import tiny_checkpoint, tiny_documents

LOW = "w=int8/channel a=int8/tensor/static"
Tokens = tuple[qarat.TokenSet, qarat.TokenSet, qarat.TokenSet]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def model(folder: Path) -> qarat.Model:
    return qarat.open_model(folder)


@pytest.fixture(scope="module")
def tokens(model: qarat.Model) -> Tokens:
    made = [
        qarat.make_token_set(name, tiny_documents(4, seed=seed), model.tokenizer, length=16, limit=6)
        for seed, name in enumerate(("calibration", "selection", "report"))
    ]
    return made[0], made[1], made[2]


@pytest.fixture(scope="module")
def done(model: qarat.Model, tokens: Tokens, tmp_path_factory: pytest.TempPathFactory) -> Path:
    request = qarat.ProtectRequest(low=LOW, budget="nats+9", rewrites=False)
    return qarat.run(model, tokens, request, tmp_path_factory.mktemp("runs") / "run")


def test_every_name_is_there_and_says_what_it_is() -> None:
    assert set(dir(qarat)) == set(getattr(qarat, "__all__"))  # noqa: B009 (the stub has none)
    for name in dir(qarat):
        value: Any = getattr(qarat, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert value.__doc__, name
    assert {"run", "export", "verify", "report", "open_model", "observe", "Plan", "Runtime"} <= set(dir(qarat))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'obverse'"):
        getattr(qarat, "obverse")  # noqa: B009 (pyright knows that there is none)


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'msgspec', 'numpy'}"
    code = f"import sys, qarat; dir(qarat); assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_pyright_knows_the_names_and_their_types(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import qarat\nreveal_type(qarat.observe)\nreveal_type(qarat.run)\nreveal_type(qarat.Plan)\nqarat.obverse\n"
    )
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(script)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    assert "-> ActivationStats" in shown
    assert "-> Path" in shown
    assert 'Type of "qarat.Plan" is "type[Plan]"' in shown
    assert '"obverse" is not a known attribute of module "qarat"' in shown


def test_models_and_tokens_come_first_everywhere() -> None:
    """Model, then tokens or plan, then what was measured; what is a choice of how is given by keyword."""
    order = ["model", "quantized", "tokens", "selection", "request", "plan", "schemes", "stats", "menu", "out"]
    for name in dir(qarat):
        value: Any = getattr(qarat, name)
        if not inspect.isfunction(value) or "model" not in inspect.signature(value).parameters:
            continue
        parameters = inspect.signature(value).parameters.values()
        positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name in order]
        assert positional == sorted(positional, key=order.index), name


def test_a_model_is_opened_from_whatever_it_is_in(folder: Path, model: qarat.Model, done: Path) -> None:
    assert qarat.open_model(str(folder)).fingerprint == model.fingerprint
    for quantized in (done, done / MODEL):
        opened = qarat.open_model(quantized)
        assert not opened.is_float
        assert opened.fingerprint == model.fingerprint


def test_a_model_in_memory_computes_what_its_folder_does(folder: Path, tokens: Tokens) -> None:
    module: Any = AutoModelForCausalLM.from_pretrained(folder)
    opened = qarat.open_model(module, tokenizer=AutoTokenizer.from_pretrained(folder))
    expected = qarat.measure_perplexity(qarat.open_model(folder), tokens[2], label="float")
    with torch.no_grad():
        module.lm_head.weight.zero_()  # what was opened is a copy
    assert qarat.measure_perplexity(opened, tokens[2], label="float").nats == expected.nats
    stats = qarat.observe(opened, tokens[0])
    plan = qarat.assign(opened.fingerprint, opened.source_bits, opened.sites(), LOW, stats=qarat.content_hash(stats))
    assert not qarat.quantize(opened, plan, stats).is_float


def test_the_copy_of_a_model_in_memory_goes_away_with_it(folder: Path) -> None:
    module: Any = AutoModelForCausalLM.from_pretrained(folder)
    opened = qarat.open_model(module, tokenizer=AutoTokenizer.from_pretrained(folder))
    copy = opened.folder
    assert copy.is_dir()
    del opened
    gc.collect()
    assert not copy.exists()


def test_tokenizers_belong_to_models_in_memory(folder: Path) -> None:
    with pytest.raises(UserError, match="tokenizer="):
        qarat.open_model(AutoModelForCausalLM.from_pretrained(folder))
    with pytest.raises(UserError, match="of its own"):
        qarat.open_model(folder, tokenizer=AutoTokenizer.from_pretrained(folder))


def test_a_run_leaves_its_records(done: Path, model: qarat.Model) -> None:
    plan = qarat.decode_record(done / PLAN)
    assert isinstance(plan, qarat.Plan)
    assert plan.model == model.fingerprint


def test_a_run_is_exported_and_verified(done: Path, model: qarat.Model, tokens: Tokens, tmp_path: Path) -> None:
    qarat.export(done, None, tmp_path / "a", "compressed-tensors")
    small, plan = qarat.read_native(done / MODEL)
    qarat.export(small, plan, tmp_path / "b", "compressed-tensors")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    assert qarat.verify(tmp_path / "a").passed
    assert qarat.verify(tmp_path / "a", done, tokens).against == "run"
    assert qarat.verify(tmp_path / "a", model, tokens).against == "float"


def test_an_export_needs_one_plan(done: Path, model: qarat.Model, tmp_path: Path) -> None:
    small, plan = qarat.read_native(done / MODEL)
    with pytest.raises(UserError, match="with its plan"):
        qarat.export(small, None, tmp_path / "a", "compressed-tensors")
    with pytest.raises(UserError, match="its own plan"):
        qarat.export(done, plan, tmp_path / "a", "compressed-tensors")
    with pytest.raises(UserError, match="no quantized model"):
        qarat.export(model.folder, None, tmp_path / "a", "compressed-tensors")


def test_a_report_is_a_page(done: Path, tmp_path: Path) -> None:
    page = qarat.report(done, tmp_path)
    assert page.read_text().startswith("<!doctype html>") or "<html" in page.read_text()[:300]


def test_a_runtime_takes_the_words_of_the_command_line() -> None:
    there = torch.cuda.is_available()
    assert qarat.Runtime(device="auto").device == ("cuda" if there else "cpu")
    with pytest.raises(UserError, match="give auto, cpu, cuda"):
        qarat.Runtime(device="gpu")
    with pytest.raises(UserError, match="give float32, bfloat16"):
        qarat.Runtime(dtype="float16")
    if not there:
        with pytest.raises(UserError, match="no CUDA device"):
            qarat.Runtime(device="cuda")


def test_values_are_shown_short_and_true(model: Model, tokens: Tokens, done: Path) -> None:
    stats = qarat.observe(model, tokens[0])
    small, plan = qarat.read_native(done / MODEL)
    evaluation = qarat.measure_perplexity(model, tokens[2], label="float")
    expected: list[tuple[Any, list[str]]] = [
        (model, ["LlamaForCausalLM", "weights: float", "blocks: 2", "projections: 14", "float32 on cpu"]),
        (small, ["weights: quantized", "blocks: 2"]),
        (plan, [LOW, "of 14 projections", "bits per weight: ", "Q_r: "]),
        (stats, ["streams: 24", "6 windows of 16", "largest r: "]),
        (evaluation, ["label: float", f"perplexity: {evaluation.perplexity:.4g}", "tokens: 90", "windows: 6"]),
    ]
    for value, facts in expected:
        assert len(repr(value)) < 400
        assert "\n" not in repr(value)
        assert [text for text in facts if text not in repr(value)] == []
        html = value._repr_html_()
        assert html.startswith("<table>")
        assert html.count("<tr>") == len(value.facts())


def test_what_a_value_says_is_escaped() -> None:
    plan = qarat.Plan("0" * 64, LOW, 16, (), note="<b>")
    assert "&lt;b&gt;" in plan._repr_html_()


def test_a_folder_whose_channels_were_split_is_compared_with_its_float_model(
    model: qarat.Model, tokens: Tokens, tmp_path: Path
) -> None:
    """It is wider: losses are compared, not tensors; and a model of another width is refused."""
    request = qarat.ProtectRequest(low=LOW, budget="nats+9", transforms=("split/4",))
    done = qarat.run(model, tokens, request, tmp_path / "run", progress=qarat.no_progress)
    qarat.export(done, None, tmp_path / "exported", "compressed-tensors", progress=qarat.no_progress)
    assert qarat.verify(tmp_path / "exported", done, tokens).passed
    verified = qarat.verify(tmp_path / "exported", model, tokens)
    assert verified.passed
    assert any("wider than the float model" in finding.what for finding in verified.findings)
    losses = [qarat.decode_record(done / f"evaluation-{label}.json", qarat.Evaluation) for label in ("float", "plan")]
    assert verified.damage[0].nats == pytest.approx(qarat.paired_difference(losses[1], losses[0]).nats, abs=1e-6)
    other = qarat.open_model(tiny_checkpoint(tmp_path / "other", intermediate=48))
    with pytest.raises(UserError, match="different shapes"):
        qarat.verify(tmp_path / "exported", other, tokens)


def test_records_and_tokens_are_short_when_printed(done: Path, tokens: Tokens) -> None:
    records = [qarat.decode_record(done / name) for name in ("plan.json", "menu.json", "protection.json")]
    for value in (*records, tokens[0]):
        assert len(repr(value)) < 400
    assert repr(tokens[0]).startswith("TokenSet(name: calibration, windows: 6 of 16")


def test_verbs_draw_their_progress_unless_told_otherwise(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    qarat.export(done, None, tmp_path / "a", "compressed-tensors")
    drawn = capsys.readouterr()
    assert (drawn.out, "export" in drawn.err) == ("", True)
    qarat.export(done, None, tmp_path / "b", "compressed-tensors", progress=qarat.no_progress)
    assert capsys.readouterr() == ("", "")

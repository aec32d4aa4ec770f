"""Transformed models on disk: qarat's own folder holds them all, other formats what the tensors alone can say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.jobs.open_any import open_for_evaluation
from qarat.model.model import Model
from qarat.model.native import read_native, write_native
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.stages.export.base import check_export, export_model
from qarat.stages.export.compressed_tensors import tensor_bytes
from qarat.stages.export.recipes import refuse_transforms
from qarat.stages.observe import observe
from qarat.stages.quantize import quantize
from qarat.stages.read_back.readback import logits_of
from qarat.stages.transforms import parse_transform
from qarat.testing import tiny_checkpoint
from qarat.testing.models import Architecture
from qarat.values.fingerprints import LEFT_ALONE
from qarat.values.plans import Plan, assign
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import LOW

RECIPES = ("autoround", "llama-cpp", "llmcompressor", "modelopt", "torchao")
IDS = torch.arange(2, 50).view(2, 24)


def prepared(
    folder: Path, text: Path, *spellings: str, low: str = LOW, float_sites: tuple[str, ...] = ("0.down", "1.up")
) -> tuple[Model, Plan, ActivationStats]:
    """A transformed float model, a plan that leaves two projections in float, and stats."""
    model = open_model(str(folder))
    tokens = load_token_sets(model, calibration=str(text), length=32, samples=4, report_samples=4)[0]
    for spelling in spellings:
        model = parse_transform(spelling).apply(model, observe(model, tokens, attention=False))
    rules = [(site, "float") for site in float_sites]
    return model, assign(model.fingerprint, 16, model.sites(), low, rules), observe(model, tokens, attention=False)


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "source", architecture="qwen2", intermediate=80, dtype=request.param)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "source", intermediate=96, hidden=64, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "spellings",
    [("hadamard",), ("smooth/0.8/all",), ("smooth/0.5", "hadamard"), ("split/10",), ("split/20", "hadamard")],
)
def test_the_native_folder_holds_a_transformed_model_to_the_last_bit(
    spellings: tuple[str, ...], folder: Path, tmp_path: Path, tiny_text: Path
) -> None:
    model, plan, stats = prepared(folder, tiny_text, *spellings)
    quantized = quantize(model, plan, stats)
    write_native(quantized, plan, tmp_path / "native")
    again, read = read_native(tmp_path / "native")
    assert read == plan
    assert again.fingerprint == model.fingerprint
    assert again.is_rotated == ("hadamard" in spellings)
    assert torch.equal(logits_of(again, IDS), logits_of(quantized, IDS))
    names = {name for file in (tmp_path / "native").glob("block-*.safetensors") for name in load_file(file)}
    assert not [name for name in names if "rotation" in name]


def test_all_else_in_a_widened_config_stays(llama: Path, tmp_path: Path, tiny_text: Path) -> None:
    before = json.loads((llama / "config.json").read_text()) | {"of_somebody_else": "é"}
    (llama / "config.json").write_text(json.dumps(before))
    model, plan, stats = prepared(llama, tiny_text, "split/32")
    write_native(quantize(model, plan, stats), plan, tmp_path / "native")
    after = json.loads((tmp_path / "native" / "config.json").read_text())
    assert after == before | {"intermediate_size": 128}
    assert list(after) == list(before)


@pytest.mark.parametrize(("architecture", "field"), [("gemma2", "intermediate_size"), ("opt", "ffn_dim")])
def test_the_width_is_written_where_a_family_has_it(
    architecture: Architecture, field: str, tmp_path: Path, tiny_text: Path
) -> None:
    source = tiny_checkpoint(tmp_path / "source", architecture=architecture)
    model, plan, stats = prepared(source, tiny_text, "split/8", float_sites=())
    quantized = quantize(model, plan, stats)
    write_native(quantized, plan, tmp_path / "native")
    again, _ = read_native(tmp_path / "native")
    assert getattr(again.config, field) == again.inner_width == 72
    assert torch.equal(logits_of(again, IDS), logits_of(quantized, IDS))


def test_compressed_tensors_holds_a_split_model(folder: Path, tmp_path: Path, tiny_text: Path) -> None:
    """Equal logits in transformers, in its own way of computing them, and in our reading of the folder."""
    model, plan, stats = prepared(folder, tiny_text, "split/10")
    quantized, out = quantize(model, plan, stats), tmp_path / "out"
    export_model(quantized, plan, out, "compressed-tensors")
    assert sum(t.nbytes for t in load_file(out / "model.safetensors").values()) == tensor_bytes(model, plan)
    ours = logits_of(quantized, IDS)
    theirs: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert theirs.config.intermediate_size == 90
    with torch.no_grad():
        assert (theirs(input_ids=IDS).logits - ours).abs().max() <= 1e-5 * ours.abs().max()
    assert torch.equal(logits_of(open_for_evaluation(str(out)).model, IDS), ours)


def test_gguf_holds_a_split_model(llama: Path, tmp_path: Path, tiny_text: Path, with_merge: object) -> None:
    gguf = pytest.importorskip("gguf")
    assert callable(with_merge)
    with_merge(llama)
    model, plan, _ = prepared(llama, tiny_text, "split/32", low="w=int8/g32")
    export_model(model, plan, tmp_path / "out", "gguf")
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    assert fields["llama.feed_forward_length"].contents() == 128
    read = open_model(str(tmp_path / "out" / "model.gguf"))
    assert [s.shape for s in read.sites()] == [s.shape for s in model.sites()]
    # In float it comes back to the last bit.
    plain = assign(model.fingerprint, 16, model.sites(), "float", [])
    export_model(model, plain, tmp_path / "plain", "gguf")
    again = open_model(str(tmp_path / "plain" / "model.gguf"))
    assert torch.equal(logits_of(again, IDS), logits_of(model, IDS))
    model, plan, _ = prepared(llama, tiny_text, "split/10", low="w=int8/g32")
    with pytest.raises(UserError, match=r"rows of 106 weights are no whole number of blocks of 32(.|\n)*1.*down_proj"):
        check_export(model, plan, "gguf")


def test_compressed_tensors_holds_the_folded_norms(llama: Path, tmp_path: Path, tiny_text: Path) -> None:
    model, plan, stats = prepared(llama, tiny_text, "smooth/0.5/all")
    export_model(quantize(model, plan, stats), plan, tmp_path / "out", "compressed-tensors")
    stored, block = load_file(tmp_path / "out" / "model.safetensors"), model.block(1).state_dict()
    before = open_model(str(llama)).block(1).state_dict()
    for name in ("input_layernorm.weight", "post_attention_layernorm.weight", "mlp.up_proj.weight"):
        found = stored[f"model.layers.1.{name}"]
        assert torch.equal(found, block[name].bfloat16())
        assert not torch.equal(found, before[name].bfloat16())


def test_gguf_begins_from_the_smoothed_weights(
    llama: Path, tmp_path: Path, tiny_text: Path, with_merge: object
) -> None:
    gguf = pytest.importorskip("gguf")
    assert callable(with_merge)
    with_merge(llama)
    model, plan, _ = prepared(llama, tiny_text, "smooth/0.5", low="w=int8/g32")
    export_model(model, plan, tmp_path / "out", "gguf")
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    norm = torch.tensor(tensors["blk.0.attn_norm.weight"].data)
    assert torch.equal(norm, model.block(0).state_dict()["input_layernorm.weight"])


@pytest.mark.parametrize("format", [*RECIPES, "compressed-tensors", "gguf", "onnx"])
def test_no_other_format_takes_a_rotated_model(
    format: str, llama: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())  # as if every extra were installed
    model, plan, _ = prepared(llama, tiny_text, "hadamard")
    with pytest.raises(UserError, match=rf"`format` {format} cannot hold this model: it rotates the input"):
        check_export(model, plan, format)


@pytest.mark.parametrize("format", RECIPES)
def test_a_recipe_would_be_carried_out_on_another_model(format: str, llama: Path, tiny_text: Path) -> None:
    for spelling in ("smooth/0.5", "split/32"):
        model, plan, _ = prepared(llama, tiny_text, spelling)
        with pytest.raises(UserError, match=rf"on the checkpoint as it was before {spelling}@\w{{12}}; export the"):
            check_export(model, plan, format)


def test_a_recipe_holds_a_model_that_was_left_alone(llama: Path, tiny_text: Path) -> None:
    _, plan, _ = prepared(llama, tiny_text, LEFT_ALONE)
    assert plan.model.endswith(f"+{LEFT_ALONE}")
    refuse_transforms(plan, "llm-compressor")
    _, plan, _ = prepared(llama, tiny_text, LEFT_ALONE, "smooth/0.5")
    with pytest.raises(UserError, match=r"before rewrite/none, smooth/0\.5@"):
        refuse_transforms(plan, "llm-compressor")


@pytest.mark.parametrize("format", [*RECIPES, "compressed-tensors", "gguf"])
def test_no_format_has_outlier_columns(format: str, llama: Path, tiny_text: Path) -> None:
    model, plan, _ = prepared(llama, tiny_text, low="w=int8/channel a=int8/token/outliers-6")
    with pytest.raises(
        UserError, match=r"outlier columns(.|\n)*0\.self_attn\.q_proj: a=int8/token/outliers-6(.|\n)*1\."
    ):
        check_export(model, plan, format)


def test_outlier_columns_survive_the_native_folder(llama: Path, tmp_path: Path, tiny_text: Path) -> None:
    model, plan, stats = prepared(llama, tiny_text, low="w=int8/channel a=int8/token/outliers-1.5")
    quantized = quantize(model, plan, stats)
    write_native(quantized, plan, tmp_path / "native")
    again, _ = read_native(tmp_path / "native", Runtime())
    assert torch.equal(logits_of(again, IDS), logits_of(quantized, IDS))

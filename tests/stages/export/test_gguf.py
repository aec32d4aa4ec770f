"""The GGUF file read back; what llama.cpp makes of it is in tests/engines."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.maths.tensors import fake_quantize
from qarat.model.model import Model
from qarat.model.native import read_native, write_native
from qarat.model.opening import open_model
from qarat.stages.export.base import check_export, export_model
from qarat.stages.export.gguf.types import tensor_name
from qarat.stages.quantize import quantize
from qarat.testing import tiny_checkpoint
from qarat.values.parsing import parse_tensor_scheme
from qarat.values.plans import Plan, assign

gguf = pytest.importorskip("gguf", reason="needs gguf: pip install qarat[gguf]")

LOW = "w=int8/channel"
RULES = (("1.down", "float"), ("0.down", "w=int4/g32"), ("1.o", "w=mxfp4"))


@pytest.fixture
def make(tmp_path: Path, with_merge: Callable[[Path], Path]) -> Callable[..., Model]:
    def made(**config: Any) -> Model:
        return open_model(str(with_merge(tiny_checkpoint(tmp_path / "tiny", hidden=64, intermediate=96, **config))))

    return made


def plan_of(model: Model, *rules: tuple[str, str]) -> Plan:
    return assign(model.fingerprint, model.source_bits, model.sites(), LOW, rules)


def exported(model: Model, out: Path, *rules: tuple[str, str]) -> tuple[Any, list[str]]:
    plan = plan_of(model, *rules)
    notes = export_model(quantize(model, plan), plan, out, "gguf")
    return gguf.GGUFReader(out / "model.gguf"), list(notes)


def value(tensor: Any) -> Tensor:
    data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return torch.tensor(data).reshape(list(reversed(tensor.shape.tolist())))


def unpaired(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k in transformers' order."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(rows.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_tensor(make: Callable[..., Model], dtype: torch.dtype, tmp_path: Path) -> None:
    model = make(dtype=dtype, attention_bias=True)
    reader, notes = exported(model, tmp_path / "out", *RULES)
    floats = load_file(model.folder / "model.safetensors")
    tensors = {t.name: t for t in reader.tensors}
    assert tensors.keys() == {tensor_name(name) for name in floats}
    plain = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    special = {"blk.1.ffn_down": plain, "blk.0.ffn_down": "Q4_0", "blk.1.attn_output": "MXFP4"}
    for name, expected in floats.items():
        tensor = tensors[tensor_name(name)]
        low = "Q8_0" if "_proj" in name else plain
        kind = "F32" if expected.dim() == 1 else special.get(tensor.name.removesuffix(".weight"), low)
        assert tensor.tensor_type.name == kind, name
        found = value(tensor)
        if "q_proj" in name or "k_proj" in name:
            found = unpaired(found, 4 if "q_proj" in name else 2)
        if kind in ("F32", "F16", "BF16"):
            assert found.equal(expected.float()), name
        else:
            spelled = {"Q8_0": "int8/g32/scale-float16", "Q4_0": "int4/g32/scale-float16", "MXFP4": "mxfp4"}[kind]
            ours = fake_quantize(expected.float(), parse_tensor_scheme(spelled, "w"))
            error, reference = ((v - expected.float()).square().mean() for v in (found, ours))
            assert error < 1.15 * reference, name  # the same bits in the same blocks
    assert "w=int4/g32 → Q4_0: 0.down" in notes
    assert f"float → {plain}: 1.down" in notes


def test_each_matrix_keeps_its_own_dtype(make: Callable[..., Model], tmp_path: Path) -> None:
    file = make(dtype=torch.bfloat16).folder / "model.safetensors"
    wide = ("lm_head.weight", "model.layers.1.mlp.down_proj.weight")
    state = {name: tensor.float() + 1e-4 if name in wide else tensor for name, tensor in load_file(file).items()}
    save_file(state, file, {"format": "pt"})
    read, _ = exported(open_model(str(file.parent)), tmp_path / "out", ("1.down", "float"), ("0.down", "float"))
    tensors = {t.name: t for t in read.tensors}
    kinds = {name: tensors[name].tensor_type.name for name in ("output.weight", "blk.1.ffn_down.weight")}
    assert kinds == dict.fromkeys(kinds, "F32")
    assert value(tensors["output.weight"]).equal(state["lm_head.weight"])
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name == "BF16"


def test_mxfp4_is_held_exactly(make: Callable[..., Model], tmp_path: Path) -> None:
    model = make()
    reader, _ = exported(model, tmp_path / "out", *RULES)
    found = next(value(t) for t in reader.tensors if t.name == "blk.1.attn_output.weight")
    weight = load_file(model.folder / "model.safetensors")["model.layers.1.self_attn.o_proj.weight"]
    torch.testing.assert_close(found, fake_quantize(weight, parse_tensor_scheme("mxfp4", "w")), rtol=0, atol=0)


def test_hyperparameters_and_tokens(make: Callable[..., Model], tmp_path: Path) -> None:
    model = make(tied=True)
    reader, _ = exported(model, tmp_path / "out")
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["llama.context_length"] == 64
    assert (fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]) == (4, 2)
    assert (fields["llama.rope.dimension_count"], fields["llama.rope.freq_base"]) == (16, 10000.0)
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(model.config.rms_norm_eps)
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    tokens = fields["tokenizer.ggml.tokens"]
    assert len(tokens) == 128
    assert [tokens[i] for i in (0, 3)] == model.tokenizer.convert_ids_to_tokens([0, 3])
    assert fields["tokenizer.ggml.merges"] == ["t h"]
    assert fields["tokenizer.ggml.bos_token_id"] == 0
    assert fields["tokenizer.ggml.add_bos_token"]
    assert "output.weight" not in {t.name for t in reader.tensors}


def test_codes_alone_are_rounded_again_and_said_so(make: Callable[..., Model], tmp_path: Path) -> None:
    model = make()
    plan = plan_of(model, *RULES)
    write_native(quantize(model, plan), plan, tmp_path / "native")
    again, _ = read_native(tmp_path / "native")
    notes = export_model(again, plan, tmp_path / "out", "gguf")
    assert any("13 sites are rounded a second time" in note for note in notes)
    found = {t.name: value(t) for t in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    weight = load_file(model.folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    ours = fake_quantize(
        fake_quantize(weight, parse_tensor_scheme("int8/channel", "w")),
        parse_tensor_scheme("int8/g32/scale-float16", "w"),
    )
    torch.testing.assert_close(found["blk.0.ffn_up.weight"], ours, rtol=0, atol=2 * ours.abs().max().item() / 127)


def test_beside_its_float_model_a_quantized_folder_is_rounded_once(
    make: Callable[..., Model], tiny_llama: Path, qarat: Callable[..., Any], tmp_path: Path
) -> None:
    model = make()
    exported(model, tmp_path / "once", *RULES)
    plan = plan_of(model, *RULES)
    write_native(quantize(model, plan), plan, tmp_path / "native")
    words = ["export", tmp_path / "native", "--format", "gguf", "-o", tmp_path / "out", "--source"]
    refused = qarat(*words, tiny_llama)
    assert refused.code == 1
    assert f"was made from the model {model.fingerprint[:12]}" in refused.err
    assert qarat(*words, model.folder).code == 0
    assert (tmp_path / "out" / "model.gguf").read_bytes() == (tmp_path / "once" / "model.gguf").read_bytes()


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"architecture": "mistral", "sliding_window": 8}, "sliding attention window"),
        ({"hidden_act": "gelu"}, "activation gelu"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
            "rotary embedding of type dynamic",
        ),
        (
            {"architecture": "qwen2", "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "linear in qwen2",
        ),
    ],
)
def test_models_without_words_are_refused(make: Callable[..., Model], config: dict[str, Any], complaint: str) -> None:
    model = make(**config)
    with pytest.raises(UserError, match=complaint):
        check_export(model, plan_of(model), "gguf")


@pytest.mark.parametrize("change", ["merges", "prefix", "pattern", "kind"])
def test_tokenizers_without_a_name_are_refused(make: Callable[..., Model], change: str) -> None:
    folder = make().folder
    data = json.loads((folder / "tokenizer.json").read_text())
    if change == "merges":
        data["model"]["merges"] = []
    elif change == "prefix":
        data["pre_tokenizer"]["add_prefix_space"] = True
    elif change == "pattern":
        split = {"type": "Split", "pattern": {"Regex": r"\d"}, "behavior": "Isolated", "invert": False}
        level = data["pre_tokenizer"] | {"use_regex": False}
        data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    else:
        data["pre_tokenizer"] = {"type": "Whitespace"}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    model = open_model(str(folder))
    with pytest.raises(UserError, match="`format` llama-cpp"):
        check_export(model, plan_of(model), "gguf")


def test_llama3_tokenizers_go_by_their_name(make: Callable[..., Model], tmp_path: Path) -> None:
    folder = make().folder
    data = json.loads((folder / "tokenizer.json").read_text())
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = data["pre_tokenizer"] | {"use_regex": False}
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    merging = open_model(str(folder))
    with pytest.raises(UserError, match=r"merges every word, which llama\.cpp's llama-bpe does not"):
        check_export(merging, plan_of(merging), "gguf")
    data["model"]["ignore_merges"] = True
    (folder / "tokenizer.json").write_text(json.dumps(data))
    reader, _ = exported(open_model(str(folder)), tmp_path / "out")
    assert reader.fields["tokenizer.ggml.pre"].contents() == "llama-bpe"


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path: Path, with_merge: Callable[[Path], Path]) -> None:
    model = open_model(str(with_merge(tiny_checkpoint(tmp_path / "tiny", hidden=64, intermediate=72))))
    with pytest.raises(UserError, match="rows of 72 weights") as error:
        check_export(model, plan_of(model), "gguf")
    assert all(f"model.layers.{i}.mlp.down_proj" in str(error.value) for i in range(2))
    check_export(model, plan_of(model, ("*.down_proj", "float")), "gguf")


def test_a_scales_dtype_is_not_the_models(make: Callable[..., Model], tmp_path: Path) -> None:
    model = make()
    plan = plan_of(model, ("0.down", "w=int8/g32/scale-float16"), ("1.down", "float"))
    write_native(quantize(model, plan), plan, tmp_path / "native")
    again, _ = read_native(tmp_path / "native")
    export_model(again, plan, tmp_path / "out", "gguf")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    assert (kinds["blk.1.ffn_down.weight"], kinds["token_embd.weight"]) == ("F32", "F32")

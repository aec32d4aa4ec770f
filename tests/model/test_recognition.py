"""Folders that hold no float model, each refused in one line by what it is, with the way out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.model.finding import find_checkpoint
from qarat.model.opening import open_model
from qarat.stages.read_back.stored import read_config
from qarat.testing import tiny_checkpoint

State = dict[str, Tensor]
ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "own/base"}


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def refusal(folder: Path, *words: str) -> str:
    with pytest.raises(UserError) as told:
        open_model(str(folder))
    said = str(told.value)
    assert "\n" not in said
    assert all(word in said for word in words), said
    return said


def rewrite(folder: Path, change: Callable[[State], State]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


# ---------------------------------------------------------------- adapters


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_alone(with_config: bool, folder: Path):
    if not with_config:
        (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    refusal(folder, "LoRA adapter", "its base model, own/base,", "merge_and_unload")


@pytest.mark.parametrize(
    ("fields", "weights", "words"),
    [
        (
            {"peft_type": "IA3", "base_model_name_or_path": "own/base"},
            "adapter_model",
            ("an adapter (IA3)", "merge_and"),
        ),
        ({"peft_type": "PREFIX_TUNING"}, "adapter_model", ("an adapter (PREFIX_TUNING)", "cannot be merged")),
        ({"peft_type": "PROMPT_TUNING"}, "adapter_model", ("beside the weights", "takes the base model by itself")),
        ({"fine_tune_type": "lora", "model": "own/base"}, "adapters", ("base model, own/base,", "mlx_lm.fuse")),
        ({"fine_tune_type": "lora"}, "0000100_adapters", ("LoRA adapter", "mlx_lm.fuse")),
    ],
)
def test_adapters_of_other_kinds(fields: dict[str, Any], weights: str, words: tuple[str, ...], tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    save_file({"x": torch.zeros(1)}, tmp_path / f"{weights}.safetensors")
    refusal(tmp_path, *words)


def test_an_adapter_beside_its_base_model_is_said_not_to_be_applied(folder: Path):
    assert open_model(str(folder)).checkpoint.notes == ()
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    save_file({"x": torch.zeros(1)}, folder / "adapter_model.safetensors")
    (note,) = open_model(str(folder)).checkpoint.notes
    assert "adapter_config.json is not applied" in note


def test_an_adapter_that_was_not_merged(folder: Path):
    def unmerged(state: State) -> State:
        q = "base_model.model.model.layers.0.self_attn.q_proj"
        return {f"base_model.model.{n}": t for n, t in state.items()} | {
            f"{q}.lora_A.default.weight": torch.zeros(4, 32)
        }

    rewrite(folder, unmerged)
    refusal(folder, "LoRA matrices", "merge_and_unload")


@pytest.mark.parametrize("leaf", ["q_proj.base_layer.weight", "q_proj.lora_B.default.weight"])
def test_names_that_an_adapter_left(leaf: str, folder: Path):
    rewrite(folder, lambda state: {name.replace("q_proj.weight", leaf): tensor for name, tensor in state.items()})
    refusal(folder, "another adapter put beside the weights", "merge_and_unload")


# ---------------------------------------------------------------- quantized by others


def quantized(state: State, kind: str) -> State:
    made: State = {}
    for name, weight in state.items():
        if not name.endswith("_proj.weight"):
            made[name] = weight
            continue
        home, (rows, cols) = name.removesuffix(".weight"), weight.shape
        if kind == "bitsandbytes":
            made |= {name: torch.zeros(rows * cols // 2, 1, dtype=torch.uint8), f"{name}.absmax": torch.ones(rows)}
        elif kind == "ModelOpt":
            made |= {name: weight.to(torch.float8_e4m3fn), f"{home}.weight_scale": torch.tensor(0.01)}
        elif kind == "FP8":
            made |= {name: weight.to(torch.float8_e4m3fn), f"{home}.weight_scale_inv": torch.ones(1, 1)}
        else:
            made |= {
                f"{home}.qweight": torch.zeros(cols // 8, rows, dtype=torch.int32),
                f"{home}.scales": torch.ones(1),
            }
            made |= {f"{home}.g_idx": torch.zeros(cols, dtype=torch.int32)} if kind == "GPTQ" else {}
    return made


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("GPTQ", None),
        ("GPTQ", "quantize_config.json"),
        ("AWQ", None),
        ("AWQ", "quant_config.json"),
        ("ModelOpt", "hf_quant_config.json"),
        ("bitsandbytes", None),
        ("FP8", None),
    ],
)
def test_what_others_quantized_is_called_by_its_name(kind: str, file: str | None, folder: Path):
    rewrite(folder, lambda state: quantized(state, kind))
    if file is not None:
        (folder / file).write_text("{}")
    refusal(folder, f"{folder} is quantized already (", kind, "float checkpoint")
    with pytest.raises(UserError, match=rf"is quantized \(.*{kind}.*; qarat verifies compressed-tensors"):
        read_config(folder)


@pytest.mark.parametrize(
    ("kind", "leaf", "dtype"),
    [
        ("HQQ", "W_q", torch.uint8),
        ("EETQ", "weight_scales", torch.float16),
        ("quanto", "weight._data", torch.int8),
        ("EXL2", "q_weight", torch.int32),
        ("EXL3", "trellis", torch.int16),
        ("AQLM", "codebooks", torch.float16),
        ("VPTQ", "centroids.weight", torch.float16),
        ("SpQR", "dense_weights", torch.int64),
        ("HIGGS", "tables", torch.float16),
        ("MLX", "scales", torch.float16),
        ("bitsandbytes", "SCB", torch.float32),
    ],
)
def test_methods_are_told_by_their_tensors(kind: str, leaf: str, dtype: torch.dtype, folder: Path):
    home = "model.layers.0.mlp.up_proj"
    rewrite(
        folder,
        lambda state: (
            {n: t for n, t in state.items() if not n.startswith(home)} | {f"{home}.{leaf}": torch.zeros(4, dtype=dtype)}
        ),
    )
    refusal(folder, f"quantized already ({kind})")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_codes_without_any_scale_are_no_float_weights(dtype: torch.dtype, folder: Path):
    rewrite(folder, lambda state: {n: t.to(dtype) if "_proj" in n else t for n, t in state.items()})
    refusal(folder, "quantized already (it does not say how)", "float checkpoint")


@pytest.mark.parametrize(
    ("file", "fields", "kind"),
    [
        ("quanto_qmap.json", {}, "quanto"),
        ("quantization_config.json", {}, "AutoRound"),
        ("quantize_config.json", {"quant_method": "auto-round"}, "auto-round"),
    ],
)
def test_files_that_name_the_method(file: str, fields: dict[str, str], kind: str, folder: Path):
    rewrite(folder, lambda state: quantized(state, "GPTQ"))
    (folder / file).write_text(json.dumps(fields))
    refusal(folder, f"quantized already ({kind})")


def set_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_config_that_says_so_of_float_weights(folder: Path):
    set_config(folder, quantization_config={"quant_method": "awq"})
    refusal(folder, "quantized already (awq)", "where the float weights here are its own, take quantization_config out")
    rewrite(folder, lambda state: quantized(state, "AWQ"))
    assert "take quantization_config out" not in refusal(folder, "quantized already (awq)")


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("said", ["auto", "fp16", "torch.float16"])
def test_a_dtype_that_is_none(key: str, said: str, folder: Path):
    set_config(folder, **({"dtype": None} | {key: said}))
    refusal(folder, f"'{said}' is no dtype that transformers reads", "float16, bfloat16 or float32")


def test_the_older_name_of_quantization_config(folder: Path):
    set_config(folder, compression_config={"quant_method": "compressed-tensors", "format": "int-quantized"})
    refusal(folder, "quantized already (compressed-tensors)")
    with pytest.raises(UserError, match=r"under compression_config, .* rename it quantization_config"):
        read_config(folder)


def test_a_config_left_behind_beside_float_weights_is_no_quantization(folder: Path):
    (folder / "quantize_config.json").write_text("{}")
    open_model(str(folder))
    with pytest.raises(UserError, match="is not quantized"):
        read_config(folder)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("prefix", "who"),
    [
        ("_orig_mod.", "torch.compile"),
        ("module.", "DataParallel"),
        ("base_model.model.", "PEFT"),
        ("module._orig_mod.", "torch.compile"),
        ("_fsdp_wrapped_module.", "as FSDP wraps"),
        ("some.thing.", ""),
    ],
)
def test_a_prefix_on_all_names(prefix: str, who: str, folder: Path):
    rewrite(folder, lambda state: {prefix + name: tensor for name, tensor in state.items()})
    refusal(folder, f"begin with {prefix!r}", who, "save the model that is inside")


def test_names_without_the_models_own_prefix(folder: Path):
    bare = {"lm_head.weight"}
    rewrite(folder, lambda state: {n.removeprefix("model."): t for n, t in state.items() if n not in bare})
    refusal(folder, "lack 'model.'", "head and all")


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_a_language_model_inside_a_model_of_images(prefix: str, folder: Path):
    rewrite(folder, lambda state: {n.replace("model.", prefix, 1): t for n, t in state.items()})
    refusal(folder, "have 'language_model.' in them", "images (or sound) and text", "save the one inside it")


def test_the_config_of_a_model_of_images(folder: Path):
    set_config(folder, architectures=["Gemma3ForConditionalGeneration"], text_config={"hidden_size": 32})
    refusal(folder, "Gemma3ForConditionalGeneration", "images (or sound) and text")


def test_metas_own_names(folder: Path):
    names = {"model.layers": "layers", "self_attn.q_proj": "attention.wq", "mlp.gate_proj": "feed_forward.w1"}

    def renamed(name: str) -> str:
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        return name

    rewrite(folder, lambda state: {renamed(name): tensor for name, tensor in state.items()})
    refusal(folder, "Meta's and Mistral's own format", "take transformers' instead")


# ---------------------------------------------------------------- files that are not what they are called


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("pytorch_model.bin", "pickled by PyTorch"),
        ("consolidated.00.pth", "Meta's own format"),
        ("model.pt", "save_pretrained"),
        ("onnx/model.onnx", "an ONNX model"),
        ("openvino_model.bin", "an OpenVINO model"),
        ("tf_model.h5", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
        ("__0_0.distcp", "a distributed checkpoint"),
        ("global_step9/zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_to_fp32"),
    ],
)
def test_other_weights_are_called_by_their_kind(file: str, said: str, folder: Path):
    (folder / "model.safetensors").unlink()
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).touch()
    refusal(folder, "holds no safetensors weights, but", said)
    (folder / "config.json").unlink()
    refusal(folder, "holds no config.json, but", said)
    with pytest.raises(UserError, match=f"is a file, not a folder; .*{said}"):
        find_checkpoint(str(folder / file))


def test_a_gguf_file_in_capitals(tmp_path: Path):
    path = tmp_path / "Model.GGUF"
    path.touch()
    assert find_checkpoint(str(path)) == find_checkpoint(str(tmp_path)) == path


def test_a_pointer_of_git_lfs(folder: Path):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refusal(folder, "is Git LFS's pointer to the weights", "git lfs pull")


def test_a_folder_without_a_tokenizer(folder: Path):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="cannot be read: there is none; copy tokenizer") as told:
        _ = open_model(str(folder)).tokenizer
    assert "\n" not in str(told.value)


def test_weights_that_are_not_there_are_looked_for_on_no_hub():
    with pytest.raises(UserError, match=r"no such file: models/x\.safetensors"):
        find_checkpoint("models/x.safetensors")


# ---------------------------------------------------------------- shards


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "sharded", max_shard_size="40KB")


def test_an_index_of_another_save(sharded: Path, folder: Path):
    shutil.copy(sharded / "model.safetensors.index.json", folder)
    refusal(
        folder, "is of another save: it names model-00001", "model.safetensors is what lies there", "remove the index"
    )


@pytest.mark.parametrize("name", ["model-00001-of-00099.safetensors", "model.safetensors"])
def test_weights_that_the_index_does_not_name(name: str, sharded: Path):
    open_model(str(sharded))
    save_file({"x": torch.zeros(1)}, sharded / name)
    refusal(sharded, f"does not name: {name}; remove")


def test_shards_that_are_not_all_there_and_have_no_index(sharded: Path):
    (sharded / "model.safetensors.index.json").unlink()
    open_model(str(sharded))
    shards = sorted(sharded.glob("*.safetensors"))
    shards[0].unlink()
    refusal(sharded, f"{len(shards) - 1} of {len(shards)} shards", "fetch the others")


# ---------------------------------------------------------------- places


def test_a_file_where_a_folder_is_meant(folder: Path, tmp_path: Path):
    for path in (tmp_path / "README.md", folder / "model.safetensors"):
        path.touch()
        with pytest.raises(UserError, match=rf"is a file, not a folder; give the folder .*\(is it {path.parent}\?\)"):
            find_checkpoint(str(path))


def test_a_folder_of_folders(folder: Path):
    with pytest.raises(UserError, match=f"holds no config.json.*; there is one in {folder}"):
        find_checkpoint(str(folder.parent))


def test_a_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find_checkpoint("~/model/") == folder


def test_hub_names_and_their_revisions(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []

    def download(hub_id: str, revision: str | None, **_: Any) -> str:
        asked.append((hub_id, revision))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for name in ("a/b/", "https://huggingface.co/a/b", "a/b@v1", "https://hf.co/a/b/tree/v1"):
        assert find_checkpoint(name) == folder
    find_checkpoint("a/b@v1", "v1")
    assert asked == [("a/b", None), ("a/b", None), ("a/b", "v1"), ("a/b", "v1"), ("a/b", "v1")]
    with pytest.raises(UserError, match="names the revision v1, and `revision` is v2"):
        find_checkpoint("a/b@v1", "v2")


def test_a_hub_that_is_not_reached():
    with pytest.raises(UserError, match="the hub cannot be reached, and nothing of it is in the cache") as told:
        find_checkpoint("own/nosuch")
    assert len(str(told.value)) < 400

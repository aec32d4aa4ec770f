import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.model.checkpoints import Checkpoint
from qarat.model.finding import find_checkpoint
from qarat.model.opening import open_model
from qarat.model.reference_models import reference_models
from qarat.testing import plant_spike, tiny_checkpoint, tiny_tokenizer

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny LLaMA that a test may spoil."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "sharded", max_shard_size="40KB")


def refusal(name: Path | str, *words: str) -> str:
    """Open a model that cannot be opened; its message, which holds every one of the words."""
    with pytest.raises(UserError) as caught:
        open_model(str(name))
    message = str(caught.value)
    assert all(word in message for word in words), message
    return message


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def edit_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


# ---------------------------------------------------------------- finding


def test_a_folder_is_found(tiny_llama: Path):
    assert find_checkpoint(str(tiny_llama)) == tiny_llama


def test_a_reference_model_is_found_by_name():
    for name, folder in reference_models().items():
        assert find_checkpoint(name) == folder


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_no_such_folder(name: str):
    refusal(name, "no such folder", name, "reference model")


def test_a_folder_without_config(tmp_path: Path):
    refusal(tmp_path, str(tmp_path), "config.json", "give the folder")


def test_hub_without_network(monkeypatch: pytest.MonkeyPatch):
    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("name resolution failed\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    message = refusal("someone/some-model", "someone/some-model", "hub", "name resolution failed", "give its folder")
    assert "much more" not in message


def test_hub_gives_a_folder(monkeypatch: pytest.MonkeyPatch, tiny_llama: Path):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tiny_llama))
    assert find_checkpoint("someone/some-model", "main") == tiny_llama


# ---------------------------------------------------------------- config


def test_damaged_config(folder: Path):
    (folder / "config.json").write_text("{")
    refusal(folder, "config.json cannot be read")


@pytest.mark.parametrize("field", [{"hidden_size": "wide"}, {"model_type": "unheard-of"}])
def test_senseless_config(folder: Path, field: dict[str, Any]):
    edit_config(folder, **field)
    refusal(folder, "config.json cannot be read", *map(str, field.values()))


@pytest.mark.parametrize("asked", ["GPT2LMHeadModel", "UnheardForCausalLM"])
def test_unsupported_architecture(folder: Path, asked: str):
    edit_config(folder, architectures=[asked], model_type="unheard-of")
    refusal(folder, asked, "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def test_the_folders_own_code_is_never_run(folder: Path):
    edit_config(folder, model_type="unheard-of", auto_map={"AutoConfig": "evil.Config"})
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    refusal(folder, "config.json cannot be read")


def test_a_quantized_checkpoint_is_refused(folder: Path):
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    refusal(folder, "quantized already", "gptq", "float checkpoint")


# ---------------------------------------------------------------- weight files


def test_no_weights(folder: Path):
    (folder / "model.safetensors").unlink()
    refusal(folder, "no safetensors weights", "convert")


def test_truncated_safetensors(folder: Path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refusal(folder, str(path), "truncated or damaged", "again")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 1000, (50).to_bytes(8, "little") + b"{" * 50])
def test_garbage_header(folder: Path, content: bytes):
    path = folder / "model.safetensors"
    path.write_bytes(content)
    refusal(folder, str(path), "truncated or damaged")


def test_missing_shard(sharded: Path):
    shards = sorted(sharded.glob("*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    refusal(sharded, "index.json", "missing", shards[1].name)


@pytest.mark.parametrize("outside", ["../stolen.safetensors", "/etc/stolen.safetensors", "sub/stolen.safetensors"])
def test_index_with_a_path_outside_the_folder(sharded: Path, outside: str):
    (sharded.parent / "stolen.safetensors").write_bytes(b"")
    edit_index(sharded, lambda index: index["weight_map"].update({UP: outside}))
    refusal(sharded, "index.json", "outside the folder", outside)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_damaged_index(sharded: Path, content: str):
    (sharded / "model.safetensors.index.json").write_text(content)
    refusal(sharded, "index.json", "damaged")


def test_empty_index(sharded: Path):
    edit_index(sharded, lambda index: index.update(weight_map={}))
    refusal(sharded, "index.json", "names no weights")


def test_a_tensor_in_two_files(sharded: Path):
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    save_file(load_file(first) | load_file(second), second, metadata={"format": "pt"})
    refusal(sharded, first.name, second.name, "remove")


def test_stray_files_beside_the_model_do_not_count(folder: Path):
    before = Checkpoint(folder).fingerprint
    save_file({UP: torch.zeros(1)}, folder / "consolidated.safetensors")
    assert Checkpoint(folder).fingerprint == before
    open_model(str(folder))


# ---------------------------------------------------------------- config against weights


def test_shapes_that_disagree_are_all_listed(folder: Path):
    edit_config(folder, intermediate_size=48)
    message = refusal(folder, "config and weights disagree", "(64, 32) in the file, (48, 32) by the config")
    for block in range(2):
        for leaf in ("gate_proj", "up_proj", "down_proj"):
            assert f"model.layers.{block}.mlp.{leaf}.weight" in message


def test_missing_tensors_are_all_listed(folder: Path):
    gone = [UP, "model.norm.weight", "model.layers.0.input_layernorm.weight"]
    edit_weights(folder, lambda state: [state.pop(name) for name in gone])
    refusal(folder, *(f"{name}: missing" for name in gone))


def test_surplus_tensors_are_listed(folder: Path):
    edit_config(folder, num_hidden_layers=1)
    refusal(folder, f"{UP}: in the file, not in the model")


def test_a_bias_that_the_config_does_not_know(folder: Path):
    edit_weights(folder, lambda state: state.update({UP.replace("weight", "bias"): torch.ones(64)}))
    refusal(folder, "up_proj.bias: in the file, not in the model")


def test_derived_buffers_of_old_checkpoints_are_let_through(folder: Path):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(folder, lambda state: state.update({name: torch.ones(4)}))
    open_model(str(folder))


def test_weights_that_are_not_float(folder: Path):
    edit_weights(folder, lambda state: state.update({UP: state[UP].to(torch.float8_e4m3fn)}))
    refusal(folder, f"{UP}: kept as F8_E4M3")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_name_the_tensor(folder: Path, value: float):
    edit_weights(folder, lambda state: state[UP][3, 5:7].fill_(value))
    model = open_model(str(folder))
    with pytest.raises(UserError, match="NaN or Inf") as caught:
        list(model.walk())
    assert f"{UP}: 2 of 2048 values" in str(caught.value)


def test_nan_outside_the_blocks(folder: Path):
    edit_weights(folder, lambda state: state["lm_head.weight"][0, :1].fill_(float("nan")))
    refusal(folder, "lm_head.weight: 1 of 4096 values are NaN or Inf")


def test_tied_by_config_but_two_in_the_file(folder: Path):
    edit_config(folder, tie_word_embeddings=True)
    refusal(folder, "lm_head.weight", "model.embed_tokens.weight", "tie_word_embeddings")


def test_tied_and_twice_the_same_in_the_file(folder: Path):
    edit_config(folder, tie_word_embeddings=True)
    edit_weights(folder, lambda state: state.update({"lm_head.weight": state["model.embed_tokens.weight"].clone()}))
    open_model(str(folder))


# ---------------------------------------------------------------- tokenizer


def test_tokenizer_with_more_ids_than_embeddings(tmp_path: Path):
    folder = tiny_checkpoint(tmp_path, vocabulary=64)
    tiny_tokenizer(70).save_pretrained(folder)
    refusal(folder, "70 ids", "64 rows", "same model")


@pytest.mark.parametrize("content", [None, "{", '{"version": "1.0"}'])
def test_tokenizer_missing_or_damaged(folder: Path, content: str | None):
    (folder / "tokenizer.json").unlink()
    if content is not None:
        (folder / "tokenizer.json").write_text(content)
    refusal(folder, "tokenizer", str(folder), "cannot be read")


@pytest.mark.parametrize("declared", ["TokenizersBackend", "PreTrainedTokenizerFast"])
def test_a_plain_tokenizer_is_read_as_its_file_says_though_the_architecture_has_its_own(declared: str, tmp_path: Path):
    folder = tiny_checkpoint(tmp_path, architecture="qwen2")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": declared}))
    tokenizer, text = Checkpoint(folder).tokenizer, "def f(x): return 'a1'"
    assert tokenizer.encode(text) == Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert "<|endoftext|>" not in tokenizer.get_vocab()


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_source_dtype(dtype: torch.dtype, tmp_path: Path):
    checkpoint = Checkpoint(tiny_checkpoint(tmp_path, dtype=dtype))
    assert checkpoint.dtype == dtype
    files = [load_file(path) for path in tmp_path.glob("*.safetensors")]
    assert checkpoint.weight_bytes() == sum(t.nbytes for file in files for t in file.values())


def test_shards_and_one_file_hold_the_same(folder: Path, sharded: Path):
    wanted = load_file(folder / "model.safetensors")
    one, many = Checkpoint(folder), Checkpoint(sharded)
    assert one.weight_bytes() == many.weight_bytes()
    read = many.read("", wanted, Runtime())
    assert all(torch.equal(read[name], tensor) for name, tensor in wanted.items())


def test_fingerprint_follows_config_and_weights(folder: Path, tiny_llama: Path):
    original = Checkpoint(tiny_llama).fingerprint
    assert Checkpoint(folder).fingerprint == original
    edit_config(folder, rms_norm_eps=1e-4)
    changed = Checkpoint(folder).fingerprint
    plant_spike(folder, 0, 0, 2.0)
    assert len({original, changed, Checkpoint(folder).fingerprint}) == 3


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no such advice")
@pytest.mark.parametrize("backwards", [False, True])
def test_the_next_block_is_asked_for_while_one_is_gone_through(
    backwards: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tiny_checkpoint(tmp_path, blocks=3, max_shard_size="40KB")
    asked: list[bytes] = []

    def advise(file: int, begin: int, size: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        asked.append(os.pread(file, size, begin))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    model = open_model(str(folder), Runtime(memory=1))
    order: list[int] = []
    for index, _ in model.walk(backwards=backwards):
        order.append(index)
        following = index + (-1 if backwards else 1)
        wanted = model.load_float_block(following).state_dict() if 0 <= following < 3 else {}
        assert sorted(asked) == sorted(value.numpy().tobytes() for value in wanted.values())
        asked.clear()
    assert order == ([2, 1, 0] if backwards else [0, 1, 2])

"""What a kernel asks of a folder besides its scheme: groups and tiles that fit, an order, a format, weights at all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file, save_file
from torch import Tensor

from qarat.jobs.verify import verify
from qarat.testing import tiny_checkpoint
from qarat.values.records.verification import Finding, Verification

Config = dict[str, Any]
State = dict[str, Tensor]
FUSING = ("vllm", "sglang")
ALL = ("transformers", *FUSING)


def the_one(verification: Verification, *texts: str) -> Finding:
    found = [f for f in verification.findings if all(text in f.what for text in texts)]
    assert len(found) == 1, [f.what for f in verification.findings]
    return found[0]


def told(verification: Verification) -> list[str]:
    return [f.what for f in verification.findings if f.severity != "note"]


def folder_of(
    home: Path, weights: Config, inputs: Config | None, format: str, architecture: Any = "qwen3", **shape: Any
) -> Path:
    """A folder of a stranger's: every projection stored as a group says, its numbers drawn at random."""
    folder = tiny_checkpoint(home / "model", architecture=architecture, blocks=1, **shape)
    state = load_file(folder / "model.safetensors")
    stored: State = {}
    for name, weight in state.items():
        if not name.endswith("_proj.weight"):
            stored[name] = weight
            continue
        leaf, (rows, cols) = name.removesuffix("weight"), weight.shape
        tall, wide = weights.get("block_structure") or (1, weights.get("group_size") or cols)
        stored[f"{leaf}weight_scale"] = torch.full((-(-rows // tall), -(-cols // wide)), 0.01)
        if weights["num_bits"] == 4:
            codes = torch.randint(-7, 8, (rows, cols), dtype=torch.int8)
            stored |= {
                f"{leaf}weight_packed": pack_to_int32(codes, 4),
                f"{leaf}weight_shape": torch.tensor((rows, cols)),
            }
        else:
            stored[name] = (8 * weight).to(torch.float8_e4m3fn)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    group = {"format": format, "targets": ["Linear"], "weights": weights, "input_activations": inputs}
    whole = {"quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed"}
    set_config(folder, {**whole, "ignore": ["lm_head"], "config_groups": {"group_0": group}})
    return folder


def set_config(folder: Path, quantization: Config, **fields: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = config.get("quantization_config", {}) | quantization
    path.write_text(json.dumps(config | fields))


def int4(size: int, **more: Any) -> Config:
    return {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": size, **more}


def fp8(strategy: str, **more: Any) -> Config:
    return {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, **more}


TOKEN = fp8("token", dynamic=True)


# ---------------------------------------------------------------- groups and tiles


def test_groups_that_channels_do_not_fill(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, int4(64), None, "pack-quantized", hidden=64, intermediate=96, heads=4)
    verification = verify(folder, ALL)
    found = the_one(verification, "its 96 input channels are no whole number of groups of 64")
    assert (found.severity, found.modules, found.engines) == ("error", ("model.layers.0.mlp.down_proj",), ALL)


@pytest.mark.parametrize("inputs", [TOKEN, fp8("group", group_size=64, dynamic=True)])
def test_tiles_of_inputs_that_channels_do_not_fill(inputs: Config, tmp_path: Path) -> None:
    weights = fp8("block", block_structure=[32, 64])
    folder = folder_of(tmp_path, weights, inputs, "float-quantized", hidden=64, intermediate=96, heads=4, kv_heads=2)
    said = "stops when it runs: 96 input channels" if inputs is TOKEN else "no whole number of groups of 64"
    found = the_one(verify(folder, FUSING), said)
    assert (found.severity, found.modules, found.engines) == ("error", ("model.layers.0.mlp.down_proj",), FUSING)


@pytest.mark.parametrize(("size", "fits"), [(16, False), (32, True)])
def test_groups_that_vllms_kernel_takes(size: int, fits: bool, tmp_path: Path) -> None:
    verification = verify(folder_of(tmp_path, int4(size), None, "pack-quantized"), ["vllm"])
    assert verification.passed
    assert told(verification) == ([] if fits else ["packed int takes groups of 32, 64, 128, not of 16"])


def test_an_order_without_its_tensor(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, int4(32, actorder="group"), None, "pack-quantized")
    found = the_one(verify(folder, FUSING), "weight_g_idx is missing")
    assert (found.severity, len(found.modules)) == ("error", 7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("scale", "severity"), [(1e-9, "warning"), (1e-5, "note"), (1e-3, "")])
def test_scales_below_float16(dtype: str, scale: float, severity: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, int4(32), None, "pack-quantized", architecture="mistral")
    set_config(folder, {}, dtype=dtype)
    state = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight_scale"
    state[name] = torch.full_like(state[name], scale)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    verification = verify(folder, ["vllm"])
    found = [f for f in verification.findings if "weight_scale: scales" in f.what]
    assert [f.severity for f in found] == ([severity] if severity and dtype == "float16" else [])
    assert all("serve it in bfloat16" in f.remedy for f in found)


# ---------------------------------------------------------------- inputs


@pytest.mark.parametrize(
    ("weights", "inputs", "runs"),
    [
        (fp8("channel"), fp8("tensor", dynamic=True), "per token"),
        (fp8("channel"), fp8("group", group_size=16, dynamic=True), "per token"),
        (fp8("block", block_structure=[8, 16]), TOKEN, "in groups of 16"),
        (fp8("channel"), TOKEN | {"symmetric": False}, "symmetrically"),
        (fp8("channel"), TOKEN, ""),
        (fp8("block", block_structure=[8, 16]), fp8("group", group_size=16, dynamic=True), ""),
    ],
)
def test_dynamic_inputs_run_as_the_kernel_has_them(weights: Config, inputs: Config, runs: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, weights, inputs, "float-quantized")
    found = [what for what in told(verify(folder, FUSING)) if "dynamic input" in what]
    assert len(found) == bool(runs)
    assert all(f"its dynamic input runs {runs}" in what for what in found)
    assert told(verify(folder, ["transformers"])) == []


# ---------------------------------------------------------------- what a config says, or does not


def test_no_format_anywhere(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, fp8("channel"), TOKEN, "float-quantized")
    group = {"targets": ["Linear"], "weights": fp8("channel"), "input_activations": TOKEN}
    set_config(folder, {"format": None, "config_groups": {"group_0": group}})
    found = the_one(verify(folder, ALL), "the format on top is missing, and group_0 has none of its own")
    assert (found.severity, found.engines) == ("error", FUSING)  # transformers infers it


def test_a_group_without_weights_is_one_finding(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, fp8("channel"), TOKEN, "float-quantized")
    tiny_checkpoint(tmp_path / "float", blocks=1, architecture="qwen3")
    (tmp_path / "float" / "model.safetensors").replace(folder / "model.safetensors")
    set_config(folder, {"config_groups": {"group_0": {"targets": ["Linear"], "input_activations": TOKEN}}})
    assert told(verify(folder, FUSING)) == [
        "refused: group_0 has no weights, and its input alone cannot be quantized there"
    ]


def test_a_group_of_attention_is_not_judged(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, fp8("channel"), TOKEN, "float-quantized")
    groups = {
        "group_0": {"targets": ["Linear"], "weights": fp8("channel"), "input_activations": TOKEN},
        "attention": {"targets": ["Qwen3Attention"], "input_activations": fp8("tensor", dynamic=False)},
    }
    set_config(folder, {"config_groups": groups})
    for engine in ALL:
        verification = verify(folder, [engine])
        assert told(verification) == ["attention quantizes attention (Qwen3Attention), which qarat does not follow"]
        assert verification.verdict == "not judged"


def test_keys_that_nobody_writes_are_not_judged(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, fp8("channel"), TOKEN, "float-quantized")
    set_config(folder, {"version": "0.12", "global_compression_ratio": 1.5, "provider": "auto-round"})
    assert verify(folder, ["vllm"]).passed
    set_config(folder, {"modules_to_not_convert": ["lm_head"], "zero": 1})
    verification = verify(folder, ["vllm"])
    assert verification.verdict == "not judged"
    assert "has modules_to_not_convert, zero, and what" in the_one(verification, "quantization_config has").what


def test_one_cause_is_one_finding_over_all_modules(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, fp8("channel"), TOKEN, "float-quantized")
    state = {
        n: t.to(torch.int8) if t.dtype == torch.float8_e4m3fn else t
        for n, t in load_file(folder / "model.safetensors").items()
    }
    state = {n: t for n, t in state.items() if "weight_scale" not in n}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (found,) = verify(folder, ALL).errors
    assert found.what == "weight_scale is missing; weight is I8, group_0 asks for F8_E4M3"
    assert (len(found.modules), found.engines) == (7, ALL)


# ---------------------------------------------------------------- norms, biases and strays

V, NORM = "model.layers.0.self_attn.v_proj.bias", "model.norm.weight"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (V, None, f"the tensor {V} is missing"),
        (V, torch.ones(3), f"{V} is (3,), the model asks for (16,)"),
        (V, torch.full((16,), torch.nan), f"{V}: 16 of 16 values are NaN or Inf"),
        (V, torch.ones(16, dtype=torch.int8), f"{V} is kept as I8"),
        (NORM, torch.full((32,), torch.inf), f"{NORM}: 32 of 32 values are NaN or Inf"),
        (NORM, torch.ones(32).to(torch.float8_e4m3fn), f"{NORM} is kept as F8_E4M3"),
    ],
)
def test_norms_and_biases(name: str, value: Tensor | None, said: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, fp8("channel"), TOKEN, "float-quantized", architecture="qwen2")
    assert verify(folder, ALL).passed
    state = load_file(folder / "model.safetensors")
    state = {n: t for n, t in state.items() if n != name} | ({} if value is None else {name: value})
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert the_one(verify(folder, ALL), said).severity == "error"


def test_biases_that_are_all_missing_are_one_finding(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, fp8("channel"), TOKEN, "float-quantized", architecture="qwen2")
    state = {n: t for n, t in load_file(folder / "model.safetensors").items() if not n.endswith("bias")}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (found,) = verify(folder, ALL).errors
    assert found.what.endswith("and 1 more are missing")


@pytest.mark.parametrize("leaf", ["bias", "output_scale", "g_idx", "qzeros", "pre_quant_scale", "zero_point"])
def test_tensors_of_a_module_that_nothing_asks_for(leaf: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, fp8("channel"), TOKEN, "float-quantized", architecture="mistral")
    name = f"model.layers.0.mlp.up_proj.{leaf}"
    state = load_file(folder / "model.safetensors") | {name: torch.ones(64)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    for engine in ALL:
        assert the_one(verify(folder, [engine]), f"{name} belongs to no module").severity == "warning"


# ---------------------------------------------------------------- a tied head


def test_a_head_of_its_own_that_is_tied(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, int4(32), None, "pack-quantized", architecture="qwen2", tied=True)
    assert verify(folder, FUSING).passed
    state = load_file(folder / "model.safetensors")
    rows, cols = state["model.embed_tokens.weight"].shape
    codes = torch.randint(-7, 8, (rows, cols), dtype=torch.int8)
    state |= {"lm_head.weight_packed": pack_to_int32(codes, 4), "lm_head.weight_shape": torch.tensor((rows, cols))}
    save_file(state | {"lm_head.weight_scale": torch.ones(rows, 1)}, folder / "model.safetensors", {"format": "pt"})
    group = {"format": "pack-quantized", "targets": ["Linear", "lm_head"], "weights": int4(32)}
    set_config(folder, {"ignore": [], "config_groups": {"group_0": group}})
    for engine in FUSING:
        verification = verify(folder, [engine])
        found = the_one(verification, "the head is tied to the embedding by the config: left out")
        assert told(verification) == [found.what]
        assert verification.verdict == "fails"
    assert verify(folder, ["transformers"]).verdict == "not judged"

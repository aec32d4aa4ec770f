"""What engines do to modules that they merge: one weight scale for all parts, and tiles that end where a part does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qarat.ground.errors import UserError
from qarat.jobs.verify import verify
from qarat.maths.tensors import quantize_tensor
from qarat.model.layers import QuantLinear
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.stages.export.base import export_model
from qarat.stages.quantize import WeightCache, build_block, quantize
from qarat.testing import tiny_checkpoint
from qarat.values.engines import cut_parts
from qarat.values.parsing import parse_scheme
from qarat.values.plans import Plan, PlanError, assign

FP8, TILES = "w=e4m3/tensor a=e4m3/token", "w=e4m3/32x32 a=e4m3/g32"
QKV = tuple(f"model.layers.0.self_attn.{part}_proj" for part in "qkv")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hidden 64, MLP 48, one KV head of 16: k and gate are no whole number of tiles of 32."""
    home = tmp_path_factory.mktemp("merged")
    folder = tiny_checkpoint(home / "float", blocks=1, hidden=64, intermediate=48, heads=4, kv_heads=1)
    state = load_file(folder / "model.safetensors")
    for part, factor in zip(QKV, (1.0, 3.0, 0.2), strict=True):  # so that no two have one largest magnitude
        state[f"{part}.weight"] *= factor
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def planned(model: Model, low: str, **rules: str) -> Plan:
    return assign(model.fingerprint, model.source_bits, model.sites(), low, list(rules.items()))


def layers_of(model: Model) -> dict[str, QuantLinear]:
    block = model.block(0)
    return {f"model.layers.0.{n}": m for n, m in block.named_modules() if isinstance(m, QuantLinear)}


def test_merged_fp8_weights_have_the_scale_of_the_largest(source: Path) -> None:
    model = open_model(str(source))
    weights = {
        name: model.block(0).get_submodule(name[len("model.layers.0.") :]).get_parameter("weight") for name in QKV
    }
    layers = layers_of(quantize(model, planned(model, FP8)))
    largest = max(float(w.abs().max()) for w in weights.values())
    for name in QKV:
        quantized = layers[name].quantized
        assert quantized is not None
        assert float(quantized.scales.scale) == float(torch.tensor(largest) / 448)
        scheme = parse_scheme(FP8).weight
        assert scheme is not None
        ours = quantize_tensor(weights[name], scheme, quantized.scales)
        assert quantized.codes.equal(ours.codes)


@pytest.mark.parametrize("low", ["w=int8/tensor a=int8/token", "w=e4m3/channel a=e4m3/token", "w=mxfp4"])
def test_other_schemes_are_rounded_by_themselves(low: str, source: Path) -> None:
    model = open_model(str(source))
    layers = layers_of(quantize(model, planned(model, low)))
    scheme = parse_scheme(low).weight
    assert scheme is not None
    for name in QKV:
        weight = model.block(0).get_submodule(name[len("model.layers.0.") :]).get_parameter("weight")
        quantized, alone = layers[name].quantized, quantize_tensor(weight, scheme)
        assert quantized is not None
        assert quantized.codes.equal(alone.codes)
        assert quantized.scales.scale.equal(alone.scales.scale)


def test_nvfp4_has_one_scale_above_all_parts(source: Path) -> None:
    model = open_model(str(source))
    layers = layers_of(quantize(model, planned(model, "w=nvfp4")))
    for parts in (QKV, tuple(f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up"))):
        weights = [layers[name].quantized for name in parts]
        assert (
            len({float(w.scales.tensor_scale) for w in weights if w is not None and w.scales.tensor_scale is not None})
            == 1
        )


def test_what_is_priced_is_what_is_quantized(source: Path) -> None:
    from qarat.stages.prices.changes import BlockChanges, Pricing

    model = open_model(str(source))
    scheme = parse_scheme(FP8)
    pricing = Pricing(model, None, [scheme], None, None, (), 0, lambda *_: None)  # type: ignore[arg-type]
    changes = BlockChanges(pricing, 0, model.block(0))
    layers = layers_of(quantize(model, planned(model, FP8)))
    plan = planned(model, FP8)
    cached = build_block(model, 0, plan.block(0), None, WeightCache(1 << 20))
    for site in changes.keys:
        if site.name in QKV:
            assert changes.weight(site, scheme).equal(layers[site.name].value)  # type: ignore[arg-type]
            inner = site.name.removeprefix("model.layers.0.")
            layer = cached.get_submodule(inner)
            assert isinstance(layer, QuantLinear)
            assert layer.value.equal(layers[site.name].value)


@pytest.mark.parametrize("low", [FP8, "w=nvfp4"])
def test_exports_hold_one_scale_and_verify_finds_no_fault(low: str, source: Path, tmp_path: Path) -> None:
    model = open_model(str(source))
    plan = planned(model, low)
    export_model(quantize(model, plan), plan, tmp_path / "out", "compressed-tensors")
    leaf = "weight_global_scale" if "nvfp4" in low else "weight_scale"
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert len({float(state[f"{name}.{leaf}"]) for name in QKV}) == 1
    assert [f.what for f in verify(tmp_path / "out", ["vllm", "sglang"]).findings if f.severity != "note"] == []


def with_scale(folder: Path, leaf: str, factor: float) -> Path:
    state = load_file(folder / "model.safetensors")
    state[f"{QKV[1]}.{leaf}"] = state[f"{QKV[1]}.{leaf}"] * factor
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_strangers_scales_that_differ_are_said(source: Path, tmp_path: Path) -> None:
    model = open_model(str(source))
    for low, leaf, severity in ((FP8, "weight_scale", "warning"), ("w=nvfp4", "weight_global_scale", "error")):
        plan, folder = planned(model, low), tmp_path / leaf
        export_model(quantize(model, plan), plan, folder, "compressed-tensors")
        verification = verify(with_scale(folder, leaf, 0.5), ["vllm", "sglang"])
        (found,) = [f for f in verification.findings if "of one fused module differ" in f.what]
        assert (found.severity, found.modules, found.engines) == (severity, QKV, ("vllm", "sglang"))
        assert not [f for f in verify(folder, ["transformers"]).findings if "fused" in f.what]


@pytest.mark.parametrize("architecture", ["mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"])
def test_scales_that_differ_in_every_block_are_one_finding(architecture: Any, tmp_path: Path) -> None:
    model = open_model(str(tiny_checkpoint(tmp_path / "float", architecture=architecture, blocks=3)))
    plan = planned(model, FP8)
    export_model(quantize(model, plan), plan, tmp_path / "out", "compressed-tensors")
    assert verify(tmp_path / "out", ["vllm", "sglang"]).passed
    state = load_file(tmp_path / "out" / "model.safetensors")
    for block in range(3):
        state[f"model.layers.{block}.mlp.up_proj.weight_scale"] *= 1.5 + block
        state[f"model.layers.{block}.self_attn.v_proj.weight_scale"] *= 0.5 + block
    save_file(state, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    (found,) = [f for f in verify(tmp_path / "out", ["vllm"]).findings if "of one fused module differ" in f.what]
    assert "and so in 5 more" in found.what
    assert len(found.modules) == 3 * (3 + 2)


def test_zero_points_of_inputs_that_differ(source: Path, tmp_path: Path) -> None:
    model = open_model(str(source))
    plan, folder = planned(model, "w=int8/channel a=int8/token"), tmp_path / "out"
    export_model(quantize(model, plan), plan, folder, "compressed-tensors")
    state = load_file(folder / "model.safetensors")
    homes = [name.removesuffix(".weight_scale") for name in state if name.endswith(".weight_scale")]
    for number, home in enumerate(homes):
        state |= {
            f"{home}.input_scale": torch.tensor([0.1]),
            f"{home}.input_zero_point": torch.tensor([number], dtype=torch.int8),
        }
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text())
    group = config["quantization_config"]["config_groups"]["group_0"]
    group["input_activations"] = {
        "num_bits": 8,
        "type": "int",
        "strategy": "tensor",
        "symmetric": False,
        "dynamic": False,
    }
    path.write_text(json.dumps(config))
    (found,) = verify(folder, ["vllm"]).errors
    assert found.what.startswith("tie broken: zero points of inputs of one fused module differ (")


def test_integers_keep_their_own_scales(source: Path, tmp_path: Path) -> None:
    model = open_model(str(source))
    plan = planned(model, "w=int8/tensor a=int8/token")
    export_model(quantize(model, plan), plan, tmp_path / "out", "compressed-tensors")
    assert len({float(load_file(tmp_path / "out" / "model.safetensors")[f"{n}.weight_scale"]) for n in QKV}) == 3
    assert [f.what for f in verify(tmp_path / "out", ["vllm"]).findings if f.severity != "note"] == []


def test_a_folder_quantized_under_several_scales_is_not_exported(source: Path, tmp_path: Path) -> None:
    model = open_model(str(source))
    plan = planned(model, FP8)
    quantized = quantize(model, plan)

    def damaged(index: int) -> Any:
        block = quantized.block(index)
        layer = block.get_submodule("self_attn.k_proj")
        assert isinstance(layer, QuantLinear)
        assert layer.quantized is not None
        layer.quantized.scales.scale.mul_(0.5)
        return block

    with pytest.raises(UserError, match=r"q_proj and .*k_proj are merged by engines under one scale"):
        export_model(model.with_blocks(damaged), plan, tmp_path / "out", "compressed-tensors")


# ---------------------------------------------------------------- tiles


def test_parts_that_tiles_do_not_fit() -> None:
    assert cut_parts({"q_proj": 256, "k_proj": 64, "v_proj": 64}, 128) == ["k_proj has 64 rows"]
    assert cut_parts({"q_proj": 256, "k_proj": 128, "v_proj": 64}, 128) == []  # the last may end within a tile
    assert cut_parts({"gate_proj": 192, "up_proj": 192}, 128) == ["gate_proj has 192 rows"]


def test_tiles_that_cannot_be_merged_are_refused_when_planning_for_vllm(source: Path) -> None:
    model = open_model(str(source))
    with pytest.raises(PlanError) as caught:
        planned(model, TILES).check_ties()
    said = str(caught.value)
    assert "block 0: gate_proj has 48 rows, no whole tiles of 32" in said
    assert "block 0: k_proj has 16 rows, no whole tiles of 32" in said
    planned(model, "w=e4m3/16x32 a=e4m3/g32").check_ties()


def test_verify_and_export_know_tiles_that_cannot_be_merged(source: Path, tmp_path: Path) -> None:
    model = open_model(str(source))
    plan = planned(model, TILES, **{"*.down_proj": "w=e4m3/channel a=e4m3/token"})
    run = quantize(model, plan)
    (note,) = export_model(run, plan, tmp_path / "out", "compressed-tensors")
    assert note.startswith("vLLM will refuse this folder")
    verification = verify(tmp_path / "out", ["transformers", "vllm", "sglang"])
    errors = {f.what: (f.modules, f.engines) for f in verification.errors}
    gate_up = tuple(f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up"))
    assert errors == {
        "refused: in qkv_proj, one module there, k_proj has 16 rows: no whole tiles of 32": (QKV, ("vllm", "sglang")),
        "refused: in gate_up_proj, one module there, gate_proj has 48 rows: no whole tiles of 32": (
            gate_up,
            ("vllm", "sglang"),
        ),
    }
    assert verify(tmp_path / "out", ["transformers"]).passed

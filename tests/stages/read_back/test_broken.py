"""Every way in which somebody's checkpoint broke, made by hand from one good folder, and what is said of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from qarat.jobs.verify import verify
from qarat.values.engines import ENGINES
from qarat.values.records.verification import Finding, Verification

CURRENT = tuple(name for name, engine in ENGINES.items() if engine.current)
Q, K, V = (f"model.layers.0.self_attn.{p}_proj" for p in "qkv")
GATE, DOWN = "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.down_proj"
Config = dict[str, Any]


def grave(verification: Verification) -> list[Finding]:
    return [f for f in verification.findings if f.severity != "note"]


def the_one(verification: Verification, *texts: str) -> Finding:
    """The finding that says all of this."""
    found = [f for f in verification.findings if all(text in f.what for text in texts)]
    assert len(found) == 1, [f.what for f in verification.findings]
    return found[0]


def test_the_good_folder_has_no_fault(made: Any) -> None:
    verification = verify(made.folder, CURRENT)
    assert grave(verification) == []
    assert verification.passed
    runs = {m.name: {run.engine: run.scheme for run in m.runs} for m in verification.modules}
    assert set(runs[Q].values()) == {"w=int8/channel a=int8/tensor/static"}
    assert set(runs["model.layers.1.mlp.down_proj"].values()) == {"float"}
    assert set(runs["model.layers.2.mlp.down_proj"].values()) == {"w=e4m3/channel a=e4m3/token"}
    assert len(runs) == 22  # 3 blocks of 7, and the head


# ---------------------------------------------------------------- targets


def default_group(config: Config) -> None:
    """q, k and v by name in the INT8 group; everything else, `Linear`, in another scheme and after it."""
    first = config["config_groups"]["group_0"]
    first["targets"] = [r"re:.*self_attn\.(q|k|v)_proj$"]
    rest = {**first, "targets": ["Linear"], "input_activations": {**first["input_activations"]}}
    rest["input_activations"] |= {"strategy": "token", "dynamic": True}
    config["config_groups"] = {"group_0": first, "group_1": config["config_groups"]["group_1"], "group_2": rest}


def without_input_scales(state: dict[str, Tensor]) -> None:
    for name in [n for n in state if n.endswith("input_scale") and "self_attn.o_" not in n and "mlp" in n]:
        del state[name]
    for block in range(3):
        del state[f"model.layers.{block}.self_attn.o_proj.input_scale"]


def test_class_target_before_fused_name(broken: Any) -> None:
    # llm-compressor #2730: up to 0.26 vLLM tried `Linear` before the parts of qkv_proj.
    folder = broken.config(default_group).tensors(without_input_scales).path
    assert grave(verify(folder, CURRENT[:2])) == []  # transformers, and vLLM since
    found = the_one(verify(folder, ["vllm-0.26"]), "though its own name says")
    assert found.severity == "error"
    assert found.modules == tuple(f"model.layers.{b}.self_attn.{p}_proj" for b in range(3) for p in "qkv")
    assert "target 'Linear' of group_2, for qkv_proj" in found.what
    # Where nobody asked for that version by name, it is only a warning.
    said = [f for f in verify(folder).findings if "though its own name says" in f.what and "vllm-0.26" in f.engines]
    assert {f.severity for f in said} == {"warning"}


def overlapping(config: Config) -> None:
    """Two patterns that both name block 2's down_proj; the INT8 one comes first as text, the FP8 one in the list."""
    groups = config["config_groups"]
    int8 = [t for t in groups["group_0"]["targets"] if "down_proj" not in t] + [r"re:.*\.(0|2)\.mlp\.down_proj$"]
    fp8 = [r"re:model\.layers\.2\.mlp\.down_proj$"]
    config["config_groups"] = {
        "group_1": {**groups["group_1"], "targets": fp8},
        "group_0": {**groups["group_0"], "targets": int8},
    }


def test_overlapping_patterns_are_decided_by_their_text_or_by_their_place(broken: Any) -> None:
    verification = verify(broken.config(overlapping).path, CURRENT)
    assert the_one(verification, "overlapping targets").modules == ("model.layers.2.mlp.down_proj",)
    disagreement = the_one(verification, "engines disagree")
    assert disagreement.severity == "error"
    assert "transformers w=int8/channel" in disagreement.what
    assert "vllm w=e4m3/channel" in disagreement.what
    # And transformers, which takes the wrong one, does not find the tensors it needs.
    assert the_one(verification, "weight is F8_E4M3, group_0 asks for I8").engines == ("transformers",)


def test_exact_name_after_a_pattern(broken: Any) -> None:
    def change(config: Config) -> None:
        groups = config["config_groups"]
        groups["group_0"]["targets"] = ["re:.*_proj$"]

    verification = verify(broken.config(change).path, CURRENT)
    # transformers prefers the exact name of group_1; vLLM takes what is listed first.
    assert the_one(verification, "engines disagree").modules == ("model.layers.2.mlp.down_proj",)


def test_group_that_matches_nothing(broken: Any) -> None:
    def change(config: Config) -> None:
        config["config_groups"]["group_1"]["targets"] = ["model.layer.2.mlp.down_proj"]

    verification = verify(broken.config(change).path, CURRENT)
    assert the_one(verification, "group_1 matches no module: 'model.layer.2.mlp.down_proj'").severity == "error"
    lost = the_one(verification, "stored quantized (weight F8_E4M3, weight_scale F32), but no target")
    assert lost.modules == ("model.layers.2.mlp.down_proj",)
    assert set(lost.engines) == {"transformers", "vllm"}
    assert the_one(verification, "refused: no target matches it").engines == ("sglang",)


def test_target_that_matches_nothing(broken: Any) -> None:
    def change(config: Config) -> None:
        config["config_groups"]["group_0"]["targets"].append("model.layers.9.mlp.down_proj")

    found = the_one(verify(broken.config(change).path, CURRENT), "target 'model.layers.9.mlp.down_proj' of group_0")
    assert found.severity == "warning"


def test_target_in_two_groups(broken: Any) -> None:
    def change(config: Config) -> None:
        config["config_groups"]["group_1"]["targets"].append(DOWN)

    verification = verify(broken.config(change).path, CURRENT)
    assert the_one(verification, f"target '{DOWN}' stands in several groups; engines take group_1").severity == "error"


# ---------------------------------------------------------------- ignore


def test_ignored_although_stored_quantized(broken: Any) -> None:
    verification = verify(broken.config(lambda c: c["ignore"].append(DOWN)).path, CURRENT)
    found = the_one(verification, f"but ignored by '{DOWN}': engines load the codes as if they were weights")
    assert found.modules == (DOWN,)
    assert found.engines == CURRENT


def test_ignore_with_a_wrong_prefix(broken: Any) -> None:
    def change(config: Config) -> None:
        config["ignore"] = ["lm_head", "layers.1.mlp.down_proj"]
        config["config_groups"]["group_0"]["targets"] = ["Linear"]

    verification = verify(broken.config(change).path, ["transformers"])
    assert the_one(verification, "the entry 'layers.1.mlp.down_proj' of ignore matches no module").severity == "note"
    assert the_one(verification, "weight is F32, group_0 asks for I8").modules == ("model.layers.1.mlp.down_proj",)


def test_ignore_by_part_of_a_name(broken: Any) -> None:
    # sglang #32736: a parent module in ignore took its children with it.
    folder = broken.config(lambda c: c["ignore"].append("model.layers.0.mlp")).path
    assert grave(verify(folder, CURRENT)) == []
    found = the_one(verify(folder, ["sglang-old"]), "ignored by 'model.layers.0.mlp'")
    assert found.modules == (GATE, GATE.replace("gate", "up"), DOWN)


def test_fused_module_ignored_in_part(broken: Any) -> None:
    verification = verify(broken.config(lambda c: c["ignore"].append(Q)).path, CURRENT)
    found = the_one(verification, "refused: qkv_proj is one module there, and ignore names some of its parts")
    assert "but not k_proj, v_proj" in found.what
    assert found.modules == (Q, K, V)
    assert found.engines == ("vllm", "sglang")


# ---------------------------------------------------------------- ties


def test_fused_projections_with_other_schemes(broken: Any) -> None:
    def change(config: Config) -> None:
        config["config_groups"]["group_0"]["targets"].remove(K)
        config["config_groups"]["group_1"]["targets"].append(K)

    def to_float8(state: dict[str, Tensor]) -> None:
        state[f"{K}.weight"] = state[f"{K}.weight"].to(torch.float8_e4m3fn)
        del state[f"{K}.input_scale"]

    verification = verify(broken.config(change).tensors(to_float8).path, CURRENT)
    found = the_one(verification, "tie broken: one module there, but its parts have other schemes")
    assert "q_proj w=int8/channel a=int8/tensor/static; k_proj w=e4m3/channel a=e4m3/token" in found.what
    assert found.modules == (Q, K, V)
    assert found.engines == ("vllm", "sglang")  # transformers fuses nothing
    assert verify(broken.path, ["transformers"]).passed


def test_fused_projections_with_other_input_scales(broken: Any) -> None:
    def change(state: dict[str, Tensor]) -> None:
        state[f"{K}.input_scale"] *= 2

    verification = verify(broken.tensors(change).path, CURRENT)
    found = the_one(verification, "tie broken: input scales of one fused module differ", "the engine takes the largest")
    assert found.modules == (Q, K, V)
    assert found.engines == ("vllm", "sglang")
    assert verify(broken.path, ["transformers"]).passed


# ---------------------------------------------------------------- formats and schemes


def test_mixed_precision_as_the_format_of_a_group(broken: Any) -> None:
    def change(config: Config) -> None:
        config["config_groups"]["group_0"]["format"] = "mixed-precision"

    verification = verify(broken.config(change).path, CURRENT)
    assert the_one(verification, "group_0: format 'mixed-precision' belongs on top").severity == "error"


def test_group_without_a_format_under_mixed_precision(broken: Any) -> None:
    verification = verify(broken.config(lambda c: c["config_groups"]["group_0"].pop("format")).path, CURRENT)
    found = the_one(verification, "the format on top is 'mixed-precision', and group_0 has none of its own")
    assert found.engines == ("vllm", "sglang")  # transformers infers it
    assert verify(broken.path, ["transformers"]).passed


def test_sglang_loaded_mixed_precision_unquantized(broken: Any) -> None:
    folder = broken.path
    found = the_one(verify(folder, ["sglang-old"]), "loads unquantized, without a word")
    assert found.severity == "error"
    assert len(found.modules) == 20
    assert the_one(verify(folder), "loads unquantized, without a word").severity == "warning"


def test_static_token_strategy(broken: Any) -> None:
    def change(config: Config) -> None:
        config["config_groups"]["group_1"]["input_activations"]["dynamic"] = False

    verification = verify(broken.config(change).path, CURRENT)
    assert the_one(verification, "group_1: input_activations: static token strategy").severity == "error"


def test_group_that_the_library_refuses(broken: Any) -> None:
    def change(config: Config) -> None:
        config["config_groups"]["group_1"]["weights"]["observr"] = "minmax"

    verification = verify(broken.config(change).path, CURRENT)
    assert the_one(verification, "group_1: weights.observr: Extra inputs are not permitted").severity == "error"


def test_scheme_without_a_kernel(broken: Any) -> None:
    def change(config: Config) -> None:
        config["config_groups"]["group_0"]["input_activations"]["dynamic"] = True

    def strip(state: dict[str, Tensor]) -> None:
        for name in [n for n in state if n.endswith("input_scale")]:
            del state[name]

    verification = verify(broken.config(change).tensors(strip).path, CURRENT)
    text = "no kernel known for w=int8/channel a=int8/tensor/dynamic stored as int-quantized"
    found = {f.engines: f.severity for f in verification.findings if f.what == text}
    assert found == {("vllm",): "error", ("sglang",): "warning"}  # of SGLang not every kernel was read
    assert verify(broken.path, ["transformers"]).passed


def test_input_quantization_that_is_ignored(broken: Any) -> None:
    def change(config: Config) -> None:
        config["config_groups"]["group_1"]["input_activations"]["type"] = "int"

    verification = verify(broken.config(change).path, CURRENT)
    found = the_one(verification, "w=e4m3/channel a=int8/token: runs as fp8 weights, its input is left in float")
    assert found.engines == ("vllm", "sglang")
    assert found.severity == "warning"


def test_int8_on_blackwell(made: Any) -> None:
    for name in ("turing", "ampere", "ada", "hopper"):
        assert verify(made.folder, ["vllm"], name).passed
    found = the_one(verify(made.folder, ["vllm"], "blackwell"), "int8 does not run on blackwell")
    assert found.severity == "error"
    assert len(found.modules) == 19
    assert "docs.vllm.ai" in found.remedy


def test_fp8_on_ampere_is_weight_only(made: Any) -> None:
    verification = verify(made.folder, ["vllm"], "ampere")
    found = the_one(verification, "fp8 does not run on ampere, there is weights alone in low precision instead")
    assert found.severity == "warning"


def test_on_a_cpu_it_is_said_where_the_arithmetic_is_another(made: Any) -> None:
    verification = verify(made.folder, ["vllm"], "cpu")
    assert verification.passed
    assert the_one(verification, "int8: without VNNI").severity == "warning"


def test_status_that_makes_transformers_take_codes_for_weights(broken: Any) -> None:
    verification = verify(broken.config(lambda c: c.update(quantization_status="frozen")).path, CURRENT)
    assert the_one(verification, "quantization_status is 'frozen'").engines == ("transformers",)


# ---------------------------------------------------------------- tensors

Change = Callable[[dict[str, Tensor]], None]


def put(name: str, value: Callable[[Tensor], Tensor]) -> Change:
    def change(state: dict[str, Tensor]) -> None:
        state[name] = value(state[name])

    return change


def drop(name: str) -> Change:
    def change(state: dict[str, Tensor]) -> None:
        del state[name]

    return change


def first_set(to: float) -> Callable[[Tensor], Tensor]:
    def value(tensor: Tensor) -> Tensor:
        tensor.view(-1)[0] = to
        return tensor

    return value


FP8_DOWN = "model.layers.2.mlp.down_proj"
DAMAGED: dict[str, tuple[Change, str, str]] = {
    "missing input_scale": (drop(f"{DOWN}.input_scale"), "input_scale is missing", "error"),
    "missing weight_scale": (drop(f"{DOWN}.weight_scale"), "weight_scale is missing", "error"),
    "missing weight": (drop(f"{DOWN}.weight"), "weight is missing", "error"),
    "int8 where float8 is declared": (
        put(f"{FP8_DOWN}.weight", lambda t: t.float().round().to(torch.int8)),
        "weight is I8, group_1 asks for F8_E4M3",
        "error",
    ),
    "a scale of another shape": (
        put(f"{DOWN}.weight_scale", lambda t: t[:1]),
        "weight_scale is (1, 1), group_0 asks for (32, 1)",
        "error",
    ),
    "a transposed weight": (
        put(f"{DOWN}.weight", lambda t: t.T.contiguous()),
        "weight is (64, 32), group_0 asks for (32, 64)",
        "error",
    ),
    "a zero scale": (put(f"{DOWN}.weight_scale", first_set(0)), "weight_scale: 1 of 32 scales are zero", "error"),
    "a negative scale": (put(f"{DOWN}.weight_scale", first_set(-1)), "1 of 32 scales are negative: codes", "note"),
    "a negative input scale": (put(f"{DOWN}.input_scale", first_set(-1)), "1 of 1 scales are negative", "error"),
    "a NaN scale": (put(f"{DOWN}.input_scale", first_set(torch.nan)), "input_scale: 1 of 1 scales are NaN", "error"),
    "an infinite scale": (put(f"{DOWN}.input_scale", first_set(torch.inf)), "1 of 1 scales are infinite", "error"),
    "NaN codes": (
        put(f"{FP8_DOWN}.weight", lambda t: first_set(torch.nan)(t.float()).to(torch.float8_e4m3fn)),
        "weight: 1 of 2048 codes are NaN",
        "error",
    ),
    "NaN in a float weight": (
        put("model.layers.1.mlp.down_proj.weight", first_set(torch.nan)),
        "weight: 1 of 2048 values are NaN or Inf",
        "error",
    ),
    "dead channels": (
        put(f"{DOWN}.weight", lambda t: torch.cat([torch.zeros_like(t[:3]), t[3:]])),
        "3 of 32 output channels are dead",
        "warning",
    ),
    "clipped": (
        put(f"{DOWN}.weight", lambda t: (t.int() * 3).clamp(-128, 127).to(torch.int8)),
        "of the codes are at the ends of int8: the scales clip",
        "warning",
    ),
    "a spike": (
        put("model.layers.0.self_attn.o_proj.input_scale", lambda t: t * 1000),
        "a spike probably sits here: the static input scale reaches",
        "warning",
    ),
    "a tensor too many": (
        lambda state: state.update({f"{FP8_DOWN}.input_scale": torch.ones(1)}),
        "input_scale is there, and group_1 does not ask for it",
        "error",
    ),
    "a tensor of no module": (
        lambda state: state.update({"model.layers.7.x": torch.ones(1)}),
        "the tensor model.layers.7.x belongs to no module of the model",
        "warning",
    ),
    "a missing norm": (drop("model.norm.weight"), "the tensor model.norm.weight is missing", "error"),
    "a norm of another shape": (
        put("model.norm.weight", lambda t: t[:3]),
        "model.norm.weight is (3,), the model asks for (32,)",
        "error",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_tensors_that_are_not_as_declared(broken: Any, name: str) -> None:
    change, text, severity = DAMAGED[name]
    found = the_one(verify(broken.tensors(change).path, CURRENT), text)
    assert found.severity == severity


def test_weights_alone_still_need_the_gpu(broken: Any) -> None:
    def change(config: Config) -> None:
        config["config_groups"]["group_1"]["input_activations"]["type"] = "int"

    folder = broken.config(change).path
    verification = verify(folder, ["vllm"], "cpu")
    assert the_one(verification, "its input is left in float").severity == "warning"
    assert the_one(verification, "fp8 weights does not run on cpu").severity == "error"

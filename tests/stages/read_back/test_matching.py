"""Matching: transformers' rules against the library itself, the other engines' against what their sources say."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from qarat.stages.read_back.folders import open_folder
from qarat.stages.read_back.matching import match_modules
from qarat.stages.read_back.stored import Args, ConfigGroup, StoredConfig
from qarat.values.engines import ENGINES

TARGETS = [
    "Linear",
    "re:.*down_proj$",
    "re:.*_proj$",
    r"re:model\.layers\.0\..*",
    "re:.*layers.[02].*",
    "model.layers.0.mlp.down_proj",
    "model.layers.1.self_attn.q_proj",
    "model.layers.1.self_attn.k_proj",
    "lm_head",
    "re:.*lm_head",
    "LlamaMLP",
    "Module",
    "Embedding",
    "re:.*qkv_proj",
    "down_proj",
]
INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}


def config_of(groups: list[list[str]], ignore: list[str]) -> tuple[StoredConfig, dict[str, Any]]:
    read = tuple(
        ConfigGroup(f"group_{i}", tuple(targets), Args(strategy="channel"), None, False, "")
        for i, targets in enumerate(groups)
    )
    raw = {f"group_{i}": {"targets": targets, "weights": INT8} for i, targets in enumerate(groups)}
    return StoredConfig("pack-quantized", "compressed", read, tuple(ignore)), raw


def skeleton(folder: Path) -> nn.Module:
    config = AutoConfig.from_pretrained(folder)
    config.quantization_config = None
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("seed", range(40))
def test_transformers_rules_are_the_library_s(made: Any, seed: int) -> None:
    draw = random.Random(seed)
    targets = draw.sample(TARGETS, draw.randint(2, 7))
    cut = draw.randint(1, len(targets) - 1)
    ignore = draw.sample(TARGETS, draw.randint(0, 2))
    config, raw = config_of([targets[:cut], targets[cut:]], ignore)
    model = skeleton(made.folder)
    theirs = QuantizationConfig.model_validate({"config_groups": raw, "ignore": ignore, "format": "pack-quantized"})
    apply_quantization_config(model, theirs, show_progress=False)
    expected = {
        name: getattr(module, "quantization_scheme", None)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
    }
    found = match_modules(ENGINES["transformers"], config, open_folder(made.folder).modules)
    assert {n: m.group and list(m.group.targets) for n, m in found.items()} == {
        n: s and s.targets for n, s in expected.items()
    }


# Targets of two groups, ignore, and what vLLM, vLLM up to 0.26, SGLang and the old SGLang make of a module of block 0.
CASES: dict[str, tuple[list[list[str]], list[str], str, tuple[str, ...]]] = {
    "a part by name, the class for all": (
        [["Linear"], [r"re:.*\.(q|k|v)_proj$"]],
        [],
        "self_attn.k_proj",
        ("group_1", "group_0", "group_0", "group_0"),
    ),
    "the fused name itself": (
        [["re:.*qkv_proj"], ["re:.*(q|k|v)_proj$"]],
        [],
        "self_attn.k_proj",
        ("group_0",) * 4,
    ),
    "a pattern that also matches the fused name": (
        [["Linear"], ["re:.*(q|k|v)_proj$"]],
        [],
        "self_attn.k_proj",
        ("group_1",) * 4,
    ),
    "only two parts by name": (
        [["re:.*(q|k)_proj$"], ["Linear"]],
        [],
        "self_attn.q_proj",
        ("group_1",) * 4,
    ),
    "nothing for the third part": (
        [["re:.*(q|k)_proj$"], ["re:.*down_proj"]],
        [],
        "self_attn.q_proj",
        ("float", "float", "refused", "refused"),
    ),
    "as listed, not as text": (
        [["re:.*z?down_proj"], ["re:.*down_proj"]],
        [],
        "mlp.down_proj",
        ("group_0",) * 4,
    ),
    "a pattern listed before the exact name": (
        [["re:.*down_proj"], ["model.layers.0.mlp.down_proj"]],
        [],
        "mlp.down_proj",
        ("group_0",) * 4,
    ),
    "part of a class name": ([["parallel"]], [], "mlp.down_proj", ("group_0",) * 4),
    "ignored, all parts": (
        [["Linear"]],
        ["re:.*(gate|up)_proj$"],
        "mlp.up_proj",
        ("float",) * 4,
    ),
    "ignored in part": ([["Linear"]], ["re:.*gate_proj$"], "mlp.up_proj", ("refused",) * 4),
    "ignored by the fused name": ([["Linear"]], ["model.layers.0.mlp.gate_up_proj"], "mlp.up_proj", ("float",) * 4),
    "ignore by class": ([["Linear"]], ["Linear"], "mlp.down_proj", ("group_0",) * 4),
    "ignore by part of the name": (
        [["Linear"]],
        ["layers.0.mlp"],
        "mlp.down_proj",
        ("group_0", "group_0", "group_0", "float"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_engines_that_fuse(made: Any, name: str) -> None:
    groups, ignore, module, expected = CASES[name]
    config, _ = config_of(groups, ignore)
    modules = open_folder(made.folder).modules
    for engine, wanted in zip(("vllm", "vllm-0.26", "sglang", "sglang-old"), expected, strict=True):
        match = match_modules(ENGINES[engine], config, modules)[f"model.layers.0.{module}"]
        found = "refused" if match.refusal else match.group.name if match.group else "float"
        assert found == wanted, engine


def test_the_head_is_no_linear_class_where_it_is_parallel(made: Any) -> None:
    config, _ = config_of([["Linear"]], [])
    modules = open_folder(made.folder).modules
    assert match_modules(ENGINES["transformers"], config, modules)["lm_head"].group is not None
    assert match_modules(ENGINES["vllm"], config, modules)["lm_head"].group is None


def test_embeddings_are_looked_up_by_name_by_class_or_not_at_all(made: Any) -> None:
    modules = open_folder(made.folder).modules
    for target, finders in (("model.embed_tokens", {"transformers"}), ("Embedding", {"transformers", "vllm"})):
        config, _ = config_of([[target]], [])
        for engine in ("transformers", "vllm", "vllm-0.23", "sglang"):
            match = match_modules(ENGINES[engine], config, modules)["model.embed_tokens"]
            assert (match.group is not None) == (engine in finders), (target, engine)
            assert not match.refusal


def test_a_head_that_nothing_names_is_left_in_float_by_sglang_too(made: Any) -> None:
    config, _ = config_of([["re:.*_proj$"]], [])
    match = match_modules(ENGINES["sglang"], config, open_folder(made.folder).modules)["lm_head"]
    assert match.group is None
    assert not match.refusal

"""Each translation read back by its tool's own matching rules: every site gets what the plan says, and nothing else.

The tools themselves run in tests/engines; these are their documented rules, so that they hold without the tools.
"""

import ast
import fnmatch
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from compressed_tensors.quantization import QuantizationScheme

from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.export import EXPORTERS
from qarat.stages.export.gguf.types import nearest_type, tensor_name
from qarat.stages.observe import observe
from qarat.stages.quantize import quantize
from qarat.testing import tiny_checkpoint
from qarat.values.parsing import parse_tensor_scheme
from qarat.values.plans import Plan, assign
from qarat.values.schemes import LinearScheme

RULES = (
    ("1.down", "float"),
    ("0.down", "w=e4m3/channel a=e4m3/token"),
    ("11.down", "w=int8/tensor a=int8/token"),
    ("*.o_proj", "w=int4/g32"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Twelve blocks: 1 and 11 are told apart only by whoever anchors names."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    return open_model(str(tiny_checkpoint(folder, hidden=32, intermediate=64, blocks=12, heads=2, kv_heads=1)))


@pytest.fixture(scope="module")
def plan(model: Model) -> Plan:
    return assign(model.fingerprint, model.source_bits, model.sites(), "w=int8/channel a=int8/token", RULES)


@pytest.fixture
def written(model: Model, plan: Plan, tmp_path: Path) -> Callable[[str], Path]:
    def write(format: str) -> Path:
        EXPORTERS.load(format).check(model, plan)
        EXPORTERS.load(format).write(model, plan, tmp_path, progress=lambda *_: None)
        return tmp_path

    return write


def linears(model: Model) -> list[str]:
    """Every Linear of the model, the head among them."""
    return [name for name, module in model.module().named_modules() if isinstance(module, torch.nn.Linear)]


def scheme_of(plan: Plan, name: str) -> LinearScheme:
    found = plan.schemes.get(name, LinearScheme())
    assert isinstance(found, LinearScheme)
    return found


def test_llm_compressor_recipe(model: Model, plan: Plan, written: Callable[[str], Path]) -> None:
    text = (written("llmcompressor") / "recipe.yaml").read_text()
    modifier = yaml.safe_load(text)["quant_stage"]["quant_modifiers"]["QuantizationModifier"]
    groups = [QuantizationScheme.model_validate(group) for group in modifier["config_groups"].values()]
    for name in linears(model):
        # A target is a module's name, its class's name, or a pattern behind re:; ignore wins.
        found = [g for g in groups if {name, "Linear"} & set(g.targets) and name not in modifier["ignore"]]
        assert not any(target.startswith("re:") for g in groups for target in g.targets)
        scheme = scheme_of(plan, name)
        assert len(found) == (scheme != LinearScheme()), name
        assert (name in modifier["ignore"]) == (scheme == LinearScheme())
        if found and scheme.weight is not None and found[0].weights is not None:
            assert found[0].weights.num_bits == scheme.weight.number_format.bits
            assert found[0].weights.group_size == scheme.weight.granularity.cols
            assert (found[0].input_activations is None) == (scheme.input is None)


def test_torchao_json(model: Model, plan: Plan, written: Callable[[str], Path]) -> None:
    config = json.loads((written("torchao") / "torchao.json").read_text())
    assert config["_type"] == "FqnToConfig"
    table: dict[str, Any] = config["_data"]["fqn_to_config"]
    assert table.keys() == {site.name for site in plan.sites if site.kind == "projection"}
    kinds = {
        "w=int8/channel a=int8/token": "Int8DynamicActivationInt8WeightConfig",
        "w=int8/tensor a=int8/token": "Int8DynamicActivationInt8WeightConfig",
        "w=e4m3/channel a=e4m3/token": "Float8DynamicActivationFloat8WeightConfig",
        "w=int4/g32": "IntxWeightOnlyConfig",
    }
    for name, entry in table.items():
        scheme = scheme_of(plan, name)
        assert (entry and entry["_type"]) == kinds.get(str(scheme)), name
    assert table["model.layers.11.mlp.down_proj"]["_data"]["granularity"][1]["_type"] == "PerTensor"


def test_torchao_python_has_the_static_scales(model: Model, tmp_path: Path) -> None:
    ids = torch.randint(2, 98, (4, 16), generator=torch.Generator().manual_seed(0))
    tokens = TokenSet("calibration", "windows-16-nobos", ids, ("a", "b", "c", "d"), ("0" * 64,), ("text",))
    low = "w=int8/channel a=int8/tensor/static"
    plan = assign(model.fingerprint, model.source_bits, model.sites(), low, RULES)
    quantized = quantize(model, plan, observe(model, tokens, attention=False))
    EXPORTERS.load("torchao").write(quantized, plan, tmp_path, progress=lambda *_: None)
    assert not (tmp_path / "torchao.json").exists()
    tree = ast.parse((tmp_path / "torchao_config.py").read_text())
    table = next(node for node in ast.walk(tree) if isinstance(node, ast.Dict))
    entries = {
        ast.literal_eval(key): ast.unparse(value) for key, value in zip(table.keys, table.values, strict=True) if key
    }
    module = quantized.module()
    for a in plan.assignments:
        if isinstance(a.scheme, LinearScheme) and a.scheme.input is not None and a.scheme.input.static:
            scale = module.get_submodule(a.site.name).input_scales.scale.item()  # type: ignore[union-attr]
            assert f"act_quant_scale=torch.tensor([[[{scale!r}]]])" in entries[a.site.name]
    assert entries["model.layers.1.mlp.down_proj"] == "None"


def test_modelopt_list(model: Model, plan: Plan, written: Callable[[str], Path]) -> None:
    config = yaml.safe_load((written("modelopt") / "modelopt.yaml").read_text())
    entries = config["quant_cfg"]
    assert entries[0] == {"quantizer_name": "*", "enable": False}
    assert config["algorithm"] == "max"
    for name in linears(model):
        for kind in ("weight", "input", "output"):
            quantizer = f"{name}.{kind}_quantizer"
            matching = [e for e in entries if fnmatch.fnmatch(quantizer, e["quantizer_name"])]
            scheme = getattr(scheme_of(plan, name), kind, None)
            assert matching[-1].get("enable", True) == (scheme is not None), quantizer  # the last match wins
            if scheme is not None:
                bits = scheme.number_format.bits if scheme.number_format.is_integer else scheme.format
                assert len(matching) == 2
                assert matching[-1]["cfg"]["num_bits"] == bits
    by_name = {e["quantizer_name"]: e.get("cfg") for e in entries}
    assert by_name["model.layers.2.self_attn.o_proj.weight_quantizer"]["block_sizes"] == {-1: 32, "type": "static"}


def test_autoround_layers(model: Model, plan: Plan, written: Callable[[str], Path]) -> None:
    layers = json.loads((written("autoround") / "layer_config.json").read_text())
    assert layers.keys() == {name for name in linears(model) if name != "lm_head"}
    keys = {"bits", "data_type", "group_size", "sym", "act_bits", "act_data_type", "act_group_size", "act_sym"}
    for name, layer in layers.items():
        scheme = scheme_of(plan, name)
        assert layer.keys() == keys | {"act_dynamic"}  # a key left out would come from another scheme
        assert layer["bits"] == (scheme.weight.number_format.bits if scheme.weight else 16), name
        assert layer["act_bits"] == (scheme.input.number_format.bits if scheme.input else 16), name


def test_llama_cpp_arguments(model: Model, plan: Plan, written: Callable[[str], Path]) -> None:
    folder = written("llama-cpp")
    rules = [line.split("=") for line in (folder / "tensor-types.txt").read_text().split()]
    types = {"w=int4/g32": "q4_0", "float": "f32"}
    for site in plan.sites:
        if site.kind == "projection":
            tensor = tensor_name(f"{site.name}.weight")
            found = [kind for pattern, kind in rules if re.search(pattern.lower(), tensor)]  # as llama-quantize does
            assert found == [types.get(str(plan[site.name]), "q8_0")], site.name
    for other in ("token_embd.weight", "output.weight", "output_norm.weight", "blk.1.attn_norm.weight"):
        assert not any(re.search(pattern, other) for pattern, _ in rules)
    assert "--tensor-type-file tensor-types.txt" in (folder / "command.txt").read_text()


@pytest.mark.parametrize(
    ("scheme", "cols", "small", "large"),
    [
        ("int8/channel", 4096, "Q8_0", "Q8_0"),
        ("e4m3/tensor", 4096, "Q8_0", "Q8_0"),
        ("int7/channel", 4096, "Q8_0", "Q8_0"),
        ("int6/channel", 4096, "Q8_0", "Q6_K"),
        ("int6/channel", 4096 + 32, "Q8_0", "Q8_0"),
        ("int5/g32", 4096, "Q5_0", "Q5_K"),
        ("int4/g128", 4096, "Q4_0", "Q4_0"),
        ("int4/g128/asymmetric", 4096, "Q4_1", "Q4_K"),
        ("int3/g128", 4096, "Q4_0", "Q3_K"),
        ("int2/g128", 4096, "Q4_0", "Q2_K"),
        ("mxfp4", 4096, "MXFP4", "MXFP4"),
        ("nvfp4", 4096, "Q4_0", "Q4_0"),
    ],
)
def test_nearest_types(scheme: str, cols: int, small: str, large: str) -> None:
    weight = parse_tensor_scheme(scheme, "w")
    assert nearest_type(weight, cols, superblocks=False) == small
    assert nearest_type(weight, cols, superblocks=True) == large

"""One good folder, written by hand from a quantized tiny model, and copies of it to be broken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qarat.model.layers import QuantLinear
from qarat.model.model import Model
from qarat.model.native import write_native
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.observe import observe
from qarat.stages.quantize import quantize
from qarat.testing import tiny_checkpoint
from qarat.values.plans import Plan, assign
from qarat.values.records.files import content_hash

INT8, FP8 = "w=int8/channel a=int8/tensor/static", "w=e4m3/channel a=e4m3/token"
FLOAT_SITE, FP8_SITE = "model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"


class Made(NamedTuple):
    """A good folder and what it came from."""

    folder: Path
    native: Path
    float: Path
    run: Model
    plan: Plan
    tokens: TokenSet


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """INT8 with static inputs; one down_proj in FP8, one in float. No test may change it."""
    home = tmp_path_factory.mktemp("verified")
    source = tiny_checkpoint(home / "float", blocks=3)
    model = open_model(str(source))
    ids = torch.randint(2, 98, (4, 24), generator=torch.Generator().manual_seed(7))
    tokens = TokenSet("report", "windows-24-nobos", ids, tuple("abcd"), ("0" * 64,), ("text",))
    stats = observe(model, tokens)
    rules = [(FLOAT_SITE, "float"), (FP8_SITE, FP8)]
    plan = assign(model.fingerprint, model.source_bits, model.sites(), INT8, rules, content_hash(stats))
    run = quantize(model, plan, stats)
    write_native(run, plan, home / "native")
    folder = shutil.copytree(source, home / "good")
    save_file(_tensors(run, load_file(source / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = _config(plan)
    (folder / "config.json").write_text(json.dumps(config))
    return Made(folder, home / "native", source, run, plan, tokens)


def _tensors(run: Model, state: dict[str, Tensor]) -> dict[str, Tensor]:
    for index, block in run.walk():
        for inner, module in block.named_modules():
            if not isinstance(module, QuantLinear) or module.quantized is None:
                continue
            name = f"model.layers.{index}.{inner}"
            scales = module.quantized.scales.scale
            units = module.value / scales
            kind = torch.int8 if module.quantized.scheme.format == "int8" else torch.float8_e4m3fn
            state[f"{name}.weight"] = (units.round() if kind == torch.int8 else units).to(kind)
            state[f"{name}.weight_scale"] = scales.clone()
            if module.input_scales is not None:
                state[f"{name}.input_scale"] = module.input_scales.scale.reshape(1).clone()
    return state


def _config(plan: Plan) -> dict[str, Any]:
    by_scheme: dict[str, list[str]] = {}
    for a in plan.assignments:
        if a.site.kind == "projection":
            by_scheme.setdefault(str(a.scheme), []).append(a.site.name)

    def args(type: str, strategy: str, dynamic: bool) -> dict[str, Any]:
        return {"num_bits": 8, "type": type, "symmetric": True, "strategy": strategy, "dynamic": dynamic}

    def group(kind: str, inputs: dict[str, Any], targets: list[str]) -> dict[str, Any]:
        weights = args(kind, "channel", False)
        return {"format": f"{kind}-quantized", "targets": targets, "weights": weights, "input_activations": inputs}

    return {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "quantization_status": "compressed",
        "ignore": ["lm_head", *by_scheme["float"]],
        "config_groups": {
            "group_0": group("int", args("int", "tensor", False), by_scheme[INT8]),
            "group_1": group("float", args("float", "token", True), by_scheme[FP8]),
        },
    }


class Broken(NamedTuple):
    """A copy of the good folder, to be changed before it is looked at."""

    path: Path

    def config(self, change: Callable[[dict[str, Any]], None]) -> "Broken":
        """Change the quantization config."""
        whole = json.loads((self.path / "config.json").read_text())
        change(whole["quantization_config"])
        (self.path / "config.json").write_text(json.dumps(whole))
        return self

    def tensors(self, change: Callable[[dict[str, Tensor]], None]) -> "Broken":
        """Change the weights."""
        file = self.path / "model.safetensors"
        state = {name: tensor.clone() for name, tensor in load_file(file).items()}
        change(state)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file, {"format": "pt"})
        return self


@pytest.fixture
def broken(made: Made, tmp_path: Path) -> Broken:
    """A copy that a test may break."""
    return Broken(shutil.copytree(made.folder, tmp_path / "broken"))

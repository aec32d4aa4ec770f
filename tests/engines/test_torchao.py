"""torchao's quantize_ with our config: the same assignment, and from the same scales the same weights."""

import importlib.util
import json
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from qarat.maths.rounding import decode
from qarat.maths.tensors import quantize_tensor
from qarat.maths.tiles import Scales
from qarat.values.plans import Plan
from qarat.values.schemes import LinearScheme

pytest.importorskip("torchao", reason="needs torchao: make test-engines")

RULES = (
    ("1.down", "float"),
    ("0.o", "w=int8/tensor a=int8/token"),
    ("0.down", "w=int4/g32"),
    ("1.o", "w=e4m3/channel"),
    ("*.1.self_attn.[qkv]_proj", "w=int4/g32 a=int8/token/asymmetric"),
)
WEIGHTS = {"int8": "Int8Tensor", "int4": "IntxUnpackedToInt8Tensor", "e4m3": "Float8Tensor"}


def quantized(subject: Any, low: str) -> tuple[Plan, nn.Module, nn.Module]:
    """The plan, torchao's model, and the float one."""
    from torchao.core.config import config_from_dict
    from torchao.quantization import quantize_

    plan, folder = subject.export("torchao", low, *RULES)
    model, plain = (AutoModelForCausalLM.from_pretrained(subject.folder, dtype=torch.float32) for _ in range(2))
    if (folder / "torchao.json").is_file():
        config = config_from_dict(json.loads((folder / "torchao.json").read_text()))
    else:
        spec = importlib.util.spec_from_file_location("torchao_config", folder / "torchao_config.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.config
    quantize_(model, config, filter_fn=None)
    return plan, model, plain


@pytest.mark.parametrize("low", ["w=int8/channel a=int8/token", "w=int8/channel a=int8/tensor/static"])
def test_assignment_and_weights(subject: Any, low: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    subject = subject._replace(out=tmp_path_factory.mktemp("torchao"))
    plan, model, plain = quantized(subject, low)
    ours = subject.quantized(plan).module()
    for a in plan.assignments:
        if not isinstance(a.scheme, LinearScheme):
            continue
        weight: Any = model.get_submodule(a.site.name).weight
        value: Any = plain.get_submodule(a.site.name).weight
        if a.scheme.weight is None:
            assert type(weight.data) is torch.Tensor
            continue
        scheme, given = a.scheme.weight, a.scheme.input
        assert type(weight.data).__name__ == WEIGHTS[scheme.format]
        scale = weight.scale.float().reshape(scheme.granularity.scale_shape(*a.site.shape))
        codes = quantize_tensor(value, scheme, Scales(scale)).codes
        apart = weight.qdata.float() != decode(codes, scheme.number_format)
        # It multiplies by the scale's reciprocal: only a tie (±127.5 of its largest values) may fall on the other side.
        ties = (value / scale.repeat_interleave(value.shape[1] // scale.shape[1], 1))[apart]
        assert scheme.number_format.is_integer or not apart.any()
        assert ((ties - ties.floor() - 0.5).abs() < 1e-4).all(), a.site.name
        if given is not None and given.static:
            expected = ours.get_submodule(a.site.name).input_scales.scale  # type: ignore[union-attr]
            assert weight.act_quant_scale.reshape(1, 1).equal(expected)
        elif scheme.format == "int8":
            assert weight.act_quant_scale is None
            assert (weight.act_quant_kwargs is None) == (given is None)
    assert type(model.get_submodule("lm_head").weight.data) is torch.Tensor  # type: ignore[union-attr]
    difference = (model(subject.windows).logits - plain(subject.windows).logits).abs().max()
    assert 0 < difference < plain(subject.windows).logits.abs().max()


def test_transformers_takes_the_config(subject: Any) -> None:
    from torchao.core.config import config_from_dict
    from transformers import TorchAoConfig

    plan, folder = subject.export("torchao", "w=int8/channel a=int8/token", *RULES)
    config = config_from_dict(json.loads((folder / "torchao.json").read_text()))
    model = AutoModelForCausalLM.from_pretrained(
        subject.folder, dtype=torch.float32, quantization_config=TorchAoConfig(config)
    )
    for a in plan.assignments:
        if isinstance(a.scheme, LinearScheme):
            weight = model.get_submodule(a.site.name).weight
            assert (type(weight.data) is torch.Tensor) == a.is_float, a.site.name

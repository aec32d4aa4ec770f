"""The tensors that a group asks for are those that the compressed-tensors library writes and asks for."""

from typing import Any

import msgspec
import pytest
import torch
from compressed_tensors.compressors.base import compress_module, decompress_module
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, apply_quantization_config
from safetensors.torch import save
from torch import nn

from qarat.stages.read_back.folders import StoredModule
from qarat.stages.read_back.layout import expected_tensors, layout_offences
from qarat.stages.read_back.simulation import weight_of
from qarat.stages.read_back.stored import Args, ConfigGroup, StoredConfig
from qarat.values.parsing import parse_scheme

ROWS, COLS = 48, 64


def ints(bits: int = 8, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": True, **more}


def floats(bits: int = 8, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "float", "symmetric": True, **more}


STATIC: dict[str, Any] = {"strategy": "tensor"}
TOKEN: dict[str, Any] = {"strategy": "token", "dynamic": True}
MX: dict[str, Any] = {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
NV: dict[str, Any] = {"strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"}

# Name to weights, inputs, and the scheme in qarat's words.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any] | None, str]] = {
    "int8 per tensor": (ints(strategy="tensor"), ints(**STATIC), "w=int8/tensor a=int8/tensor/static"),
    "int8 per channel": (ints(strategy="channel"), ints(**TOKEN), "w=int8/channel a=int8/token"),
    "int8 asymmetric input": (
        ints(strategy="channel"),
        {**ints(**STATIC), "symmetric": False},
        "w=int8/channel a=int8/tensor/static/asymmetric",
    ),
    "int4 groups": (ints(4, strategy="group", group_size=16), None, "w=int4/g16"),
    "int4 channels": (ints(4, strategy="channel"), None, "w=int4/channel"),
    "int3 groups": (ints(3, strategy="group", group_size=32), None, "w=int3/g32"),
    "int4 asymmetric": (
        {**ints(4, strategy="group", group_size=16), "symmetric": False},
        None,
        "w=int4/g16/asymmetric",
    ),
    "int8 packed": (ints(strategy="channel"), None, "w=int8/channel"),
    "int4 with int8 inputs": (ints(4, strategy="group", group_size=32), ints(**TOKEN), "w=int4/g32 a=int8/token"),
    "fp8 per tensor": (floats(strategy="tensor"), floats(**STATIC), "w=e4m3/tensor a=e4m3/tensor/static"),
    "fp8 per channel": (floats(strategy="channel"), floats(**TOKEN), "w=e4m3/channel a=e4m3/token"),
    "fp8 in blocks": (
        floats(strategy="block", block_structure=[16, 32]),
        floats(strategy="group", group_size=32, dynamic=True),
        "w=e4m3/16x32 a=e4m3/g32",
    ),
    "fp8 weights": (floats(strategy="channel"), None, "w=e4m3/channel"),
    "mxfp8": (floats(**MX), floats(**MX, dynamic=True), "w=mxfp8/mx-even a=mxfp8/mx-even"),
    "mxfp4": (floats(4, **MX), floats(4, **MX, dynamic=True), "w=mxfp4/mx-even a=mxfp4/mx-even"),
    "mxfp4 weights": (floats(4, **MX), None, "w=mxfp4/mx-even"),
    "mxfp6 weights": (floats(6, **MX), None, "w=mxfp6/mx-even"),
    "nvfp4": (floats(4, **NV), floats(4, **NV, dynamic="local"), "w=nvfp4 a=nvfp4"),
    "nvfp4 weights": (floats(4, **NV), None, "w=nvfp4"),
}


def compressed(weights: dict[str, Any], inputs: dict[str, Any] | None) -> tuple[nn.Module, ConfigGroup, str]:
    """A module quantized and compressed by the library, with plausible scales."""
    body = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    linear: Any = nn.Linear(COLS, ROWS, bias=False)
    torch.manual_seed(0)
    nn.init.normal_(linear.weight)
    model = nn.Sequential(linear)
    config = QuantizationConfig(config_groups={"group_0": QuantizationScheme.model_validate(body)})
    apply_quantization_config(model, config, show_progress=False)
    with torch.no_grad():
        for name, parameter in linear.named_parameters():
            if name.endswith("global_scale"):
                parameter.fill_(8.0)
            elif name == "weight_scale":
                power = 0.25 if "scale_dtype" in weights else 0.02
                parameter.fill_(power).mul_(
                    2.0 ** torch.arange(parameter.numel()).reshape(parameter.shape).remainder(3)
                )
            elif name == "input_scale":
                parameter.fill_(0.1)
    compress_module(linear)
    read = [None if args is None else msgspec.convert(args, Args) for args in (weights, inputs)]
    group = ConfigGroup("group_0", ("Linear",), read[0], read[1], False, "")
    return linear, group, linear.quantization_scheme.format


def stored(linear: nn.Module) -> tuple[dict[str, torch.Tensor], StoredModule]:
    # compress_model leaves zero points of symmetric inputs out of the file.
    tensors = {n: p.detach() for n, p in [*linear.named_parameters(), *linear.named_buffers()]}
    header = {name: (kind_of(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()}
    return tensors, StoredModule("0", ("Linear",), (ROWS, COLS), False, header)


def kind_of(tensor: torch.Tensor) -> str:
    text = save({"x": tensor.contiguous()}).split(b'"dtype":"')[1]
    return text[: text.index(b'"')].decode()


@pytest.mark.parametrize("name", CASES)
def test_what_the_library_writes_is_what_is_asked_for(name: str) -> None:
    weights, inputs, _ = CASES[name]
    linear, group, format = compressed(weights, inputs)
    _, module = stored(linear)
    assert layout_offences(module, group, format) == []
    expected = expected_tensors((ROWS, COLS), group, format)
    assert {leaf for leaf, e in expected.items() if e.needed} <= module.tensors.keys()
    # And each missing one is noticed.
    for leaf, e in expected.items():
        if e.needed:
            rest = {k: v for k, v in module.tensors.items() if k != leaf}
            assert f"{leaf} is missing" in layout_offences(module._replace(tensors=rest), group, format)


@pytest.mark.parametrize("name", CASES)
def test_format_and_scheme_are_inferred_as_the_library_does(name: str) -> None:
    weights, inputs, scheme = CASES[name]
    _, group, format = compressed(weights, inputs)
    assert StoredConfig("mixed-precision", "", (group,), ()).format_of(group) == format
    assert group.contradictions() == []
    assert group.scheme == parse_scheme(scheme)


@pytest.mark.parametrize("name", CASES)
def test_weights_are_the_library_s_own(name: str) -> None:
    weights, inputs, _ = CASES[name]
    linear, group, format = compressed(weights, inputs)
    tensors, _ = stored(linear)
    mine = weight_of(tensors, group, format).dequantize()
    decompress_module(linear)
    theirs: Any = linear.weight
    # The library's product is in the scale's own float32; its FP4 in bfloat16, in which these products are exact too.
    assert mine.equal(theirs.float())

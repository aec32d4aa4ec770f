"""llm-compressor, run with our recipe: the same assignment, and from the same scales the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from qarat.maths.rounding import decode
from qarat.maths.tensors import quantize_tensor
from qarat.maths.tiles import Scales
from qarat.values.plans import Plan
from qarat.values.schemes import LinearScheme

pytest.importorskip("llmcompressor", reason="needs llm-compressor: make test-engines")

STATIC = "w=int8/channel a=int8/tensor/static"
RULES = (
    ("1.down", "float"),
    ("0.down", "w=e4m3/channel a=e4m3/token"),
    ("1.o", "w=int4/g32"),
    ("0.o", "w=int8/tensor a=int8/tensor/static"),
)


@pytest.fixture(scope="module")
def compressed(subject: Any) -> tuple[Plan, Path, Any]:
    """The plan, the folder llm-compressor saved, and its model."""
    from datasets import Dataset
    from llmcompressor import oneshot

    plan, folder = subject.export("llmcompressor", STATIC, *RULES)
    model = AutoModelForCausalLM.from_pretrained(subject.folder, dtype=torch.float32)
    data = Dataset.from_list([{"input_ids": row, "attention_mask": [1] * len(row)} for row in subject.windows.tolist()])
    recipe = str(folder / "recipe.yaml")
    oneshot(model=model, dataset=data, recipe=recipe, num_calibration_samples=len(data), max_seq_length=24)
    out = subject.out / "compressed"
    model.save_pretrained(out, save_compressed=True)
    return plan, out, model


def test_every_site_gets_what_the_plan_says(compressed: tuple[Plan, Path, Any]) -> None:
    plan, _, model = compressed
    modules = dict(model.named_modules())
    for a in plan.assignments:
        if not isinstance(a.scheme, LinearScheme):
            continue
        found = getattr(modules[a.site.name], "quantization_scheme", None)
        assert (found is None) == a.is_float, a.site.name
        for ours, theirs in ((a.scheme.weight, "weights"), (a.scheme.input, "input_activations")):
            args = getattr(found, theirs, None)
            assert (args is None) == (ours is None), (a.site.name, theirs)
            if ours is None or args is None:
                continue
            kind = "int" if ours.number_format.is_integer else "float"
            assert (args.num_bits, str(getattr(args.type, "value", args.type))) == (ours.number_format.bits, kind)
            assert bool(args.dynamic) == (theirs == "input_activations" and not ours.static)
    assert getattr(modules["lm_head"], "quantization_scheme", None) is None


def test_static_scales_see_every_calibration_token(subject: Any, compressed: tuple[Plan, Path, Any]) -> None:
    # 255/2 steps up to the maximum where ours has 127: the maximum they saw must be ours.
    plan, out, _ = compressed
    tensors = load_file(out / "model.safetensors")
    for a in plan.assignments:
        if isinstance(a.scheme, LinearScheme) and a.scheme.input is not None and a.scheme.input.static:
            maximum = tensors[f"{a.site.name}.input_scale"].item() * 127.5
            assert maximum == pytest.approx(subject.stats.stream(a.site.streams[0]).maximum, rel=1e-5)


def test_the_same_scales_give_the_same_weights(subject: Any, compressed: tuple[Plan, Path, Any]) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    plan, out, _ = compressed
    floats, tensors = load_file(subject.folder / "model.safetensors"), load_file(out / "model.safetensors")
    for a in plan.assignments:
        if not isinstance(a.scheme, LinearScheme) or a.scheme.weight is None:
            continue
        name, scheme = a.site.name, a.scheme.weight
        scale = tensors[f"{name}.weight_scale"].float()
        scale = scale.reshape(scheme.granularity.scale_shape(*a.site.shape))
        codes = quantize_tensor(floats[f"{name}.weight"], scheme, Scales(scale)).codes
        if f"{name}.weight_packed" in tensors:
            theirs = unpack_from_int32(tensors[f"{name}.weight_packed"], 4, torch.Size(a.site.shape))
        else:
            theirs = tensors[f"{name}.weight"]
        assert torch.equal(theirs.float(), decode(codes, scheme.number_format)), name
    assert torch.equal(tensors["model.layers.1.mlp.down_proj.weight"], floats["model.layers.1.mlp.down_proj.weight"])

"""ModelOpt's quantize with our config: every quantizer as the plan says, and from the same scales the same weights."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from qarat.maths.tensors import fake_quantize
from qarat.maths.tiles import Scales
from qarat.values.schemes import LinearScheme

pytest.importorskip("modelopt.torch.quantization", reason="needs ModelOpt: make test-engines")

STATIC = "w=int8/channel a=int8/tensor/static"
RULES = (
    ("1.down", "float"),
    ("0.down", "w=e4m3/channel a=e4m3/token"),
    ("1.o", "w=int4/g32"),
    ("0.o", "w=int8/tensor a=int8/tensor/static"),
)


def test_every_quantizer(subject: Any) -> None:
    import modelopt.torch.quantization as mtq
    from modelopt.torch.opt.config_loader import load_config

    plan, folder = subject.export("modelopt", STATIC, *RULES)
    model = AutoModelForCausalLM.from_pretrained(subject.folder, dtype=torch.float32)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    model = mtq.quantize(model, load_config(folder / "modelopt.yaml"), lambda m: m(subject.windows))
    for a in plan.assignments:
        if not isinstance(a.scheme, LinearScheme):
            continue
        module: Any = model.get_submodule(a.site.name)
        for scheme, quantizer in ((a.scheme.weight, module.weight_quantizer), (a.scheme.input, module.input_quantizer)):
            assert quantizer.is_enabled == (scheme is not None), a.site.name
            if scheme is not None:
                bits = scheme.number_format.bits if scheme.number_format.is_integer else (4, 3)
                assert quantizer.num_bits == bits, a.site.name
        assert not module.output_quantizer.is_enabled
        weight = a.scheme.weight
        if weight is None:
            continue
        assert weight.number_format.is_integer or weight.format == "e4m3"
        largest = weight.number_format.values[-1]
        amax = module.weight_quantizer.amax.float().reshape(weight.granularity.scale_shape(*a.site.shape))
        expected = fake_quantize(plain[f"{a.site.name}.weight"], weight, Scales(amax / largest))
        torch.testing.assert_close(module.weight_quantizer(module.weight), expected, rtol=1e-5, atol=1e-6)
        if a.scheme.input is not None and a.scheme.input.static:
            seen = subject.stats.stream(a.site.streams[0]).maximum
            assert module.input_quantizer.amax.item() == pytest.approx(seen, rel=1e-5)
    enabled = [n for n, m in model.named_modules() if n.endswith("_quantizer") and getattr(m, "is_enabled", False)]
    wanted = [a for a in plan.assignments if isinstance(a.scheme, LinearScheme)]
    count = sum((a.scheme.weight is not None) + (a.scheme.input is not None) for a in wanted)
    assert len(enabled) == count

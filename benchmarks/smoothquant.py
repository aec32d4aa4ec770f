"""Claim: qarat's recipe, with no site in float, leaves less than llm-compressor's SmoothQuant does by hand.

    .venv-engines/bin/python benchmarks/smoothquant.py py-128 -o smoothquant.json
    .venv-engines/bin/python benchmarks/smoothquant.py MODEL --spikes 11.down 28.down …

INT8 weights per channel, inputs per tensor static, on both sides; the same calibration windows, the same report
windows, and one reader for all folders. llm-compressor's `oneshot` runs SmoothQuant and then quantization, once for
every strength and every list of sites that are left in float: none, the first two of --spikes, all of them. qarat fits
its rewrites on the selection windows and exports; nothing is left in float.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import common
import msgspec
import torch

from qarat.ground.runtime import Runtime
from qarat.jobs.protecting import naive_plan, profile
from qarat.jobs.rewriting import fit_rewrites, reaching
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.model.tokens import TokenSet
from qarat.stages.export.base import export_model
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.quantize import quantize
from qarat.stages.read_back.folders import Findings, open_folder
from qarat.stages.read_back.resolution import resolve
from qarat.stages.read_back.simulation import open_stored
from qarat.stages.transforms import parse_transform
from qarat.stages.transforms.rewrite import columns_for
from qarat.values.engines import engine_named
from qarat.values.plans import match_sites
from qarat.values.records.scores import Evaluation, paired_difference
from qarat.values.requests.protect import ProtectRequest
from qarat.values.schemes import LOW

TARGETS = {"by two in float": 0.1, "by its best": 1.0}


def write_float(model: Model, folder: Path) -> None:
    """The float model as a Hugging Face folder, for llm-compressor."""
    module: Any = model.module()
    if model.config.tie_word_embeddings:
        module.tie_weights()
    module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def smoothed(source: Path, out: Path, calibration: TokenSet, strength: float, ignored: Sequence[str]) -> None:
    """llm-compressor's `oneshot` as its documentation has it."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from llmcompressor import oneshot  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = calibration.windows.tolist()
    quantized = {
        "ignore": ["lm_head", *ignored],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
                "input_activations": {"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": True},
            }
        },
    }
    modifiers = {"SmoothQuantModifier": {"smoothing_strength": strength}, "QuantizationModifier": quantized}
    recipe = out.with_suffix(".json")
    recipe.write_text(json.dumps({"quant_stage": {"quant_modifiers": modifiers}}))
    oneshot(
        model=AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32),
        tokenizer=AutoTokenizer.from_pretrained(source),
        dataset=Dataset.from_list([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]),
        recipe=recipe.read_text(),
        num_calibration_samples=len(rows),
        max_seq_length=len(rows[0]),
        shuffle_calibration_samples=False,
        output_dir=str(out),
    )


def rewritten(model: Model, out: Path, calibration: TokenSet, selection: TokenSet) -> float:
    """qarat's recipe, exported; what it predicts, nats per token."""
    low, columns = reaching(LOW), columns_for(model)
    stats = profile(model, calibration, attention=False)
    rewrites = fit_rewrites(model, selection, stats, low, columns=columns)
    changed = parse_transform(f"rewrite/{columns}").apply(model, rewrites).unkept()
    stats = profile(changed, calibration, attention=False)
    plan = naive_plan(changed, ProtectRequest(low=low), stats)
    export_model(quantize(changed, plan, stats), plan, out, "compressed-tensors")
    return rewrites.damage(columns)


def evaluated(folder: Path, report: TokenSet, label: str, runtime: Runtime) -> Evaluation:
    """Losses of a folder, as an engine resolves it."""
    opened, engine = open_folder(folder), engine_named("transformers")
    _, matches = resolve(opened, [engine], "", Findings(), lenient=False)
    return measure_perplexity(open_stored(opened, matches[engine.name], runtime), report, label=label)


def compare(home: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Every arm's loss over float."""
    runtime = Runtime(threads=asked.threads)
    model = open_model(asked.model, runtime).unkept()
    calibration, selection, report = load_token_sets(
        model,
        calibration=asked.calibration,
        selection=asked.selection,
        report=asked.report_text,
        samples=asked.samples,
        report_samples=asked.report_samples,
    )
    found: dict[str, Any] = {}
    float_ = measure_perplexity(model, report, label="float")

    def note(arm: str, evaluation: Evaluation, began: float, **more: object) -> None:
        # A folder counts as a model of its own; these were all made of this one.
        lost = paired_difference(msgspec.structs.replace(evaluation, provenance=float_.provenance), float_)
        found[arm] = {"nats": lost.nats, "standard error": lost.standard_error, "seconds": time.time() - began, **more}
        print(arm, json.dumps(found[arm]), file=sys.stderr, flush=True)

    began = time.time()
    predicted = rewritten(model, home / "qarat", calibration, selection)
    note("qarat", evaluated(home / "qarat", report, "qarat", runtime), began, predicted=predicted)
    write_float(model, home / "float")
    names = [s.name for pattern in asked.spikes for s in match_sites(pattern, model.sites())]
    for kept in sorted({0, min(2, len(names)), len(names)}):
        for strength in asked.strengths:
            began, arm = time.time(), f"SmoothQuant {strength:g}, {kept} in float"
            out = home / f"smooth-{strength}-{kept}"
            smoothed(home / "float", out, calibration, strength, names[:kept])
            note(arm, evaluated(out, report, arm, runtime), began, kept=kept)
    return found


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """qarat's loss by the least of llm-compressor's, and by the least with two sites in float, where that was tried."""
    ours, theirs = found["qarat"]["nats"], [arm for arm in found.values() if "kept" in arm]
    least = {"by its best": min(arm["nats"] for arm in theirs)}
    if two := [arm["nats"] for arm in theirs if arm["kept"] == 2]:
        least["by two in float"] = min(two)
    ratios = {name: ours / nats for name, nats in least.items()}
    return {name: {"ratio": r, "target": TARGETS[name], "met": r <= TARGETS[name]} for name, r in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, a GGUF file, or a reference model's name")
    parser.add_argument("--calibration")
    parser.add_argument("--selection")
    parser.add_argument("--report-text")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--report-samples", type=int, default=64)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.8, 0.9])
    parser.add_argument(
        "--spikes", nargs="*", default=[], help="sites that a user would leave in float, the worst first"
    )
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="write the JSON here too")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        found = compare(Path(home), asked)
    packages = {name: version(name) for name in ("llmcompressor", "compressed-tensors")}
    settings = {key: value for key, value in vars(asked).items() if key != "output"}
    whole = {"ratios": summary(found), "arms": found, "settings": settings, "machine": common.machine() | packages}
    common.emit(whole, asked.output)


if __name__ == "__main__":
    main()

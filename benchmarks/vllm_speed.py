"""Claim: in vLLM a W8A8 export of a 1.1 B LLaMA prefills and decodes at least 1.4 times as fast as its bf16 original.

    python benchmarks/vllm_speed.py --engine-python .venv-vllm/bin/python -o vllm_speed.json

Weights are random, since speed does not ask what they are; 2.2 GB of them lie in a temporary folder, and their exports.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import common
import msgspec
import oneshot

from qarat.ground.runtime import Runtime
from qarat.jobs.engine_process import EngineProcess
from qarat.jobs.engine_speed import time_folders
from qarat.model.opening import open_model
from qarat.stages.export.base import export_model
from qarat.stages.observe import observe
from qarat.stages.quantize import quantize
from qarat.values.plans import assign
from qarat.values.requests.speed import SpeedRequest

LENGTH = 128


def export(folder: Path, low: str, out: Path) -> None:
    """Everything low, static scales from one random window."""
    model = open_model(str(folder), Runtime(dtype="bfloat16")).unkept()
    stats = observe(model, common.random_tokens("calibration", 1, LENGTH, 1), attention=False)
    plan = assign(model.fingerprint, model.source_bits, model.sites(), low)
    export_model(quantize(model, plan, stats), plan, out, "compressed-tensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine-python", type=Path, required=True, help="of the environment that has vLLM")
    parser.add_argument("--lows", nargs="+", default=["w=int8/channel a=int8/tensor/static"])
    parser.add_argument("--blocks", type=int, default=22)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, help="write the JSON here too")
    chosen = parser.parse_args()
    request = SpeedRequest(chosen.prompt_tokens, chosen.new_tokens, tuple(chosen.batches), chosen.turns, eager=True)
    with tempfile.TemporaryDirectory() as home:
        folders = [Path(home, "float"), *(Path(home, f"low{i}") for i in range(len(chosen.lows)))]
        oneshot.write_model(folders[0], chosen.blocks, 4 * LENGTH)
        for low, folder in zip(chosen.lows, folders[1:], strict=True):
            export(folders[0], low, folder)
        process = EngineProcess("vllm", chosen.engine_python, threads=chosen.threads)
        record = time_folders([str(folder) for folder in folders], process, request)
    measured = {
        low: {m.name: msgspec.to_builtins(m) for m in record.measures(folder)}
        for low, folder in zip(["float", *chosen.lows], record.folders, strict=True)
    }
    result = {"measures": measured, "request": msgspec.to_builtins(request), "machine": common.machine()}
    common.emit(result, chosen.output)


if __name__ == "__main__":
    main()

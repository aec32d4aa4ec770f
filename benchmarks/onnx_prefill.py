"""Claim: in ONNX Runtime on the CPU, an INT8 static prefill is faster than float, by kernels that are really INT8.

    .venv-engines/bin/python benchmarks/onnx_prefill.py -o result.json

Both graphs are written by the same exporter and run in turns. The plan is the default low scheme with the first
`down_proj` in float. (The file is not called onnx.py, which would hide the package of that name.)
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import common
import onnxruntime as ort  # pyright: ignore[reportMissingImports]

from qarat.stages.export.base import export_model
from qarat.stages.observe import observe
from qarat.stages.quantize import quantize
from qarat.values.plans import assign
from qarat.values.schemes import LOW


def session(path: Path, threads: int, *, profile: bool = False) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = str(path.with_suffix(""))
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def kernel_times(path: Path, threads: int, ids: Any) -> dict[str, dict[str, float]]:
    """Calls and milliseconds of each kind of kernel in one run, as ONNX Runtime's own profile has them."""
    runner = session(path, threads, profile=True)
    runner.run(None, {"input_ids": ids})
    calls, times = Counter[str](), Counter[str]()
    for event in json.loads(Path(runner.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            calls[event["args"]["op_name"]] += 1
            times[event["args"]["op_name"]] += event["dur"]
    return {name: {"calls": calls[name], "ms": round(time / 1000, 2)} for name, time in times.most_common(8)}


def main() -> None:
    chosen = common.arguments(__doc__, windows=1)
    with tempfile.TemporaryDirectory() as home:
        model = common.random_model(Path(home) / "model", chosen)
        stats = observe(model, common.random_tokens("calibration", 1, chosen.length, seed=0), attention=False)
        ids = common.random_tokens("report", chosen.windows, chosen.length, seed=1).windows.numpy()
        steps: dict[str, Any] = {}
        kernels: dict[str, Any] = {}
        size: dict[str, int] = {}
        for name, rules in {"float": [("*_proj", "float")], "int8": [("0.down", "float")]}.items():
            plan = assign(model.fingerprint, model.source_bits, model.sites(), LOW, rules)
            folder = Path(home) / name
            export_model(quantize(model, plan, stats), plan, folder, "onnx")
            runner = session(folder / "model.onnx", chosen.threads)
            steps[name] = lambda runner=runner: runner.run(None, {"input_ids": ids})
            kernels[name] = kernel_times(folder / "model.onnx", chosen.threads, ids)
            size[name] = sum(file.stat().st_size for file in folder.glob("model.onnx*"))
        timings = common.interleave(steps, chosen.repeats)
    result = {
        "int8 / float": asdict(common.ratio(timings["int8"], timings["float"])),
        "kernels": kernels,
        "bytes": size,
        "settings": {key: value for key, value in vars(chosen).items() if key != "output"},
        "machine": common.machine() | {"onnxruntime": ort.__version__},
        "seconds": {name: asdict(timing) for name, timing in timings.items()},
    }
    common.emit(result, chosen.output)


if __name__ == "__main__":
    main()

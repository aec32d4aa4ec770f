"""How time and memory of each step grow with depth, width and tokens, and how far estimates are from what was measured.

python benchmarks/growth.py -o growth.json                                   # exponents, over three points of each axis
python benchmarks/growth.py --shapes llama-2-7b --blocks 2 -o growth.json    # estimates at the width of a large model

Everything in one process, one model after the other, with random weights and ids; no block is kept. Times are CPU time.
Peaks are of resident memory, what the process held before it began left out; the kernel's mark is set back in between.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from common import emit, machine, random_tokens
from shape import SHAPES, Shape, write_checkpoint

from qarat.ground.runtime import Runtime, process_bytes
from qarat.jobs.bench import make_meter
from qarat.jobs.estimates import TO_EXPORT, TO_QUANTIZE, Work, estimate, measuring, observing, pricing, quantized_bytes
from qarat.jobs.open_any import EXPORTING
from qarat.model.model import Model
from qarat.model.native import read_native, write_native
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.export.base import export_model
from qarat.stages.observe import observe
from qarat.stages.prices.pricing import price
from qarat.stages.quantize import quantize
from qarat.values.parsing import parse_scheme
from qarat.values.plans import assign
from qarat.values.records.files import content_hash

LOW = "w=int8/channel a=int8/tensor/static"
BASE, BLOCKS, TOKENS = Shape(1024, 2816, 4, 16, 4, 4096), 4, 512
MEMORY = 1 << 28  # no block is kept


class Case(NamedTuple):
    """A model, and the tokens that go through it, in windows of at most 256."""

    name: str
    shape: Shape
    tokens: int


def cases(chosen: argparse.Namespace) -> list[Case]:
    """The shapes that were asked for, or three points of each axis."""
    if chosen.shapes:
        named = ((name, SHAPES[name]) for name in chosen.shapes)
        return [Case(name, shape._replace(blocks=chosen.blocks), chosen.tokens) for name, shape in named]
    deep = [Case(f"layers {n}", BASE._replace(blocks=n), TOKENS) for n in (2, 4, 8)]
    sizes = ((512, 1408, 8, 2), (1024, 2816, 16, 4), (2048, 5632, 32, 8))
    wide = [
        Case(f"width {hidden}", Shape(hidden, inner, BLOCKS, heads, keys, BASE.vocabulary), TOKENS)
        for hidden, inner, heads, keys in sizes
    ]
    return [*deep, *wide, *(Case(f"tokens {n}", BASE, n) for n in (256, 512, 1024))]


def measure(work: Callable[[], object]) -> tuple[float, int]:
    """CPU seconds, and the peak of resident memory above what was held at the beginning."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what was freed before would be taken again, and not count
    Path("/proc/self/clear_refs").write_text("5")
    held, begun = process_bytes(), time.process_time()
    work()
    spent = time.process_time() - begun
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    return spent, peak - held


def steps(model: Model, tokens: TokenSet, home: Path) -> Iterator[tuple[str, Work, Callable[[], object]]]:
    """Each step: what it has to do by the cost model, and the step itself."""
    count = tokens.windows.numel()
    made: dict[str, object] = {}
    stats = None

    def profile() -> None:
        nonlocal stats
        stats = observe(model, tokens)

    yield "profile", observing(count), profile
    assert stats is not None
    plan = assign(model.fingerprint, model.source_bits, model.sites(), LOW, stats=content_hash(stats))
    yield "damage", pricing(count, 1), lambda: price(model, tokens, [parse_scheme(LOW)], stats)
    yield "plan", measuring(count), lambda: make_meter(model, tokens, stats).measure(plan, "low")
    native, exported = home / "native", home / "exported"
    yield "quantize", TO_QUANTIZE, lambda: write_native(quantize(model, plan, stats), plan, native)

    def export() -> None:
        made["model"] = read_native(native, EXPORTING)[0]
        export_model(made["model"], plan, exported, "compressed-tensors")  # type: ignore[arg-type]

    yield "export", TO_EXPORT, export
    size = sum(path.stat().st_size for path in native.glob("*.safetensors"))
    print(f"disk: {size:,} bytes, estimated {quantized_bytes(model, plan):,}", flush=True)


def run(case: Case, home: Path) -> list[dict[str, object]]:
    """The rows of a case."""
    write_checkpoint(case.shape, home / "model", 256)
    model = open_model(str(home / "model"), Runtime(threads=1, memory=MEMORY)).unkept()
    length = min(256, case.tokens)
    tokens = random_tokens("selection", case.tokens // length, length, 0)
    rows: list[dict[str, object]] = []
    for name, work, step in steps(model, tokens, home):
        foreseen = estimate(model, {name: work}, states=0 if not work.tokens else case.tokens)
        held = foreseen.memory_bytes - process_bytes()
        seconds, peak = measure(step)
        row = {
            "case": case.name,
            "step": name,
            "cpu": seconds,
            "peak": peak,
            "cpu_estimated": foreseen.steps[name],
            "peak_estimated": held,
        }
        rows.append(row)
        print(
            f"{case.name:<16} {name:<9} {seconds:8.2f} s, estimated {foreseen.steps[name]:8.2f} "
            f"({foreseen.steps[name] / seconds:.2f})   {peak / 1e6:6.0f} MB, estimated "
            f"{float(row['peak_estimated']) / 1e6:6.0f}",  # type: ignore[arg-type]
            flush=True,
        )
    return rows


def exponents(rows: list[dict[str, object]]) -> dict[str, dict[str, float]]:
    """Axis and step to the slope of the logarithm of CPU time, and of the peak, by least squares."""
    points: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for row in rows:
        axis, value = str(row["case"]).split()
        found = (math.log(float(value)), math.log(float(row["cpu"])), math.log(max(1.0, float(row["peak"]))))  # type: ignore[arg-type]
        points.setdefault((axis, str(row["step"])), []).append(found)
    fitted: dict[str, dict[str, float]] = {}
    for (axis, step), some in points.items():
        mean = [sum(column) / len(some) for column in zip(*some, strict=True)]
        spread = sum((x - mean[0]) ** 2 for x, *_ in some)
        slopes = [sum((p[0] - mean[0]) * (p[i] - mean[i]) for p in some) / spread for i in (1, 2)]
        fitted[f"{axis}, {step}"] = {"time": round(slopes[0], 3), "peak": round(slopes[1], 3)}
    return fitted


def main() -> None:
    """Measure, print, and remove everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="instead of the axes")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("-o", "--output", type=Path, help="write the JSON here too")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for case in cases(chosen):
        home = Path(tempfile.mkdtemp(prefix="growth-"))
        try:
            rows += run(case, home)
        finally:
            shutil.rmtree(home)
    fitted = {} if chosen.shapes else exponents(rows)
    emit({"rows": rows, "exponents": fitted, "machine": machine()}, chosen.output)


if __name__ == "__main__":
    main()

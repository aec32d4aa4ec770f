"""One call on a machine with one GPU: whether it computes what the CPU does, and how long it takes.

    python benchmarks/gpu.py -o gpu.json                          # at most six minutes
    python benchmarks/gpu.py --device cpu --small -o gpu.json     # the script itself, where there is no GPU

Four parts, each with its share of `--seconds`, and what those before it have left:

- equal: losses, stats, prices, written bytes and a continuation of a trained model (small: of a random one) on both,
  with the bound on each difference. With `--device cpu` the other side is a CUDA device that is pretended
  (`qarat.testing.pretended`).
- observing: a pass that looks at every stream by a plain forward.
- kernels: the INT8 and FP8 products, and whole projections, by the product in bfloat16, at a projection of LLaMA-3-8B.
- shape: LLaMA-3-8B's shape with random weights through profile, prices, quantizing and export, in seconds and in peak
  memory; 2 of its blocks, then 8, then all 32, each where four times what the last one took fits what is left.

Every result is written to the file as it comes, so that a call which is cut short loses nothing but the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import common
import growth
import torch
from beside import compare_all
from observing import plain_forward
from shape import SHAPES, Shape, write_checkpoint

from qarat.ground.runtime import Runtime
from qarat.maths.kernels import fp8, int8
from qarat.maths.rounding import round_to_format
from qarat.maths.scales import choose_scale
from qarat.maths.tensors import quantize_tensor
from qarat.model.opening import open_model
from qarat.stages.observe import observe
from qarat.testing import pretended_cuda
from qarat.values.parsing import parse_tensor_scheme

SHARES = {"equal": 0.2, "observing": 0.1, "kernels": 0.1, "shape": 0.6}
ROWS, PROJECTION = (1, 16, 512, 4096), (14336, 4096)
SMALL = Shape(128, 256, 4, 4, 2, 4096)


class Device(NamedTuple):
    """Where the other side is.

    Attributes:
        name: As a runtime's.
        small: Whether everything is to take seconds.
        threads: Of the CPU.
    """

    name: Literal["cuda", "cpu"]
    small: bool
    threads: int

    def wait(self) -> None:
        """Until all that was asked of it is done."""
        if self.name == "cuda":
            torch.cuda.synchronize()

    def pretended(self) -> contextlib.AbstractContextManager[None]:
        """Where there is none, a device that is called cuda."""
        return pretended_cuda() if self.name == "cpu" else contextlib.nullcontext()


Row = dict[str, object]
Part = Callable[[Device, float], Iterator[Row]]
"""Rows of a part, as they come; it begins nothing that would not end before the time given (of `time.monotonic`)."""


def equal(device: Device, end: float) -> Iterator[Row]:
    """The table of cpu, cuda, difference and bound."""
    with device.pretended():
        yield from compare_all(device.small, device.threads, end)


# ---------------------------------------------------------------- observing


def observing(device: Device, end: float) -> Iterator[Row]:
    """Observing by a plain forward, in turns; wall time, since a GPU has no other."""
    blocks, windows, length, repeats = (1, 2, 32, 1) if device.small else (2, 16, 512, 5)
    chosen = argparse.Namespace(blocks=blocks, length=length, threads=device.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = common.random_model(Path(folder), chosen, device.name)
        tokens = common.random_tokens("calibration", windows, length, seed=0)

        def in_turn(work: Callable[[], object]) -> Callable[[], None]:
            def run() -> None:
                work()
                device.wait()

            return run

        steps = {
            "plain": lambda: plain_forward(model, tokens),
            "observe": lambda: observe(model, tokens, sampled_windows=windows // 4 or 1),
            "observe, no attention": lambda: observe(model, tokens, attention=False, sampled_windows=windows // 4 or 1),
        }
        timings = common.interleave({name: in_turn(work) for name, work in steps.items()}, repeats)
    for name in list(steps)[1:]:
        ratio = common.ratio(timings[name], timings["plain"])
        seconds = {step: statistics.median(timings[step].wall) for step in (name, "plain")}
        yield {"what": f"{name} / plain", "ratio": ratio.wall, "seconds": seconds}


# ---------------------------------------------------------------- kernels


def kernels(device: Device, end: float) -> Iterator[Row]:
    """Products and whole projections, microseconds and by the bfloat16 product."""
    out, inner = (256, 512) if device.small else PROJECTION
    where = torch.device(device.name)
    weight = torch.randn(out, inner, device=where)
    wide = weight.bfloat16()
    low = {word: quantize_tensor(weight, parse_tensor_scheme(f"{word}/channel", "w")) for word in ("int8", "e4m3")}
    integers, floats = int8.integers_of(low["int8"]), wide.to(torch.float8_e4m3fn)
    for rows in (1, 16) if device.small else ROWS:
        if time.monotonic() > end:
            return
        x = torch.randn(rows, inner, device=where)
        codes = round_to_format(x * 40, low["int8"].scheme.number_format).to(torch.int8)
        static = {word: parse_tensor_scheme(f"{word}/tensor/static", "a") for word in low}
        given = {word: (low[word], None, scheme, choose_scale(x, scheme)) for word, scheme in static.items()}
        half, narrow = x.bfloat16(), x.to(torch.float8_e4m3fn)
        works: dict[str, Callable[[], object]] = {
            "bfloat16": lambda half=half: half @ wide.T,
            "int8 product": lambda codes=codes: int8.product(codes, integers),
            "int8 projection": lambda x=x, given=given: int8.linear(x, *given["int8"]),
        }
        if device.name == "cuda" and torch.cuda.get_device_capability() >= (8, 9):  # a CPU has the sums, and slow ones
            works["fp8 product"] = lambda narrow=narrow: fp8.product(narrow, floats)
            works["fp8 projection"] = lambda x=x, given=given: fp8.linear(x, *given["e4m3"])
        times = {name: microseconds(work, device) for name, work in works.items()}
        for name, spent in times.items():
            yield {"what": name, "rows": rows, "microseconds": spent, "by bfloat16": spent / times["bfloat16"]}
    for name, kernel in (("int8", int8), ("fp8", fp8)):
        scheme = "int8" if name == "int8" else "e4m3"
        why = kernel.why_not(low[scheme].scheme, parse_tensor_scheme(f"{scheme}/token", "a"), (out, inner), where)
        yield {"what": f"{name} is chosen", "met": not why, "why not": why}


def microseconds(work: Callable[[], object], device: Device) -> float:
    """The median of some runs, each by itself: by events on a GPU, by the clock on a CPU."""
    for _ in range(3):
        work()
    spent: list[float] = []
    for _ in range(5 if device.small else 30):
        if device.name == "cuda":
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begun.record()
            work()
            ended.record()
            device.wait()
            spent.append(begun.elapsed_time(ended) * 1e3)
        else:
            clock = time.perf_counter()
            work()
            spent.append((time.perf_counter() - clock) * 1e6)
    return statistics.median(spent)


# ---------------------------------------------------------------- shape


def through(device: Device, end: float, blocks: int | None) -> Iterator[Row]:
    """The steps of `growth`, at more and more blocks."""
    shape = SMALL if device.small else SHAPES["llama-3-8b"]
    windows, length = (2, 32) if device.small else (8, 512)
    spent = 0.0
    for depth in [blocks] if blocks else [2, 8, 32] if not device.small else [1, 2]:
        begun = time.monotonic()
        if begun + 4 * spent > end:
            why = f"{end - begun:.0f} s were left, and it takes some {4 * spent:.0f}"
            yield {"what": "left out", "blocks": depth, "why": why}
            return
        home = Path(tempfile.mkdtemp(prefix="gpu-"))
        try:
            size = write_checkpoint(shape._replace(blocks=depth), home / "model", length, device.name)
            yield {"what": "checkpoint", "blocks": depth, "bytes": size, "seconds": time.monotonic() - begun}
            model = open_model(str(home / "model"), Runtime(device.name, threads=device.threads))
            tokens = common.random_tokens("selection", windows, length, 0)
            for name, _, step in growth.steps(model, tokens, home):
                seconds, peak = measure(step, device)
                yield {"what": name, "blocks": depth, "seconds": seconds, "peak bytes": peak}
        finally:
            shutil.rmtree(home)
        spent = time.monotonic() - begun


def measure(step: Callable[[], object], device: Device) -> tuple[float, int]:
    """Wall seconds, and the peak of the GPU's memory in use; on a CPU that of what is resident beyond the beginning."""
    clock = time.monotonic()
    if device.name == "cpu":
        peak = growth.measure(step)[1]
        return time.monotonic() - clock, peak
    torch.cuda.reset_peak_memory_stats()
    step()
    device.wait()
    return time.monotonic() - clock, torch.cuda.max_memory_allocated()


# ---------------------------------------------------------------- the whole


def main() -> None:
    """Run the parts, write what they find as it comes."""
    chosen = _arguments()
    torch.set_num_threads(chosen.threads)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device; --device cpu --small runs the script without one")
    device = Device(chosen.device, chosen.small, chosen.threads)
    parts: dict[str, Part] = {
        "equal": equal,
        "observing": observing,
        "kernels": kernels,
        "shape": partial(through, blocks=chosen.blocks),
    }
    settings = {key: str(value) for key, value in vars(chosen).items() if key != "output"}
    found: dict[str, list[Row]] = {}
    result = {"parts": found, "settings": settings, "machine": common.machine()}
    end = time.monotonic()
    for name in chosen.parts:
        end += chosen.seconds * SHARES[name]
        found[name] = []
        for row in parts[name](device, end):
            found[name].append(row)
            print(name, "  ".join(f"{key}: {value}" for key, value in row.items()), flush=True)
            if chosen.output is not None:
                chosen.output.write_text(json.dumps(result, indent=1) + "\n")
    missed = [row["what"] for rows in found.values() for row in rows if row.get("met") is False and "bound" in row]
    print(f"beyond their bounds: {', '.join(map(str, missed)) or 'none'}")
    raise SystemExit(bool(missed))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="everything at sizes that take seconds on a CPU")
    parser.add_argument("--parts", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--seconds", type=float, default=330, help="of all parts together")
    parser.add_argument("--blocks", type=int, help="of the shape, instead of 2, 8 and 32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("-o", "--output", type=Path, help="file for the JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()

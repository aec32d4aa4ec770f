"""What the benchmarks share: a random model of the 1.1 B shape, interleaved timing, the floor, and the JSON.

Two times are only compared if they were taken in turns in one run: on a shared machine the same work takes twice as
long from one minute to the next, and then does so for both. Each round gives one ratio; the median of the rounds is
printed. Wall-clock time is what a user waits for; CPU time, beside it, leaves out what others did on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

from qarat import __version__
from qarat.ground.runtime import Runtime
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.testing import tiny_checkpoint

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS = 2048, 5632, 32, 4  # of TinyLlama 1.1B, which has 22 blocks
VOCABULARY = 4096  # not its 32000: a few blocks stand for 22, and the head must not outweigh them
KEEP_ALL = 64 << 30  # no block is ever read a second time


@dataclass(frozen=True)
class Timing:
    """Seconds of one step in each round."""

    wall: list[float]
    cpu: list[float]


@dataclass(frozen=True)
class Ratio:
    """One step's time by another's.

    The medians are of the rounds' ratios. The least time by the least is what they tend to on an idle machine.
    """

    wall: float
    cpu: float
    least_cpu_by_least: float
    rounds_cpu: list[float]

    @property
    def worst(self) -> float:
        return max(self.wall, self.cpu, self.least_cpu_by_least)


def arguments(description: str | None, *, windows: int) -> argparse.Namespace:
    """The command line, and the thread count set as it says."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=2, help="decoder layers of the random model")
    parser.add_argument("--windows", type=int, default=windows, help="windows that go through it")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--repeats", type=int, default=7, help="rounds, in each of which every step runs once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="write the JSON here too")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    return chosen


def random_model(folder: Path, chosen: argparse.Namespace, device: str = "auto") -> Model:
    """A LLaMA of the 1.1 B shape with random weights, every block read into memory."""
    tiny_checkpoint(
        folder,
        hidden=HIDDEN,
        intermediate=INTERMEDIATE,
        heads=HEADS,
        kv_heads=KV_HEADS,
        blocks=chosen.blocks,
        vocabulary=VOCABULARY,
        length=chosen.length,
    )
    model = open_model(str(folder), Runtime(device, threads=chosen.threads, memory=KEEP_ALL))
    for _ in model.walk():
        pass
    return model


def random_tokens(name: str, windows: int, length: int, seed: int) -> TokenSet:
    """Windows of random ids, each begun with BOS."""
    ids = torch.randint(2, VOCABULARY, (windows, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 0
    return TokenSet(name, f"windows-{length}-bos", ids, ("random",) * windows, (f"{seed:064}",), ("random",))


def block_flops(model: Model, tokens: TokenSet) -> int:
    """Floating-point operations of the blocks; attention counts the keys that causality lets a token see."""
    projections = 2 * sum(site.parameters for site in model.sites()) * tokens.windows.numel()
    pairs = len(tokens) * tokens.length * (tokens.length + 1) // 2
    return projections + 2 * 2 * pairs * HIDDEN * model.blocks


def head_flops(tokens: TokenSet) -> int:
    """Floating-point operations of the head, which predicts every token of a window but the first."""
    return 2 * HIDDEN * VOCABULARY * len(tokens) * (tokens.length - 1)


def matrix_products(model: Model, rows: int) -> tuple[Callable[[], None], int]:
    """A step that does nothing but the seven products of one block, and its floating-point operations."""
    shapes = [site.shape for site in model.sites() if site.block == 0 and site.shape]
    weights = [torch.randn(shape) for shape in shapes]
    inputs = {columns: torch.randn(rows, columns) for _, columns in shapes}
    outputs = {out: torch.empty(rows, out) for out, _ in shapes}

    def multiply() -> None:
        for weight in weights:
            torch.mm(inputs[weight.shape[1]], weight.T, out=outputs[weight.shape[0]])

    return multiply, 2 * rows * sum(weight.numel() for weight in weights)


def interleave(steps: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """Run every step once in each round, after one round that does not count."""
    timings = {name: Timing([], []) for name in steps}
    for round_ in range(repeats + 1):
        names = list(steps)
        first = round_ % len(names)  # rotated and turned round, so that no step always follows the same one
        names = names[first:] + names[:first]
        for name in names if round_ % 2 else reversed(names):
            wall, cpu = time.perf_counter(), time.process_time()
            steps[name]()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if round_:
                timings[name].wall.append(wall)
                timings[name].cpu.append(cpu)
    return timings


def ratio(of: Timing, to: Timing) -> Ratio:
    """One step's time by another's: the median over the rounds, of either kind of time, and the least by the least."""
    wall = [a / b for a, b in zip(of.wall, to.wall, strict=True)]
    cpu = [a / b for a, b in zip(of.cpu, to.cpu, strict=True)]
    return Ratio(statistics.median(wall), statistics.median(cpu), min(of.cpu) / min(to.cpu), sorted(cpu))


def emit(result: Mapping[str, object], output: Path | None) -> None:
    """Print a result as JSON, and write it to a file where one is named."""
    text = json.dumps(result, indent=1)
    print(text)
    if output is not None:
        output.write_text(text + "\n")


def report(
    chosen: argparse.Namespace,
    timings: Mapping[str, Timing],
    flops: Mapping[str, int],
    ratios: Mapping[str, Ratio],
    target: float,
    notes: list[str],
) -> None:
    """Print the result as JSON, and write it where the command line says.

    Args:
        chosen: The command line.
        timings: By step; ``products`` is the one of `matrix_products`.
        flops: By step, for those that have a floor.
        ratios: By what is compared; the first is the claim.
        target: What the claim's ratio may be.
        notes: What a reader must know.
    """
    products = timings["products"]
    floors = {}
    for name in timings.keys() & flops.keys() - {"products"}:
        share = flops[name] / flops["products"]
        floors[name] = {
            "gigaflop": flops[name] / 1e9,
            "floor_seconds": share * statistics.median(products.cpu),
            "cpu_seconds": statistics.median(timings[name].cpu),
            "times_floor": statistics.median(
                [t / (share * p) for t, p in zip(timings[name].cpu, products.cpu, strict=True)]
            ),
        }
    result = {
        "ratios": {name: asdict(ratio) for name, ratio in ratios.items()},
        "target": target,
        "met": next(iter(ratios.values())).worst <= target,
        "gigaflops_per_second": flops["products"] / statistics.median(products.cpu) / 1e9,
        "floors": {name: floors[name] for name in timings if name in floors},
        "notes": notes,
        "settings": {key: value for key, value in vars(chosen).items() if key != "output"},
        "machine": machine(),
        "seconds": {name: asdict(timing) for name, timing in timings.items()},
    }
    emit(result, chosen.output)


def machine() -> dict[str, object]:
    """The machine and the versions."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": os.getloadavg(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "qarat": __version__,
    }

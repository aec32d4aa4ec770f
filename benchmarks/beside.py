"""What a CUDA device computes beside the CPU, in one table: the part ``equal`` of `gpu.py`, no script of its own."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from qarat.ground.runtime import Runtime, no_progress
from qarat.maths.kernels import KERNELS, REFERENCE, choose
from qarat.model.layers import QuantLinear
from qarat.model.model import Model
from qarat.model.native import write_native
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.model.tokens import TokenSet
from qarat.stages.measure.generation import continue_all
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.observe import observe
from qarat.stages.prices.pricing import price
from qarat.stages.quantize import quantize
from qarat.testing import tiny_checkpoint
from qarat.values.parsing import parse_scheme
from qarat.values.plans import Plan, assign
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import LOW

FLOAT, ROUNDED = 1e-5, 0.05  # as tests/test_devices.py has them, and why
KERNEL = 1e-5  # of the largest output, as qarat.testing.check_kernel has it
GROUPS, FP8 = "w=int4/g32 a=int8/token", "w=e4m3/channel a=e4m3/token"


class Sides(NamedTuple):
    """A model on both sides, and the stats of the CPU, from which both have their static scales."""

    models: tuple[Model, Model]
    stats: ActivationStats
    tokens: TokenSet

    def low(self, side: int, scheme: str) -> Model:
        model = self.models[side]
        return quantize(model, self.plan(scheme), self.stats)

    def plan(self, scheme: str) -> Plan:
        model = self.models[0]
        return assign(model.fingerprint, model.source_bits, model.sites(), scheme)


Compared = tuple[float, float, float]
"""A number of either side, and the difference that has a bound; of many numbers the largest, by the largest of them."""


def largest(here: Tensor, there: Tensor) -> Compared:
    most = float(here.abs().max())
    return most, float(there.abs().max()), float((here - there).abs().max()) / most


def losses(sides: Sides) -> Compared:
    return largest(*(nats(model, sides) for model in sides.models))


def added(scheme: str, sides: Sides) -> Compared:
    """What rounding adds to the losses of windows."""
    return largest(*(nats(sides.low(i, scheme), sides) - nats(model, sides) for i, model in enumerate(sides.models)))


def nats(model: Model, sides: Sides) -> Tensor:
    return torch.tensor(measure_perplexity(model, sides.tokens, label="x").nats, dtype=torch.float64)


def by_kernels(scheme: str, sides: Sides) -> Compared:
    """Every projection of the device by the fast kernel, on the input that it has in the model, by the reference.

    Losses would not do: a code that goes the other way behind it, at a spike, may move them by a tenth of a nat.
    """
    model, found = sides.low(1, scheme), [(0.0, 0.0, 0.0)]

    def see(layer: QuantLinear, operands: tuple[Tensor, ...], output: Tensor) -> None:
        assert layer.quantized is not None
        shape, where = (layer.out_features, layer.in_features), output.device
        kernel = choose(layer.scheme.weight, layer.scheme.input, shape, where, "fast").kernel
        fast = KERNELS.load(kernel).linear(
            operands[0], layer.quantized, layer.bias, layer.scheme.input, layer.input_scales
        )
        if kernel != REFERENCE:
            found.append(largest(output, fast))

    hidden = model.enter(sides.tokens.batches(model.runtime.batch_tokens))
    for index, block in model.walk():
        for module in block.modules():
            if isinstance(module, QuantLinear):
                module.register_forward_hook(see)
        for j, states in enumerate(hidden):
            hidden[j] = model.run_block(index, block, states)
    return max(found, key=lambda compared: compared[2])


def of_stats(array: str, sides: Sides) -> Compared:
    """Of all streams the one in which both differ most."""
    here, there = (observe(model, sides.tokens).streams for model in sides.models)
    pairs = ((stream.arrays, there[name].arrays) for name, stream in here.items() if array in stream.arrays)
    return max((largest(a[array], b[array]) for a, b in pairs), key=lambda compared: compared[2])


def prices(sides: Sides) -> Compared:
    menus = (price(m, sides.tokens, [parse_scheme(LOW), parse_scheme(GROUPS)], sides.stats) for m in sides.models)
    return largest(*(torch.tensor([entry.damage for entry in menu.entries]) for menu in menus))


def written(scheme: str, sides: Sides) -> Compared:
    """Bytes of codes and scales, and how many differ."""
    with tempfile.TemporaryDirectory() as home:
        folders = [Path(home) / str(side) for side in range(2)]
        for side, folder in enumerate(folders):
            write_native(sides.low(side, scheme), sides.plan(scheme), folder)
        sizes, differing = [0, 0], 0
        for path in folders[0].glob("block-*.safetensors"):
            pair = [load_file(folder / path.name) for folder in folders]
            for name in pair[0]:
                here, there = (tensors[name].reshape(-1).view(torch.uint8) for tensors in pair)
                sizes = [sizes[0] + len(here), sizes[1] + len(there)]
                differing += int((here != there).sum())
    return float(sizes[0]), float(sizes[1]), float(differing)


def continued(sides: Sides) -> Compared:
    """Letters that the float model writes behind a prompt, and how many differ."""
    prompt, texts = sides.tokens.windows[0].tolist()[:16], list[str]()
    for model in sides.models:
        written = continue_all(model, sides.tokens, {"float": partial(lambda m: m, model)}, prompt, no_progress)
        texts.append(written.texts["float"])
    differing = sum(a != b for a, b in zip(*texts, strict=False)) + abs(len(texts[0]) - len(texts[1]))
    return float(len(texts[0])), float(len(texts[1])), float(differing)


COMPARISONS: tuple[tuple[str, float, Callable[[Sides], Compared]], ...] = (
    ("losses in float", FLOAT, losses),
    (f"losses added by {LOW}", ROUNDED, partial(added, LOW)),
    (f"losses added by {GROUPS}", ROUNDED, partial(added, GROUPS)),
    (f"projections by the fast kernel, {LOW}", KERNEL, partial(by_kernels, LOW)),
    (f"projections by the fast kernel, {FP8}", KERNEL, partial(by_kernels, FP8)),
    ("stats, maxima of channels", FLOAT, partial(of_stats, "channel_max")),
    ("stats, squares of channels", FLOAT, partial(of_stats, "channel_square")),
    ("prices by Fisher", ROUNDED, prices),
    (f"bytes of codes and scales, {LOW}", 0.0, partial(written, LOW)),
    (f"bytes of codes and scales, {GROUPS}", 0.0, partial(written, GROUPS)),
    ("letters of a continuation", 0.0, continued),
)


def compare_all(small: bool, threads: int, end: float) -> Iterator[dict[str, object]]:
    """The table of cpu, cuda, difference and bound, row by row.

    Args:
        small: Whether a random model of two blocks will do.
        threads: Of the CPU.
        end: Of `time.monotonic`, behind which nothing is begun.
    """
    windows, length = (2, 32) if small else (8, 128)
    with tempfile.TemporaryDirectory() as home:
        name = str(tiny_checkpoint(Path(home))) if small else "py-128"
        here = open_model(name, Runtime("cpu", threads=threads))
        calibration, tokens, _ = load_token_sets(here, samples=windows, report_samples=windows, length=length)
        sides = Sides((here, open_model(name, Runtime("cuda"))), observe(here, calibration), tokens)
        for what, bound, compare in COMPARISONS:
            if time.monotonic() > end:
                return
            cpu, cuda, difference = compare(sides)
            met = difference <= bound
            yield {"what": what, "cpu": cpu, "cuda": cuda, "difference": difference, "bound": bound, "met": met}

"""Estimates: what a command would take, from shapes and rates measured for a moment; nothing is computed.

Time counts three things: matrix products; bringing weights in (widening and checking them); rounding and packing them.
Each goes by a rate that is measured now, in CPU time of each thread, so an estimate is of a machine that does nothing
else. Disks are not counted: a checkpoint that no cache holds takes its bytes over the disk's rate more in each pass.
`docs/scale.md` sets estimates beside what was measured.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from qarat.ground.runtime import Estimate, held_bytes
from qarat.maths.histograms import EDGES
from qarat.model.capture import block_work
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.stages.choose.protect import MOST
from qarat.stages.measure.meter import room_for_states
from qarat.stages.measure.perplexity import ROWS
from qarat.stages.quantize import room_for_weights
from qarat.stages.rounding import round_weight
from qarat.values.plans import Plan
from qarat.values.schemes import Granularity, TensorScheme

CHOOSING_FORWARDS = 5
"""Forwards that predicted search takes: some ten plans, on the average behind a kept prefix of half the blocks."""

PROTECTING_FORWARDS = 1 + MOST
"""Forwards that protecting takes: float and the plans on the way to the budget. Hardly any share a prefix: what differs
between two plans nearly always begins in an early block. Where none of them meets the budget, two plans more follow."""

PRICED_ON = 4096
"""Tokens of the selection set that are enough to price sites and to fit rewrites on (LOG.md: 4 windows rank as 16)."""

_INT8 = TensorScheme("int8", Granularity(1, None))
PLAIN, MEASURED, PRICED, OBSERVED = 1.5, 2.2, 2.0, 6.5
"""Times that everything which projections read and put out is gone through, beside the products: norms, activations,
rotations and attention's own; rounding inputs; gradients; statistics. In units of widening a weight, which is such a
pass; from `benchmarks/growth.py` on one CPU core, widths 512 to 2048."""


class Work(NamedTuple):
    """What a step has to do.

    Attributes:
        tokens: That it sends through all blocks.
        passes: Times that it brings all blocks in.
        rounded: Times that it rounds all weights, or makes numbers of their codes.
        head: Tokens that it sends through the head; None for those of the blocks.
        looks: Times that it goes through what lies between the products, for each token that it sends.
    """

    tokens: float
    passes: float = 1
    rounded: float = 0
    head: float | None = None
    looks: float = PLAIN


ROUNDING = 1500
"""Tokens through the whole model that rounding and packing it is counted as, where plans are counted in tokens."""
TO_QUANTIZE = Work(0, passes=1, rounded=1.7)  # rounded, and packed and written
TO_EXPORT = Work(0, passes=0, rounded=0.5)


def price_forwards(schemes: int) -> int:
    """Forwards that pricing takes at most: one, one recomputed, a backward of one, and a product per scheme."""
    return 3 + schemes


def pricing(tokens: int, schemes: int) -> Work:
    """What pricing schemes by the default metric takes."""
    return Work(price_forwards(schemes) * tokens, passes=2, rounded=2 * schemes, head=2 * tokens, looks=PRICED)


def measuring(tokens: int, plans: float = 1) -> Work:
    """What measuring plans takes that share nothing."""
    return Work(plans * tokens, passes=plans, rounded=2 * plans, looks=MEASURED)


def observing(tokens: int) -> Work:
    """What a pass takes that looks at every stream."""
    return Work(tokens, head=0, looks=OBSERVED)


def estimate(
    model: Model,
    work: Mapping[str, float | Work],
    *,
    states: int = 0,
    disk: int = 0,
    held: int = 0,
) -> Estimate:
    """What a command would take.

    Args:
        model: Opened, in float or quantized; as it will be gone through, with blocks kept or not.
        work: Of each step, by its name; a number is of tokens that go through blocks and head.
        states: Hidden states at once, counted in tokens; in memory as far as the bound lets them.
        disk: Bytes that would be written.
        held: Bytes beside those states and the float blocks.
    """
    rates = measure_rates(model.runtime.device)
    head = model.outside()[f"{model.family.head}.weight"].numel()
    weights = sum(s.parameters for s in model.sites())
    between = sum(sum(s.shape) for s in model.sites() if s.kind == "projection")  # elements, for each token

    def seconds(step: float | Work) -> float:
        step = step if isinstance(step, Work) else Work(step)
        products = 2 * (step.tokens * weights + (step.tokens if step.head is None else step.head) * head)
        passes = min(step.passes, 1) if model.keeps_blocks else step.passes
        widened = passes * weights + step.looks * step.tokens * between
        return products / rates.products + widened * rates.bringing + step.rounded * weights * rates.rounding

    steps = {"begin": _beginning(model)} | {name: seconds(step) for name, step in work.items()}
    blocks = block_work(model, min(states, model.runtime.batch_tokens))
    blocks += model.block_bytes() * model.blocks if model.keeps_blocks else 0
    kept = min(states * model.state_bytes, model.memory // 4)
    # The process as it stands has the libraries.
    return Estimate(steps, held_bytes(model.runtime.device) + max(blocks, 4 * head) + kept + held, disk, rates.products)


def _beginning(model: Model) -> float:
    """Seconds until a command begins with its work: what this process took so far, and hashing the weights."""
    if "fingerprint" in vars(model.checkpoint):
        return time.process_time()
    piece = bytes(1 << 23)
    hashing = _seconds(lambda: hashlib.sha256(piece).digest()) * torch.get_num_threads() / len(piece)
    return time.process_time() + hashing * model.checkpoint.weight_bytes()


def meter_bytes(model: Model, tokens: TokenSet, plans: int, formats: int) -> int:
    """What measuring plans of a model holds beside its float blocks.

    Args:
        model: In float.
        tokens: That they are measured on.
        plans: How many.
        formats: Different schemes of weights among them, but for those of a few sites.
    """
    size = model.runtime.torch_dtype.itemsize
    state = tokens.windows.numel() * model.config.hidden_size * size
    states = min(max(room_for_states(model), 2 * state), plans * model.blocks * state)
    weights = sum(site.parameters for site in model.sites())  # a byte each, whatever the format
    logits = 2 * 4 * ROWS * model.config.vocab_size  # and their logarithms
    inside = 4 * model.runtime.batch_tokens * model.inner_width * size  # gate, up, their product, its rounding
    return states + min(formats * weights, room_for_weights(model)) + logits + inside


def whole_bytes(model: Model) -> int:
    """A quantized model in one piece, to continue a prompt: four bytes a weight, and one for its code."""
    return 5 * sum(site.parameters for site in model.sites())


def quantized_bytes(model: Model, plan: Plan) -> int:
    """Size of a folder quantized by a plan; the tokenizer's files, biases and headers are left out."""
    outside = model.outside()
    if model.config.tie_word_embeddings:
        outside.pop(f"{model.family.head}.weight", None)
    return (plan.weight_bits() + sum(t.numel() for t in outside.values()) * model.source_bits) // 8


def stats_bytes(model: Model) -> int:
    """Size of the stats of one pass: histograms of each stream, and three numbers a channel."""
    inputs = {stream: s.shape[1] for s in model.sites() if s.shape for stream in s.streams}
    outputs = 2 * model.blocks * model.config.hidden_size
    streams = len(inputs) + 6 * model.blocks  # and the operands of attention and two outputs in each block
    return streams * 3 * 8 * (len(EDGES) - 1) + 3 * 4 * (sum(inputs.values()) + outputs)


class Rates(NamedTuple):
    """What this machine does, by CPU time of each thread.

    Attributes:
        products: Floating-point operations a second of a float32 matrix product.
        bringing: Seconds for each weight that is checked, and widened from bfloat16 to float32.
        rounding: Seconds for each weight that is rounded, or made a number again.
    """

    products: float
    bringing: float
    rounding: float


def measure_rates(device: str) -> Rates:
    """Measure for a second."""
    a = torch.zeros(768, 768, device=device)
    stored = torch.ones(2048, 4096, dtype=torch.bfloat16, device=device)
    wide = stored.float()
    products = _seconds(lambda: torch.mm(a, a)[0, 0].item(), device)  # waits, also for a GPU
    bringing = _seconds(lambda: (stored.aminmax()[0].item(), stored.float()[0, 0].item()), device)
    rounding = _seconds(lambda: round_weight(wide, _INT8).dequantize()[0, 0].item(), device)
    return Rates(2 * 768**3 / products, bringing / stored.numel(), rounding / stored.numel() / 2)


def _seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """CPU seconds of each thread that a piece of work takes; on a GPU wall seconds, in which threads have no part."""
    work()
    wall, cpu, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < 0.3 or not done:
        work()
        done += 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return (min(wall, cpu / torch.get_num_threads()) if device == "cpu" else wall) / done

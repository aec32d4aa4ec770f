"""Estimates: what a command would take, from shapes and a matrix rate measured for a moment; nothing is computed.

Time counts matrix products alone, at the rate of a large one, so it is a lower bound: small models spend most of theirs
elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from qarat.ground.runtime import Estimate, process_bytes
from qarat.maths.histograms import EDGES
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.stages.choose.protect import MOST
from qarat.stages.measure.meter import room_for_states
from qarat.stages.measure.perplexity import ROWS
from qarat.stages.quantize import room_for_weights
from qarat.values.plans import Plan

CHOOSING_FORWARDS = 5
"""Forwards that predicted search takes: some ten plans, on the average behind a kept prefix of half the blocks."""

PROTECTING_FORWARDS = 1 + MOST
"""Forwards that protecting takes: float and the plans on the way to the budget. Hardly any share a prefix: what differs
between two plans nearly always begins in an early block. Where none of them meets the budget, two plans more follow."""

PRICED_ON = 4096
"""Tokens of the selection set that are enough to price sites and to fit rewrites on (LOG.md: 4 windows rank as 16)."""

ROUNDING = 1500
"""Rounding and packing a weight takes as long as so many tokens that are multiplied with it; measured with int8, int4
and mxfp4 on one CPU core."""


def price_forwards(schemes: int) -> int:
    """Forwards that pricing takes at most: one, one recomputed, a backward of two, and a product per scheme."""
    return 4 + schemes


def estimate(model: Model, work: Mapping[str, float], *, states: int, disk: int, held: int = 0) -> Estimate:
    """What a command would take.

    Args:
        model: Opened, in float or quantized; as it will be gone through, with blocks kept or not.
        work: Name of each step to the tokens that it sends through the whole model.
        states: Hidden states in memory at once, counted in tokens.
        disk: Bytes that would be written.
        held: Bytes beside those states and the float blocks.
    """
    rate = _matrix_rate(model.runtime.device)
    head = model.outside()[f"{model.family.head}.weight"].numel()
    per_token = 2 * (sum(s.parameters for s in model.sites()) + head) / rate
    weights = model.block_bytes() * (model.blocks if model.keeps_blocks else 1)
    hidden = model.config.hidden_size * model.runtime.torch_dtype.itemsize
    steps = {name: tokens * per_token for name, tokens in work.items()}
    # The process as it stands has the libraries, and what lies outside the blocks.
    return Estimate(steps, process_bytes() + weights + states * hidden + held, disk, rate)


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
    numbers = 4 * weights // model.blocks  # what the codes of one block stand for
    logits = 2 * 4 * ROWS * model.config.vocab_size  # and their logarithms
    inside = 4 * model.runtime.batch_tokens * model.inner_width * size  # gate, up, their product, its rounding
    return states + min(formats * weights, room_for_weights(model)) + numbers + logits + inside


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


def _matrix_rate(device: str) -> float:
    """Floating-point operations a second of a float32 matrix product, measured for a moment."""
    a = torch.zeros(768, 768, device=device)
    torch.mm(a, a)
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < 0.2:
        torch.mm(a, a)[0, 0].item()  # waits, also for a GPU
        done += 1
    return 2 * 768**3 * done / (time.perf_counter() - begun)

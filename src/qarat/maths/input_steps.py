"""Input steps fitted to damage: how finely each channel of a stream is rounded, where one scale serves them all.

A stream whose channels are divided by s before they are rounded with the one scale Δ is rounded, seen from the float
model, in steps δ_j = s_j · Δ, each channel in its own. The readers' columns are multiplied by s, so that their rows,
too, get steps that depend on it. To second order (`qarat.stages.prices.fisher`), with roundings that are independent
from one channel and weight to the next, the damage of the stream and its readers is

    Σ_j D_j(δ_j)  +  1/24 · Σ_i σ_i² Σ_j C_ij / s_j²,        D_j(δ) = ½ · mean (γ_j · e_j(δ))²

per token: γ is the gradient with respect to the stream and e_j(δ) what rounding and clipping x_j in steps of δ changes;
σ_i = max_j |W_ij| · s_j ÷ (largest code) is the step of a reader's row i (of a group of it, where scales are shared by
groups), and C_ij = mean (g_i · x_j)². The weight that sets σ_i is left out: it comes to a whole number of steps. D is
tabulated once, in one pass; after that every choice of steps is priced without the model, and the best is found by
descent. Nothing like a smoothing strength is left to choose.

Where every token has a scale of its own, D is of the same form as the weights' part, with tokens for rows and 1/δ for
s: a token's step is the largest |x_j|/δ_j ÷ (largest code), and a few hundred tokens stand for all.

Splitting channel j into k copies (`qarat.maths.splitting`) lets its weights be s_j = δ_j / k_j at the same step: it is
what a spike needs, since one column made large makes the steps of all rows large. Which columns are worth copies
follows from the same formula: those that alone set the steps of dear rows.

The bound from below, ``reach``, keeps every channel from being clipped within that many times what calibration saw: a
table of a few thousand tokens says too little of what clips once in a hundred thousand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qarat.maths.rounding import round_to_format
from qarat.values.formats import NumberFormat
from qarat.values.schemes import Granularity, TensorScheme

POINTS = tuple(i / 2 for i in range(-2, 19))
"""Where D is tabulated: log2 of the step over that at which the format just reaches what calibration saw. At 2^9 even
the largest value is rounded to nothing."""
TOGETHER = 128  # tokens tabulated together, so that they stay in cache
DEAD = 1e-4  # of the largest: a channel that reaches less is treated as if it reached so much
SMALLEST = 1e-12


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What one stream and its readers make of roundings.

    Attributes:
        reach: (channels,) largest magnitude that calibration saw.
        tables: By the format that inputs are rounded to, (points, channels) D at the steps `POINTS` names, nats per
            token.
        sample: (tokens, channels) each, of some tokens: |x|, and γ² over the number of tokens.
        moments: Of every reader C, (out, channels) float32.
        weights: Of every reader, (out, channels) in float.
        share: Runs of so many heads of ``head`` channels have one source, so one scale (query heads of a value head).
        head: Channels of a head.
    """

    reach: Tensor
    tables: Mapping[str, Tensor]
    sample: tuple[Tensor, Tensor]
    moments: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    share: int = 1
    head: int = 1

    def gather(self, values: Tensor) -> Tensor:
        """(channels,) to (sources,): the largest of those that share a source."""
        return values.view(-1, self.share, self.head).amax(1).flatten()

    def spread(self, values: Tensor) -> Tensor:
        """(sources,) to (channels,)."""
        return values.view(-1, 1, self.head).expand(-1, self.share, -1).flatten()


@dataclass(frozen=True, eq=False)
class Steps:
    """A choice of steps.

    Attributes:
        steps: (channels,) δ, float32.
        copies: (channels,) k, powers of two, int64.
        inputs: What rounding the stream costs, nats per token;
        weights: and what rounding its readers does, with steps as noise.
    """

    steps: Tensor
    copies: Tensor
    inputs: float
    weights: float

    @property
    def damage(self) -> float:
        """Of both, nats per token."""
        return self.inputs + self.weights

    @property
    def scales(self) -> Tensor:
        """(channels,) s = δ ÷ k, their geometric mean 1: the readers' columns are multiplied by it."""
        scales = self.steps / self.copies
        return scales / scales.log().mean().exp()


def finest_steps(reach: Tensor, largest: float) -> Tensor:
    """Steps at which the format just reaches what calibration saw of each channel, (channels,).

    Args:
        reach: (channels,) largest magnitudes.
        largest: Value of the format.
    """
    return (reach.clamp(min=float(reach.amax()) * DEAD) / largest).clamp(min=SMALLEST)


def tabulate(inputs: Tensor, gradients: Tensor, reach: Tensor, format: NumberFormat) -> Tensor:
    """D at every step of `POINTS`, (points, channels) float32.

    Args:
        inputs: (tokens, channels) of the stream.
        gradients: The same shape, γ.
        reach: (channels,) largest magnitude that calibration saw.
        format: Inputs are rounded to.
    """
    unit = finest_steps(reach, format.largest)
    sums = inputs.new_zeros(len(POINTS), inputs.shape[1])
    for first in range(0, len(inputs), TOGETHER):
        x = inputs[first : first + TOGETHER]
        weighed = gradients[first : first + TOGETHER].square()
        for row, point in zip(sums, POINTS, strict=True):
            step = unit * 2**point
            error = round_to_format(x / step, format).mul_(step).sub_(x)
            row += (error.square_().mul_(weighed)).sum(0)
    return sums / (2 * len(inputs))


def fits(weight: TensorScheme | None, inputs: TensorScheme | None) -> bool:
    """Whether steps can be fitted under such schemes.

    One scale for the whole input, static or not; or one for a token of integers (or for groups of it); or an input in
    float, before weights whose steps depend on s.
    """
    if inputs is None:
        return weight is not None and weight.number_format.is_integer
    if not inputs.symmetric or inputs.choice.startswith("mx-"):
        return False
    return inputs.granularity == Granularity() or is_tokenwise(inputs)


def is_tokenwise(inputs: TensorScheme) -> bool:
    """Whether every token has scales of its own, of integers, so that its step follows from its largest value."""
    return inputs.granularity.rows == 1 and inputs.number_format.is_integer


def exact_scales(scales: Tensor, source: Tensor, dtype: torch.dtype, offset: float = 0.0) -> Tensor:
    """Scales close to those given, by which a norm's weight is divided without being rounded.

    Args:
        scales: (channels,).
        source: (channels,) the norm's weight.
        dtype: It is stored in.
        offset: What the norm adds to its weight.
    """
    stored = ((source.float() + offset) / scales - offset).to(dtype).float() + offset
    exact = (source.float() + offset) / stored
    return torch.where(exact.isfinite() & (exact > 0), exact, scales)

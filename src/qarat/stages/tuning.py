"""Tuning: what a plan leaves in float is trained, so that the quantized model predicts what the float one does.

After PreQuant (Gong et al. 2023, arXiv 2306.00014), which tunes a few weights in float per task and leaves what is low
as it was rounded. Here there is no task: the loss is the KL divergence from the float model on calibration windows, and
the weights are those of the projections that the plan keeps in float. Codes and scales are not touched. Gradients pass
straight through the rounding of inputs. Model, gradients and Adam's moments are held at once, not block by block.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.model.layers import QuantLinear
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.values.plans import Plan

RATE = 1e-3  # Adam's
WINDOWS = 4  # a step
STAGE = "tune"  # what progress is told


def tune(
    model: Model,
    quantized: Model,
    tokens: TokenSet,
    plan: Plan,
    steps: int,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Model:
    """The quantized model with the float weights of its projections tuned; everything else is the same.

    Args:
        model: In float, computed in float32.
        quantized: The same under the plan.
        tokens: Of calibration.
        plan: With projections in float.
        steps: Of Adam, each on a few windows.
        seed: Of the order of the windows.
        progress: Called after every step.

    Raises:
        UserError: A plan that cannot be tuned (`check_tuning`); a model that is not computed in float32.
    """
    check_tuning(plan, steps)
    if model.runtime.dtype != "float32" or quantized.runtime.dtype != "float32":
        raise UserError(f"`tune` needs models computed in float32, not {model.runtime.dtype}; give `dtype` float32")
    parameters = {
        site.name: nn.Parameter(_weight(quantized, site.block, site.name).detach().clone())
        for site in (a.site for a in plan.assignments if a.site.kind == "projection" and a.is_float)
    }
    home = f"{model.family.blocks}."
    trained = [_rebuilt(quantized.block(i), f"{home}{i}", parameters, _Passing) for i in range(model.blocks)]
    aims = _behind_the_last_block(model, tokens)
    optimizer = torch.optim.Adam(parameters.values(), lr=RATE)
    progress(STAGE, 0, steps)
    for step, chosen in enumerate(_batches(len(tokens), steps, seed)):
        optimizer.zero_grad()
        with torch.enable_grad():
            _divergence(quantized, trained, tokens.windows[chosen], model.logits(aims[chosen])).backward()
        optimizer.step()
        progress(STAGE, step + 1, steps)
    kept = {name: _as_stored(model, name, parameter) for name, parameter in parameters.items()}
    return quantized.with_blocks(lambda i: _rebuilt(quantized.block(i), f"{home}{i}", kept, lambda layer: layer))


def check_tuning(plan: Plan, steps: int) -> None:
    """Check that there is something to tune, and that gradients reach it.

    Raises:
        UserError: Nothing in float; attention products or caches that are quantized, or a prefix; no steps.
    """
    if steps < 1:
        raise UserError(f"`tune` {steps}: give at least 1 step")
    if plan.prefix:
        raise UserError("`tune` passes no gradients through a prefix in float; plan without one")
    low = [a.site.name for a in plan.assignments if a.site.kind != "projection" and not a.is_float]
    if low:
        raise UserError(f"`tune` passes no gradients through quantized attention products or caches: {', '.join(low)}")
    if not any(a.site.kind == "projection" and a.is_float for a in plan.assignments):
        raise UserError("`tune` trains what a plan leaves in float, and it leaves nothing; protect some projections")


def tuning_forwards(tokens: TokenSet, steps: int) -> int:
    """What it costs in forwards of one token through the model, a backward counting two; the float model's included."""
    every = tokens.windows.numel()
    return every + 3 * steps * min(WINDOWS, len(tokens)) * tokens.windows.shape[1]


class _Passing(nn.Module):
    """A quantized projection: what it computes, with the gradient that it would have if its input were not rounded."""

    def __init__(self, layer: QuantLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        through = nn.functional.linear(x, self.layer.value, self.layer.bias)
        return through + (self.layer(x) - through).detach()


def _rebuilt(
    module: nn.Module, name: str, weights: Mapping[str, Tensor], wrap: Callable[[QuantLinear], nn.Module]
) -> nn.Module:
    """A copy that shares all tensors but some weights.

    Args:
        module: Of the quantized model.
        name: In full.
        weights: Full name of a projection to its weight in the copy.
        wrap: What stands in a quantized projection's place.
    """
    if isinstance(module, QuantLinear):
        return wrap(module)
    clone = copy.copy(module)
    clone._parameters = dict(module._parameters)
    if name in weights:
        weight = weights[name]
        clone._parameters["weight"] = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, False)
    clone._modules = {
        leaf: None if child is None else _rebuilt(child, f"{name}.{leaf}", weights, wrap)
        for leaf, child in module._modules.items()
    }
    return clone


def _weight(model: Model, block: int, name: str) -> Tensor:
    return (
        model.block(block).get_submodule(name.removeprefix(f"{model.family.blocks}.{block}.")).get_parameter("weight")
    )


def _as_stored(model: Model, name: str, weight: Tensor) -> Tensor:
    """A weight as a file will hold it, in the checkpoint's dtype, so that what is measured is what is written."""
    return weight.detach().to(model.checkpoint.dtype_of(f"{name}.weight")).to(weight.dtype)


@torch.no_grad()
def _behind_the_last_block(model: Model, tokens: TokenSet) -> Tensor:
    """Hidden states of the float model, (windows, length, hidden)."""
    hidden = [model.embed(batch) for batch in tokens.batches(model.runtime.batch_tokens)]
    for index, block in model.walk():
        hidden = [model.run_block(index, block, states) for states in hidden]
    return torch.cat(hidden)


def _divergence(quantized: Model, blocks: Sequence[nn.Module], windows: Tensor, logits: Tensor) -> Tensor:
    """Mean KL divergence from the float model's logits, nats per token."""
    hidden = quantized.embed(windows)
    for index, block in enumerate(blocks):
        hidden = quantized.run_block(index, block, hidden)
    wanted, got = logits.detach().log_softmax(-1), quantized.logits(hidden).log_softmax(-1)
    return (wanted.exp() * (wanted - got)).sum(-1).mean()


def _batches(windows: int, steps: int, seed: int) -> list[Tensor]:
    """Indices of each step's windows: all in a random order, then all in another, and so on."""
    draw = torch.Generator().manual_seed(seed)
    taken = min(WINDOWS, windows)
    rounds = -(-steps * taken // windows)
    order = torch.cat([torch.randperm(windows, generator=draw) for _ in range(rounds)])
    return list(order[: steps * taken].split(taken))

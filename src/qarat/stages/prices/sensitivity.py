"""What every stream makes of roundings, block by block, from one forward and one backward pass.

The same pass and the same labels as `qarat.stages.prices.fisher`; but instead of the price of a scheme it gathers what
prices *any* steps of a stream's channels (`qarat.maths.input_steps`). A table over steps costs elementwise work alone,
and the moments of a reader's weight one product with its shape: together about a forward. Schemes differ in the tables
alone, one for each format of inputs, so one pass serves them all; whoever wants prices as well sees the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qarat.maths.input_steps import Sensitivity, is_tokenwise, tabulate
from qarat.maths.static_scales import reach_of
from qarat.model.capture import Captured
from qarat.model.families.base import Stream
from qarat.model.model import Model
from qarat.model.passes import CapturedBatch, Objective, backward, draw_labels
from qarat.stages.prices.changes import Pricing
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import TensorScheme

EVERY = 4  # tokens of which one is kept: they stand for the others where each has a scale of its own


@dataclass
class _Sums:
    """Over the tokens seen so far."""

    tokens: int = 0
    tables: dict[str, Tensor] = field(default_factory=dict)
    sample: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    moments: dict[str, Tensor] = field(default_factory=dict)


def sensitivities(
    pricing: Pricing, inputs: Sequence[TensorScheme | None], also: Callable[[CapturedBatch], None] | None = None
) -> Iterator[tuple[int, nn.Module, dict[str, Sensitivity]]]:
    """Blocks from the last to the first, each with what its streams make of roundings, by their names in the block.

    Args:
        pricing: Of what and on which tokens; with stats. All tokens are looked at together, so they should be few.
        inputs: What streams may be rounded to; None where they stay in float.
        also: Shown every batch of the pass.
    """
    assert pricing.stats is not None
    model, sums = pricing.model, dict[str, _Sums]()
    windows = left = len(pricing.tokens)
    for seen in _PASS(pricing):
        index, block = seen.index, seen.block
        if also is not None:
            also(seen)
        for stream in model.family.streams:
            reach = reach_of(pricing.stats, f"{model.family.blocks}.{index}.{stream.name}")
            _add(
                sums.setdefault(stream.name, _Sums()), stream, block, seen.captured, len(pricing.prefix), reach, inputs
            )
        left -= len(next(iter(seen.captured.outputs.values())))
        if not left:  # the block's last batch; before the next one's first the pass empties it
            yield index, block, _gathered(model, pricing.stats, index, block, sums)
            sums, left = {}, windows


def _labels(pricing: Pricing) -> Objective:
    return draw_labels(pricing.seed, pricing.first)


_PASS = backward(_labels, whole=True)


def _add(
    sums: _Sums,
    stream: Stream,
    block: nn.Module,
    captured: Captured,
    first: int,
    reach: Tensor,
    inputs: Sequence[TensorScheme | None],
) -> None:
    """Add what one batch showed of a stream; tokens in front of ``first`` stay in float and do not count."""
    x = captured.operands[stream.readers[0]][0][:, first:].flatten(0, 1).float()
    gradients = {reader: captured.gradients[reader][:, first:].flatten(0, 1).float() for reader in stream.readers}
    for reader, gradient in gradients.items():
        # mean (g_i · x_j)² over tokens, for all i and j in one product
        sums.moments[reader] = sums.moments.get(reader, 0) + gradient.square().T @ x.square()
    if rounded := [scheme for scheme in inputs if scheme is not None]:
        through = sum(g @ _weight(block, reader).float() for reader, g in gradients.items())
        assert isinstance(through, Tensor)
        sums.sample.append((x[::EVERY].abs(), through[::EVERY].square()))
        for fmt in dict.fromkeys(scheme.number_format for scheme in rounded if not is_tokenwise(scheme)):
            table = tabulate(x, through, reach.to(x.device), fmt) * len(x)
            sums.tables[fmt.name] = sums.tables[fmt.name] + table if fmt.name in sums.tables else table
    sums.tokens += len(x)


def _gathered(
    model: Model, stats: ActivationStats, index: int, block: nn.Module, sums: Mapping[str, _Sums]
) -> dict[str, Sensitivity]:
    sensitivities: dict[str, Sensitivity] = {}
    for stream in model.family.streams:
        seen = sums[stream.name]
        weights = tuple(_weight(block, reader).float() for reader in stream.readers)
        reach = reach_of(stats, f"{model.family.blocks}.{index}.{stream.name}").to(weights[0].device)
        tables = {name: table / seen.tokens for name, table in seen.tables.items()}
        columns = [torch.cat(parts) for parts in zip(*seen.sample, strict=True)] or [torch.zeros(0, len(reach))] * 2
        sample = columns[0], columns[1] / max(1, len(columns[1]))
        moments = tuple(seen.moments[reader] / seen.tokens for reader in stream.readers)
        made = block.get_submodule(stream.source).get_parameter("weight")
        share = len(reach) // len(made)  # query heads of a value head; 1 anywhere else
        head = model.head_width if share > 1 else 1
        sensitivities[stream.name] = Sensitivity(reach, tables, sample, moments, weights, share, head)
    return sensitivities


def _weight(block: nn.Module, reader: str) -> Tensor:
    return block.get_submodule(reader).get_parameter("weight").detach()

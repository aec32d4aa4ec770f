"""How much of its inputs LLM.int8() leaves in float: the share of columns, measured where the model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from qarat.ground.runtime import Progress, no_progress
from qarat.maths.kernels.reference import outlier_columns
from qarat.model.layers import QuantLinear
from qarat.model.model import Model
from qarat.model.tokens import TokenSet


def measure_float_columns(model: Model, tokens: TokenSet, *, progress: Progress = no_progress) -> Mapping[str, float]:
    """Share of each input's columns that stay in float, mean over windows.

    Args:
        model: Quantized.
        tokens: The report set.
        progress: Called after every block.

    Returns:
        Full site name to share, 0 to 1, of every site whose scheme has outlier columns; empty if none has.
    """
    hidden = model.enter(tokens.batches(model.runtime.batch_tokens))
    counts: dict[str, list[Tensor]] = {}
    for index, block in model.walk():
        with _watched(block, f"{model.family.blocks}.{index}", counts), torch.no_grad():
            for j, states in enumerate(hidden):
                hidden[j] = model.run_block(index, block, states)
        progress("columns", index + 1, model.blocks)
    return {name: float(torch.cat(shares).double().mean()) for name, shares in counts.items()}


@contextmanager
def _watched(block: nn.Module, prefix: str, counts: dict[str, list[Tensor]]) -> Iterator[None]:
    """Count the columns of every such input, (windows, columns) to a share a window, while the context lasts."""

    def see(name: str, threshold: float, _: nn.Module, operands: tuple[Tensor, ...]) -> None:
        columns = outlier_columns(operands[0], threshold).flatten(1)
        counts.setdefault(name, []).append(columns.float().mean(1))

    linears = {name: m for name, m in block.named_modules(prefix=prefix) if isinstance(m, QuantLinear)}
    handles = [
        module.register_forward_pre_hook(partial(see, name, module.scheme.input.outliers))
        for name, module in linears.items()
        if module.scheme.input is not None and module.scheme.input.outliers is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

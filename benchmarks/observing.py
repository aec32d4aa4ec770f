"""Claim: observing a model costs at most 1.15 times its plain forward.

    python benchmarks/observing.py -o result.json

The plain forward is the same walk, block by block, with nothing watched. As in the default calibration set, 16 windows
of 64, a quarter of the windows' elements go into the histograms of magnitudes; beside it stand all of them, as in a set
of 16 windows, and a quarter without the attention operands.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import common
import torch

from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.stages.observe import observe


@torch.no_grad()
def plain_forward(model: Model, tokens: TokenSet) -> None:
    hidden = [model.embed(batch) for batch in tokens.batches(model.runtime.batch_tokens)]
    for index, block in model.walk():
        for j, states in enumerate(hidden):
            hidden[j] = model.run_block(index, block, states)


def main() -> None:
    chosen = common.arguments(__doc__, windows=4)
    with tempfile.TemporaryDirectory() as folder:
        model = common.random_model(Path(folder), chosen)
        tokens = common.random_tokens("calibration", chosen.windows, chosen.length, seed=0)
        rows = min(tokens.windows.numel(), model.runtime.batch_tokens)
        multiply, product_flops = common.matrix_products(model, rows)
        quarter = max(1, chosen.windows // 4)
        timings = common.interleave(
            {
                "products": multiply,
                "plain": lambda: plain_forward(model, tokens),
                "observe": lambda: observe(model, tokens, sampled_windows=quarter),
                "observe, all sampled": lambda: observe(model, tokens),
                "observe, no attention": lambda: observe(model, tokens, attention=False, sampled_windows=quarter),
            },
            chosen.repeats,
        )
    steps = [name for name in timings if name != "products"]
    flops = common.block_flops(model, tokens)
    common.report(
        chosen,
        timings,
        {"products": product_flops} | dict.fromkeys(steps, flops),
        {f"{name} / plain": common.ratio(timings[name], timings["plain"]) for name in steps[1:]},
        target=1.15,
        notes=[
            f"{quarter} of {chosen.windows} windows sampled for the histograms, but for 'all sampled'",
            "weights were in memory before the first round",
        ],
    )


if __name__ == "__main__":
    main()

"""Claim: observing a model costs at most 1.15 times its plain forward.

    python benchmarks/observing.py -o result.json

The plain forward is the same walk, block by block, with nothing watched and the fused attention kernel. With the
default of four windows every window's elements go into the histograms of magnitudes; a calibration set of 64 windows
samples 16 of them, so this is the dear end.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import common
import torch

from qarat.data import TokenSet
from qarat.models import Model
from qarat.observation import observe


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
        stats = observe(model, tokens)
        timings = common.interleave(
            {
                "products": multiply,
                "plain": lambda: plain_forward(model, tokens),
                "observe": lambda: observe(model, tokens),
                "observe without attention": lambda: observe(model, tokens, attention=False),
            },
            chosen.repeats,
        )
    flops = common.block_flops(model, tokens)
    names = ("observe", "observe without attention")
    common.report(
        chosen,
        timings,
        {"products": product_flops, "plain": flops} | dict.fromkeys(names, flops),
        {f"{name} / plain": common.ratio(timings[name], timings["plain"]) for name in names},
        target=1.15,
        notes=[
            f"{stats.sampled_windows} of {stats.windows} windows were sampled for the histograms",
            "weights were in memory before the first round",
        ],
    )


if __name__ == "__main__":
    main()

"""Claim: perplexity of an INT8 plan takes at most 1.5 times float's, both in float32.

    python benchmarks/perplexity.py -o result.json

The plan is the default low scheme at every projection. Its weights are quantized once, when a block is first brought
in; that is timed by itself, and the claim is given without and with it. It does not grow with the tokens.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import common

from qarat.model.model import Model
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.observe import observe
from qarat.stages.quantize import quantize
from qarat.values.plans import assign
from qarat.values.schemes import LOW

REPORT_TOKENS = 256 * 512  # of the default report set


def main() -> None:
    chosen = common.arguments(__doc__, windows=8)
    with tempfile.TemporaryDirectory() as folder:
        model = common.random_model(Path(folder), chosen)
        stats = observe(model, common.random_tokens("calibration", 1, chosen.length, seed=0), attention=False)
        tokens = common.random_tokens("report", chosen.windows, chosen.length, seed=1)
        plan = assign(model.fingerprint, model.source_bits, model.sites(), LOW)

        def convert() -> Model:
            quantized = quantize(model, plan, stats)
            for _ in quantized.walk():
                pass
            return quantized

        quantized = convert()
        rows = min(tokens.windows.numel(), model.runtime.batch_tokens)
        multiply, product_flops = common.matrix_products(model, rows)
        timings = common.interleave(
            {
                "products": multiply,
                "float": lambda: measure_perplexity(model, tokens, label="float"),
                "int8": lambda: measure_perplexity(quantized, tokens, label="int8"),
                "conversion": convert,
            },
            chosen.repeats,
        )
    both = common.Timing(
        [a + b for a, b in zip(timings["int8"].wall, timings["conversion"].wall, strict=True)],
        [a + b for a, b in zip(timings["int8"].cpu, timings["conversion"].cpu, strict=True)],
    )
    passes = common.ratio(timings["int8"], timings["float"])
    converting = common.ratio(timings["conversion"], timings["float"])
    worth = converting.cpu * tokens.windows.numel()
    flops = common.block_flops(model, tokens) + common.head_flops(tokens)
    common.report(
        chosen,
        timings,
        {"products": product_flops, "float": flops, "int8": flops},
        {
            "int8 / float": passes,
            "(int8 + conversion) / float": common.ratio(both, timings["float"]),
            "conversion / float": converting,
        },
        target=1.5,
        notes=[
            f"conversion, {statistics.median(timings['conversion'].cpu):.2f} s, is a float pass of {worth:.0f} tokens",
            f"on the default report set of {REPORT_TOKENS} tokens it adds {worth / REPORT_TOKENS:.3f} to the ratio",
            f"plan: {LOW} at every projection; weights were in memory before the first round",
        ],
    )


if __name__ == "__main__":
    main()

"""What chooses the 1 % of weights that stay in float16: GWQ's gradients, magnitude or chance; int3/g128 beside it.

    python benchmarks/gwq_order.py py-64

Nats per token over float on the report windows, and the paired difference to the gradients' choice, ± one standard
error.
"""

from __future__ import annotations

import argparse

import torch

from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.quantize import quantize
from qarat.stages.rounding import gwq
from qarat.values.plans import assign
from qarat.values.records.scores import paired_difference

GWQ, LARGEST, NONE = "int3/g128/sparse-1/round-gwq", "int3/g128/sparse-1", "int3/g128"


def main() -> None:
    """Measure each choice on the same windows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--windows", type=int, default=16)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model = open_model(chosen.model)
    calibration, _, report = load_token_sets(model, samples=chosen.windows, report_samples=chosen.windows)
    base = measure_perplexity(model, report, label="float")
    by_gradient, highest = None, gwq.highest
    for name, weight in (("gradient", GWQ), ("magnitude", LARGEST), ("none", NONE), ("chance", GWQ), ("chance", GWQ)):
        if name == "chance":
            gwq.highest = lambda scores, count: highest(torch.rand(scores.shape), count)
        plan = assign(model.fingerprint, model.source_bits, model.sites(), f"w={weight}")
        low = measure_perplexity(quantize(model, plan, calibration=calibration), report, label=name)
        by_gradient = by_gradient or low
        lost, more = paired_difference(low, base), paired_difference(low, by_gradient)
        print(f"{name:<10} {lost.nats:+.4f} ± {lost.standard_error:.4f}  {more.nats:+.4f} ± {more.standard_error:.4f}")


if __name__ == "__main__":
    main()

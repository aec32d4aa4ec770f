"""What tuning buys: losses on the report windows before and after, of plans that keep some projections in float.

    python benchmarks/tuning.py py-64 --low w=int3/g32 --set "*.down: float" --steps 20 50

Nats per token over float, ± one standard error over windows, and the paired difference to the plan without tuning.
Adam's steps are taken on calibration windows.
"""

from __future__ import annotations

import argparse
import time

import torch

from qarat.ground.runtime import Runtime
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.quantize import quantize
from qarat.stages.tuning import tune
from qarat.values.plans import assign
from qarat.values.records.scores import Evaluation, paired_difference


def main() -> None:
    """One plan, tuned for several numbers of steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--low", default="w=int3/g32")
    parser.add_argument("--set", action="append", default=[], help="PATTERN: SCHEME")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--samples", type=int, default=64, help="calibration windows")
    parser.add_argument("--report-samples", type=int, default=64)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = open_model(asked.model, Runtime(threads=1, dtype="float32"))
    calibration, _, report = load_token_sets(model, samples=asked.samples, report_samples=asked.report_samples)
    rules = [(pattern, scheme.strip()) for pattern, _, scheme in (text.partition(":") for text in asked.set)]
    plan = assign(model.fingerprint, model.source_bits, model.sites(), asked.low, rules)
    small = quantize(model, plan, calibration=calibration)

    def loss(some: Model) -> Evaluation:
        return measure_perplexity(some, report, label="")

    floating, before = loss(model), loss(small)
    first = paired_difference(before, floating)
    print(f"{plan.bits_per_weight():.2f} bits  {first.nats:+.4f} ± {first.standard_error:.4f}", flush=True)
    for steps in asked.steps:
        begun = time.process_time()
        after = loss(tune(model, small, calibration, plan, steps))
        whole, gained = paired_difference(after, floating), paired_difference(after, before)
        print(
            f"{steps} steps  {whole.nats:+.4f} ± {whole.standard_error:.4f}  "
            f"{gained.nats:+.4f} ± {gained.standard_error:.4f}  {time.process_time() - begun:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""What each rounding leaves of a scheme, on the same report windows, and its paired difference to GPTQ.

    python benchmarks/roundings.py py-128 int4/g32 int4/g128 int3/g128
    python benchmarks/roundings.py py-64 int3/g128 int3/g128/sparse-1 kmeans3/channel kmeans3/channel/sparse-0.45

Weights alone are quantized, every projection, inputs in float. Nats per token over float, ± one standard error over
windows; CPU seconds of one thread, the calibration tokens included. Where GPTQ does not round to a scheme (tables of
its own, a sparse part), the difference is to GPTQ in the last scheme before it.
"""

from __future__ import annotations

import argparse
import time

import torch

from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.quantize import quantize
from qarat.stages.rounding import ROUNDINGS, why_not
from qarat.values.parsing import parse_tensor_scheme
from qarat.values.plans import assign
from qarat.values.records.scores import Evaluation

AGAINST = "gptq"


def nats(evaluation: Evaluation) -> torch.Tensor:
    """Nats per token of each window, (windows,) float64."""
    return torch.tensor(evaluation.nats, dtype=torch.float64) / torch.tensor(evaluation.predicted)


def spelled(losses: torch.Tensor) -> str:
    """Mean and standard error."""
    return f"{float(losses.mean()):+.4f} ± {float(losses.std()) / len(losses) ** 0.5:.4f}"


def main() -> None:
    """Every scheme by every rounding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or the name of a reference model")
    parser.add_argument("schemes", nargs="+", help="of weights, without a rounding")
    parser.add_argument("--roundings", nargs="+", default=ROUNDINGS.names(), help="default all")
    parser.add_argument("--calibration", help="text, where the model is not a reference model")
    parser.add_argument("--samples", type=int, default=64, help="calibration windows")
    parser.add_argument("--report-samples", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of windows")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = open_model(asked.model)
    calibration, _, report = load_token_sets(
        model,
        calibration=asked.calibration,
        samples=asked.samples,
        report_samples=asked.report_samples,
        seed=asked.seed,
    )
    floating = nats(measure_perplexity(model, report, label="float"))
    against_losses: torch.Tensor | None = None
    for scheme in asked.schemes:
        for name in sorted(asked.roundings, key=lambda name: name != AGAINST):
            if why_not(parse_tensor_scheme(f"{scheme}/round-{name}", "w")):
                continue
            begun = time.process_time()
            plan = assign(model.fingerprint, model.source_bits, model.sites(), f"w={scheme}/round-{name}")
            small = quantize(model, plan, calibration=calibration)
            losses = nats(measure_perplexity(small, report, label=name)) - floating
            against_losses = losses if name == AGAINST else against_losses
            paired = "" if against_losses is None else f"   against {AGAINST} {spelled(losses - against_losses)}"
            seconds, bits = time.process_time() - begun, plan.bits_per_weight()
            print(f"{scheme:28s} {name:14s} {bits:.3f} bits  {spelled(losses)}  {seconds:5.1f} s{paired}", flush=True)


if __name__ == "__main__":
    main()

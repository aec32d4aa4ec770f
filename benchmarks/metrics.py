"""Claim: of the damage metrics, fisher ranks sites as well as the divergence measured at each, and its nats are nats.

    python benchmarks/metrics.py py-128 reference/models/py-64 -o result.json

Every projection is put in the low scheme alone and its loss measured on the selection tokens; every metric prices it on
the same tokens. Measured losses of single sites are small beside what the text's own tokens add by chance, so that even
`kl`, which is no prediction, does not rank them fully: ranks are compared with it too. A few random sets of sites are
measured besides: what a power law of the predicted sum leaves of them.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path
from typing import Any

import common
import msgspec
import torch
from scipy.stats import spearmanr

from qarat.ground.runtime import Runtime
from qarat.jobs.bench import make_meter
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.stages import prices as damage
from qarat.stages.prices.checking import check, fit_correction, measure_sites
from qarat.stages.prices.pricing import price
from qarat.values.parsing import parse_scheme
from qarat.values.plans import Plan, assign
from qarat.values.records.prices import NATS, MetricCheck
from qarat.values.records.scores import paired_difference

SHARES = (0.25, 0.25, 0.5, 0.5, 0.75, 0.75)  # of the sites that a random set puts in the low scheme


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--scheme", default="w=mxint4 a=mxint4")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="write the JSON here too")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    result = {
        "models": {name: compare(name, chosen) for name in chosen.models},
        "settings": {key: value for key, value in vars(chosen).items() if key not in ("models", "output")},
        "machine": common.machine(),
    }
    common.emit(result, chosen.output)


def compare(name: str, chosen: argparse.Namespace) -> dict[str, object]:
    """Every metric's figures on one model, and the losses they are held against."""
    model = open_model(name, Runtime(threads=chosen.threads))
    _, tokens, _ = load_token_sets(model, samples=chosen.windows, seed=chosen.seed)
    scheme = parse_scheme(chosen.scheme)
    plan = assign(model.fingerprint, model.source_bits, model.sites(), "float")
    meter = make_meter(model, tokens, None)
    seconds: dict[str, float] = {}
    begun = time.process_time()
    measured = measure_sites(plan, scheme, meter.measure)
    seconds["measuring"] = time.process_time() - begun
    sets = random_sets(plan, chosen.seed)
    float_loss = meter.measure(plan, "float")
    losses = [
        paired_difference(meter.measure(plan.with_schemes(dict.fromkeys(low, scheme), "low"), "set"), float_loss).nats
        for low in sets
    ]
    damages: dict[str, dict[str, float]] = {}
    metrics: dict[str, dict[str, object]] = {}
    for metric in damage.METRICS.names():
        begun = time.process_time()
        menu = price(model, tokens, [scheme], metric=metric, seed=chosen.seed)
        seconds[metric] = time.process_time() - begun
        damages[metric] = menu.damages(str(scheme))
        sums = [math.fsum(damages[metric][site] for site in low) for low in sets]
        fit = fit_correction(zip(sums, losses, strict=True))
        metrics[metric] = figures(check(menu, measured)) | {"correction": msgspec.structs.asdict(fit)}
    for metric, prices in damages.items():
        together = [(price, damages["kl"][site]) for site, price in prices.items()]
        spearman: Any = spearmanr(together)
        metrics[metric]["rank_correlation_with_kl"] = float(spearman.statistic)
    return {
        "windows": f"{len(tokens)} of {tokens.length} tokens",
        "metrics": metrics,
        "measured_alone": {t.sites[0]: (t.damage.nats, t.damage.standard_error) for t in measured.alone},
        "measured_together": msgspec.structs.asdict(measured.joint.damage),
        "random_sets": [{"sites": len(low), "loss": loss} for low, loss in zip(sets, losses, strict=True)],
        "cpu_seconds": seconds,
    }


def figures(found: MetricCheck) -> dict[str, object]:
    return {
        "unit": found.unit,
        "rank_correlation": found.rank_correlation,
        "slope": found.slope,
        "predicted_sum": found.predicted_sum,
        "measured_sum": found.measured_sum,
        "predicted_by_measured_sum": found.calibration if found.unit == NATS else None,
        "predicted_by_measured_together": found.joint_calibration if found.unit == NATS else None,
        "predicted": {s.site: s.predicted for s in found.sites},
    }


def random_sets(plan: Plan, seed: int) -> list[list[str]]:
    """Sets of projections, of several sizes."""
    sites = [s.name for s in plan.sites if s.kind == "projection"]
    generator = random.Random(seed)
    return [generator.sample(sites, round(share * len(sites))) for share in SHARES]


if __name__ == "__main__":
    main()

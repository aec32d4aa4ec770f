"""Claim: no low scheme loses more on a model that was rewritten for it than on the model as it is.

    .venv/bin/python benchmarks/never_worse.py py-64 py-96 py-128 -o never_worse.json

Every projection low, nothing protected, on the model as it is and on the rewritten one, on the same report windows. A
scheme is worse where the paired difference is above zero by more than two standard errors. Where `qarat run` would
rewrite nothing, that is said; with ``--all`` it is rewritten and measured all the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import common

from qarat.ground.runtime import Runtime
from qarat.jobs.protecting import naive_plan, profile
from qarat.jobs.rewriting import fit_rewrites, pays, reaching, refusal
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.quantize import quantize
from qarat.stages.transforms import parse_transform
from qarat.stages.transforms.rewrite import columns_for
from qarat.values.records.scores import paired_difference
from qarat.values.requests.protect import ProtectRequest

SCHEMES = (
    "w=int8/channel a=int8/tensor/static",
    "w=int6/channel a=int6/tensor/static",
    "w=int8/channel a=int8/token",
    "w=int6/channel a=int6/token",
    "w=int8/channel",
    "w=int4/g32",
    "w=e4m3/channel a=e4m3/token",
)
CLEAR = 2.0  # standard errors


def compare(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Nats per token that each scheme costs a model as it is, and what rewriting takes of them."""
    model = open_model(name, Runtime(threads=asked.threads)).unkept()
    calibration, selection, report = load_token_sets(model, samples=asked.samples, report_samples=asked.report_samples)
    plain = measure_perplexity(model, report, label="float")
    columns = columns_for(model)
    seen = profile(model, calibration, attention=False)
    found: dict[str, Any] = {}
    for low in SCHEMES:
        if why := refusal(model, low):
            found[low] = {"not rewritten": why}
            continue
        fitted = fit_rewrites(model, selection, seen, reaching(low), columns=columns)
        if not pays(fitted) and not asked.all:
            found[low] = {"left alone": {"predicted as it is": fitted.naive, "rewritten": fitted.damage(columns)}}
            continue
        rewritten = parse_transform(f"rewrite/{columns}").apply(model, fitted).unkept()
        losses = []
        for changed, spelled in ((model, low), (rewritten, reaching(low))):
            stats = seen if changed is model else profile(changed, calibration, attention=False)
            plan = naive_plan(changed, ProtectRequest(low=spelled), stats)
            losses.append(measure_perplexity(quantize(changed, plan, stats), report, label="low"))
        as_it_is, after = losses
        gain = paired_difference(after, as_it_is)
        found[low] = {
            "as it is": paired_difference(as_it_is, plain).nats,
            "rewritten": paired_difference(after, plain).nats,
            "difference": gain.nats,
            "standard error": gain.standard_error,
            "met": gain.nats <= CLEAR * gain.standard_error,
        }
        print(name, low, json.dumps(found[low]), file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders, GGUF files, or reference models' names")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--report-samples", type=int, default=64)
    parser.add_argument("--all", action="store_true", help="rewrite also where it is predicted to buy too little")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="write the JSON here too")
    asked = parser.parse_args()
    found = {name: compare(name, asked) for name in asked.models}
    settings = {key: value for key, value in vars(asked).items() if key != "output"}
    common.emit({"models": found, "settings": settings, "machine": common.machine()}, asked.output)


if __name__ == "__main__":
    main()

"""How much can go low: the largest Q_r within +1, +5, +10 and +20 % perplexity, by format, site by site and by block.

    python benchmarks/reach.py py-128 -o reach.json

Claims of the second founding paper, put to our models: deciding each site reaches further than deciding whole blocks;
and, where the low scheme has static scales per tensor, the search finds without hints the sites that spike rules name.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import common
from search import Subject

from qarat.stages.observe import observe
from qarat.stages.spikes import diagnose
from qarat.surfaces.progress import StageProgress
from qarat.values.parsing import parse_scheme
from qarat.values.records.search import Reached, SearchResult
from qarat.values.schemes import LinearScheme
from qarat.values.sites import short_name

FORMATS = {
    "mxint4": "w=mxint4 a=mxint4",
    "mxfp4": "w=mxfp4 a=mxfp4",
    "e2m1 weights, per channel": "w=e2m1/channel",
    "int4 weights, groups of 128": "w=int4/g128",
    "int8, static per tensor": "w=int8/tensor a=int8/tensor/static",
    "int6, static per tensor": "w=int6/tensor a=int6/tensor/static",
}
BUDGETS = ("ppl+1%", "ppl+5%", "ppl+10%", "ppl+20%")
MOST_NAMED = 8  # units: a plan that keeps more of them high is not about spikes


def reach(bench: Subject, low: str, granularity: str) -> dict[str, Any]:
    """One search: what each budget reaches."""
    bench.low = low
    result = bench.search(0, granularity=granularity, budgets=BUDGETS)
    found: dict[str, Any] = {r.budget: _reached(result, r) for r in result.reached}
    return found | {"cost": result.cost.pricing + result.cost.measuring}


def _reached(result: SearchResult, reached: Reached) -> dict[str, Any]:
    if reached.trial < 0:
        return {"ratio": 0.0, "verdict": reached.verdict}
    loss, trial = result.on_report(reached), result.trials[reached.trial]
    high = [label for label, option in zip(result.units, trial.choice, strict=True) if option]
    return {
        "ratio": trial.ratio,
        "low": reached.low,
        "high": reached.high,
        "report": loss.nats,
        "error": loss.standard_error,
        "kept high": high if len(high) <= MOST_NAMED else len(high),
    }


def flagged(bench: Subject) -> dict[str, list[str]]:
    """The inputs of projections that spike rules name, under INT8, and which rules do."""
    low = parse_scheme(FORMATS["int8, static per tensor"])
    assert isinstance(low, LinearScheme)
    streams = diagnose(observe(bench.model, bench.tokens[0]), low.input)
    return {short_name(s.stream): list(s.flagged_by) for s in streams if s.flagged_by and s.kind.endswith("_in")}


def main() -> None:
    """Search every format, both ways, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or the name of a reference model")
    parser.add_argument("--calibration", help="text, where the model is not a reference model")
    parser.add_argument("--samples", type=int, default=64, help="selection windows")
    parser.add_argument("--report-samples", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    with StageProgress() as bars:
        bench = Subject(asked.model, asked, bars)
        found = {
            name: {granularity: reach(bench, low, granularity) for granularity in ("matmul", "layer")}
            for name, low in FORMATS.items()
        }
        spikes = flagged(bench)
    result = {"model": asked.model, "formats": found, "flagged": spikes, "machine": common.machine()}
    common.emit(result, asked.output)


if __name__ == "__main__":
    main()

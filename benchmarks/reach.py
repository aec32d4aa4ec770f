"""How much can go low: the largest Q_r within +5, +10 and +20 % perplexity, by format, site by site and by block.

    python benchmarks/reach.py py-128 -o reach.json

Claims of the second founding paper, put to our models: deciding each site reaches further than deciding whole blocks;
and, where the low scheme has static scales per tensor, the search finds without hints the sites that spikes make dear.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import common
from search import Bench

from qarat.report.progress import StageProgress
from qarat.searches import Reached, SearchResult

FORMATS = {
    "mxint4": "w=mxint4 a=mxint4",
    "mxfp4": "w=mxfp4 a=mxfp4",
    "e2m1 weights, per channel": "w=e2m1/channel",
    "int4 weights, groups of 128": "w=int4/g128",
    "int8, static per tensor": "w=int8/tensor a=int8/tensor/static",
    "int6, static per tensor": "w=int6/tensor a=int6/tensor/static",
}
BUDGETS = ("ppl+5%", "ppl+10%", "ppl+20%")


def reach(bench: Bench, low: str, granularity: str) -> dict[str, Any]:
    """One search: what each budget reaches, and which units the plan of the smallest one keeps high."""
    bench.low = low
    result = bench.search(0, granularity=granularity, budgets=BUDGETS)
    found: dict[str, Any] = {r.budget: _reached(result, r) for r in result.reached}
    first = result.reached[0]
    if first.trial >= 0:
        choice = result.trials[first.trial].choice
        found["kept high"] = [label for label, option in zip(result.units, choice, strict=True) if option]
    found["cost"] = result.cost.pricing + result.cost.measuring
    return found


def _reached(result: SearchResult, reached: Reached) -> dict[str, Any]:
    if reached.trial < 0:
        return {"ratio": 0.0, "verdict": reached.verdict}
    loss = result.on_report(reached)
    ratio = result.trials[reached.trial].ratio
    return {"ratio": ratio, "low": reached.low, "high": reached.high, "report": loss.nats, "error": loss.standard_error}


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
        bench = Bench(asked.model, asked, bars)
        found = {
            name: {granularity: reach(bench, low, granularity) for granularity in ("matmul", "layer")}
            for name, low in FORMATS.items()
        }
    text = json.dumps({"model": asked.model, "formats": found, "machine": common.machine()}, indent=1)
    print(text)
    if asked.output is not None:
        asked.output.write_text(text + "\n")


if __name__ == "__main__":
    main()

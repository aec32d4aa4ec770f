"""The family's table: `python reference/table.py [NAME …] [-o table.json]`.

For every model: shape, tokens, report loss; the three streams with the worst signal-to-noise ratio; and the damage of
INT8 and INT6 (weights per channel, inputs per tensor static) on the report tokens: everything low, with the k dearest
sites by Fisher damage protected, with k random `down_proj` instead (five draws, the mean), and with all `down_proj`.
The k sites are chosen on the selection tokens; k is what the budget of the plan needs, at most three.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import qarat
from qarat.checkpoints import reference_models
from qarat.conversion import build_block
from qarat.evaluation.incremental import Meter
from qarat.plans import short_name
from qarat.schemes import LinearScheme
from qarat.search import make_units, rank_by_damage

LOWS = {"INT8": "w=int8/channel a=int8/tensor/static", "INT6": "w=int6/channel a=int6/tensor/static"}
MOST, DRAWS = 3, 5


def describe(name: str) -> dict[str, object]:
    """One row of the table."""
    model = qarat.open_model(name)
    calibration, selection, report = qarat.load_token_sets(model)
    stats = qarat.observe(model, calibration)
    meter = Meter(model, report, lambda index, schemes: build_block(model, index, schemes, stats))
    row: dict[str, object] = {"model": name, "windows": len(report), "convention": report.convention}
    low = qarat.parse_scheme(LOWS["INT8"])
    assert isinstance(low, LinearScheme)
    inputs = [d for d in qarat.diagnose(stats, low.input) if d.kind.endswith("_in")]
    row["streams"] = [
        {"stream": short_name(d.stream), "r": d.ratio, "max": d.maximum, "snr_db": d.snr_db, "token": d.peak.text}
        for d in inputs[:MOST]
    ]
    for label, spelling in LOWS.items():
        request = qarat.Request(low=spelling)
        menu = qarat.price(model, selection, [qarat.parse_scheme(spelling)], stats)
        plan, sweep = qarat.find_plan(model, request, stats, menu, selection)
        protected = [a.site.name for a in plan.exceptions()]
        count = min(len(protected), MOST)
        ranked = rank_by_damage(make_units(plan.sites, tied=False), menu.damages(plan.low))
        dearest = [site for unit in ranked[:count] for site in unit.sites]
        downs = [s.name for s in plan.sites if s.leaf == "down_proj"]
        naive = plan.with_schemes({s.name: low_of(plan, s.name) for s in plan.sites}, "naive")
        everything = naive.with_schemes({a.site.name: type(a.scheme)() for a in naive.assignments}, "float")
        base = meter.measure(everything, "float")
        row["loss"] = base.loss

        def damage(sites: Sequence[str], naive: qarat.Plan = naive, base: object = base) -> dict[str, float]:
            kept = naive.with_schemes(dict.fromkeys(sites, LinearScheme()), "kept")
            lost = qarat.paired_difference(meter.measure(kept, "kept"), base)
            return {"nats": lost.nats, "standard_error": lost.standard_error}

        draws = [damage(random.Random(seed).sample(sorted(set(downs) - set(dearest)), count)) for seed in range(DRAWS)]
        row[label] = {
            "protected": [short_name(s) for s in dearest],
            "naive": damage([]),
            "planned": damage(dearest),
            "random_down": [d["nats"] for d in draws],
            "all_down": damage(downs),
            "verdict": sweep.verdict,
        }
    return row


def low_of(plan: qarat.Plan, name: str) -> object:
    """The low scheme of a projection, float of an attention product."""
    return qarat.parse_scheme(plan.low) if isinstance(plan[name], LinearScheme) else plan[name]


def main() -> None:
    """Describe the models and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", default=list(reference_models()))
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.names:
        rows.append(describe(name))
        print(json.dumps(rows[-1], indent=1), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The family's table: `python reference/table.py [NAME …]` measures models and writes `cards/NAME.json`.

For every model: report loss and code continuation; the three inputs of projections with the worst signal-to-noise
ratio; and the damage of INT8 and INT6 (weights per channel, inputs per tensor static) on the report tokens: everything
low; with the k dearest sites by Fisher damage in float; with k random other `down_proj` instead, five draws; with all
`down_proj` in float. The order and k (at most three: the first whose 95 % interval leaves at most a fifth) come from
the selection tokens, under INT8, and hold for INT6 too. `cards.py` writes the model cards from what this has measured.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import qarat
from qarat.checkpoints import reference_models
from qarat.conversion import build_block
from qarat.evaluation.incremental import Meter
from qarat.evaluation.zero_shot import measure_tasks
from qarat.planning import naive_plan
from qarat.plans import short_name
from qarat.records import Difference
from qarat.schemes import LinearScheme
from qarat.search.space import make_units
from qarat.search.sweep import rank_by_damage
from qarat.workspace import Runtime

CARDS = Path(__file__).parent / "cards"
LOWS = {"INT8": "w=int8/channel a=int8/tensor/static", "INT6": "w=int6/channel a=int6/tensor/static"}
MOST, ENOUGH, DRAWS = 3, 0.2, 5


class Bench:
    """A model with everything low that is not named; measured against float on a token set."""

    def __init__(self, model: qarat.Model, stats: qarat.ActivationStats, low: str, tokens: qarat.TokenSet) -> None:
        self.naive = naive_plan(model, qarat.Request(low=low), stats)
        self.meter = Meter(model, tokens, lambda index, schemes: build_block(model, index, schemes, stats))
        self.float = self.meter.measure(self._keeping([s.name for s in self.naive.sites]), "float")

    def damage(self, kept: Sequence[str]) -> Difference:
        """Loss over float with these sites in float and the others low."""
        return qarat.paired_difference(self.meter.measure(self._keeping(kept), "kept"), self.float)

    def _keeping(self, sites: Sequence[str]) -> qarat.Plan:
        projections = [s for s in sites if isinstance(self.naive[s], LinearScheme)]
        return self.naive.with_schemes(dict.fromkeys(projections, LinearScheme()), "kept")


def measure(
    name: str, threads: int, *, samples: int = 64, report_samples: int = 256, questions: int | None = None
) -> dict[str, object]:
    """One row of the table.

    Args:
        name: Of a reference model.
        threads: To compute with.
        samples: At most so many calibration windows, and selection windows.
        report_samples: At most so many report windows.
        questions: So many of code continuation; None for all.
    """
    model = qarat.open_model(name, Runtime(threads=threads))
    calibration, selection, report = qarat.load_token_sets(model, samples=samples, report_samples=report_samples)
    stats = qarat.observe(model, calibration)
    low = qarat.parse_scheme(LOWS["INT8"])
    assert isinstance(low, LinearScheme)
    streams = [d for d in qarat.diagnose(stats, low.input) if d.kind.endswith("_in")][:MOST]

    chooser = Bench(model, stats, LOWS["INT8"], selection)
    damages = qarat.price(model, selection, [low], stats).damages(LOWS["INT8"])
    ranked = [
        site for unit in rank_by_damage(make_units(chooser.naive.sites, tied=False), damages) for site in unit.sites
    ]
    enough = ENOUGH * chooser.damage([]).nats
    count = next((k for k in range(1, MOST) if chooser.damage(ranked[:k]).interval[1] <= enough), MOST)
    dearest = ranked[:count]
    downs = [s.name for s in chooser.naive.sites if s.leaf == "down_proj"]
    others = sorted(set(downs) - set(dearest))
    draws = random.Random(0).sample(list(combinations(others, count)), DRAWS)

    row: dict[str, object] = {
        "model": name,
        "windows": len(report),
        "convention": report.convention,
        "streams": [
            {
                "stream": short_name(d.stream),
                "r": round(d.ratio, 1),
                "maximum": round(d.maximum, 1),
                "snr_db": round(d.snr_db, 1),
                "token": d.peak.text,
                "position": d.peak.position,
                "channel": d.peak.channel,
                "flagged_by": list(d.flagged_by),
            }
            for d in streams
        ],
        "protected": [short_name(site) for site in dearest],
        "predicted": {short_name(site): damages[site] for site in ranked[: MOST + 1]},
    }
    for label, spelling in LOWS.items():
        bench = Bench(model, stats, spelling, report)
        row["loss"], row["perplexity"] = bench.float.loss, bench.float.perplexity
        row[label] = {
            "naive": _pair(bench.damage([])),
            "protected": _pair(bench.damage(dearest)),
            "random": [_pair(bench.damage(draw)) for draw in draws],
            "all_down": _pair(bench.damage(downs)),
        }
    (score,) = measure_tasks(model, ["code_continuation"], label="float", limit=questions).scores
    row["code_continuation"] = {"accuracy": score.value, "error": score.standard_error, "questions": len(score.items)}
    return row


def _pair(difference: Difference) -> dict[str, float]:
    return {"nats": difference.nats, "error": difference.standard_error}


def format_table(rows: Sequence[dict]) -> list[str]:
    """The family's table in Markdown."""
    columns = ["model", "loss", "worst streams: r, SNR (dB), maximum", ""]
    columns += ["naive", "protected", "random `down_proj`", "all `down_proj`"]
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    for row in rows:
        streams = "; ".join(f"{s['stream']} {s['r']}, {s['snr_db']}, {s['maximum']}" for s in row["streams"])
        for label in LOWS:
            d = row[label]
            drawn = [x["nats"] for x in d["random"]]
            lines.append(
                f"| {row['model']} | {row['loss']:.3f} | {streams} | {label} | {format_damage(d['naive'])} | "
                f"{', '.join(row['protected'])}: {format_damage(d['protected'])} | "
                f"{min(drawn):+.4f} to {max(drawn):+.4f} | {format_damage(d['all_down'])} |"
            )
    return lines


def format_damage(pair: dict[str, float]) -> str:
    return f"{pair['nats']:+.4f} ± {pair['error']:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", default=list(reference_models()))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    CARDS.mkdir(exist_ok=True)
    for name in arguments.names:
        print(f"measuring {name} ...", flush=True)
        row = measure(name, arguments.threads)
        (CARDS / f"{name}.json").write_text(json.dumps(row, indent=1, ensure_ascii=False) + "\n")
        print("\n".join(format_table([row])), flush=True)


if __name__ == "__main__":
    main()

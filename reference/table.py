"""The family's table: `python reference/table.py [NAME …]` measures models and writes `cards/NAME.json`.

For every model: report loss and code continuation; the three inputs of projections with the worst signal-to-noise
ratio; and the damage of INT8 and INT6 (weights per channel, inputs per tensor static) on the report tokens: everything
low; with the k dearest sites by Fisher damage in float; with k random other `down_proj` instead, five draws; with all
`down_proj` in float. The order and k (at most three: the first whose 95 % interval leaves at most a fifth) come from
the selection tokens, under INT8, and hold for INT6 too. `cards.py` writes the model cards from what this has measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import qarat
from qarat.ground.runtime import Runtime
from qarat.jobs.protecting import naive_plan
from qarat.model.reference_models import reference_models
from qarat.stages.choose.protect import rank_by_damage
from qarat.stages.measure.meter import Meter
from qarat.stages.measure.tasks.zero_shot import measure_tasks
from qarat.stages.quantize import build_block
from qarat.stages.spikes import Diagnosis
from qarat.values.records.origin import Difference
from qarat.values.schemes import LinearScheme
from qarat.values.sites import short_name
from qarat.values.units import make_units

CARDS = Path(__file__).parent / "cards"
LOWS = {"INT8": "w=int8/channel a=int8/tensor/static", "INT6": "w=int6/channel a=int6/tensor/static"}
MOST, ENOUGH, DRAWS = 3, 0.2, 5


class Bench:
    """A model with everything low that is not named; measured against float on a token set."""

    def __init__(self, model: qarat.Model, stats: qarat.ActivationStats, low: str, tokens: qarat.TokenSet) -> None:
        self.naive = naive_plan(model, qarat.ProtectRequest(low=low), stats)
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
    dearest, predicted = choose(model, stats, low, selection)

    row: dict[str, object] = {
        "model": name,
        "weights_sha256": hashlib.sha256((model.folder / "model.safetensors").read_bytes()).hexdigest(),
        "windows": len(report),
        "convention": report.convention,
        "streams": [_stream(diagnosis) for diagnosis in streams],
        "protected": [short_name(site) for site in dearest],
        "predicted": {short_name(site): nats for site, nats in predicted.items()},
    }
    for label, spelling in LOWS.items():
        bench = Bench(model, stats, spelling, report)
        downs = [s.name for s in bench.naive.sites if s.leaf == "down_proj"]
        others = sorted(set(downs) - set(dearest))
        draws = random.Random(0).sample(list(combinations(others, len(dearest))), DRAWS)
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


def choose(
    model: qarat.Model, stats: qarat.ActivationStats, low: LinearScheme, selection: qarat.TokenSet
) -> tuple[list[str], dict[str, float]]:
    """The sites to protect, dearest first; and what these and the next ones were predicted to cost, nats."""
    bench = Bench(model, stats, LOWS["INT8"], selection)
    damages = qarat.price(model, selection, [low], stats).damages(LOWS["INT8"])
    ranked = [
        site for unit in rank_by_damage(make_units(bench.naive.sites, tied=False), damages) for site in unit.sites
    ]
    enough = ENOUGH * bench.damage([]).nats
    count = next((k for k in range(1, MOST) if bench.damage(ranked[:k]).interval[1] <= enough), MOST)
    return ranked[:count], {site: damages[site] for site in ranked[: MOST + 1]}


def _stream(d: Diagnosis) -> dict[str, object]:
    return {
        "stream": short_name(d.stream),
        "r": round(d.ratio, 1),
        "maximum": round(d.maximum, 1),
        "snr_db": round(d.snr_db, 1),
        "token": d.peak.text,
        "position": d.peak.position,
        "channel": d.peak.channel,
        "flagged_by": list(d.flagged_by),
    }


def _pair(difference: Difference) -> dict[str, float]:
    return {"nats": difference.nats, "error": difference.standard_error}


def format_table(models: Sequence[tuple[dict, dict]]) -> list[str]:
    """The family's table in Markdown, a column a model: of each, what training recorded and what was measured."""
    columns = [_column(record, row) for record, row in models]
    lines = [" | ".join([label, *(column[label] for column in columns)]) for label in columns[0]]
    return [f"| {lines[0]} |", "|" + " --- |" * (1 + len(columns)), *(f"| {line} |" for line in lines[1:])]


def _column(record: dict, row: dict) -> dict[str, str]:
    cells = {
        "": row["model"],
        "parameters outside embedding and head": f"{record['parameters_outside_embedding']:,}",
        "tokens": f"{record['tokens']:,}",
        "report perplexity": f"{row['perplexity']:.2f}",
    }
    for place, s in zip(("worst", "second", "third"), row["streams"], strict=True):
        cells[f"{place} stream: r, SNR, maximum"] = f"`{s['stream']}`: {s['r']}, {s['snr_db']} dB, {s['maximum']}"
    cells["protected"] = ", ".join(f"`{site}`" for site in row["protected"])
    for low in LOWS:
        damage, drawn = row[low], [pair["nats"] for pair in row[low]["random"]]
        cells[f"{low}, naive"] = format_damage(damage["naive"])
        cells[f"{low}, protected"] = format_damage(damage["protected"])
        cells[f"{low}, random"] = f"{min(drawn):+.4f} to {max(drawn):+.4f}"
        cells[f"{low}, all `down_proj`"] = format_damage(damage["all_down"])
    cells["weights, sha256"] = f"`{record['weights_sha256'][:16]}`"
    cells["hours, threads"] = f"{record['hours']:.2f}, {record['threads']}"
    return cells


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
        record = json.loads((reference_models()[name] / "training.json").read_text())
        print("\n".join(format_table([(record, row)])), flush=True)


if __name__ == "__main__":
    main()

"""Activation stats: where a scale shared by all tokens starves the ordinary ones."""

from __future__ import annotations

import math
from collections.abc import Iterable

from qarat.stages.spikes import RULES, Diagnosis, SpikeVerdict, diagnose, find_spikes
from qarat.surfaces.tables.data import DataTable, Marked, Parts, dim, marked, numbers, table, texts, title
from qarat.surfaces.tables.wording import GAP, count, fixed
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import TensorScheme
from qarat.values.sites import short_name

ROWS = 10  # of the ranking; what is left out is said below it
NAMES = 6  # streams named in one cell


def show_stats(record: ActivationStats, *, low: TensorScheme | None) -> Parts:
    """The streams the low scheme would hurt most, and what each spike rule says of them."""
    diagnoses = diagnose(record, low)
    inputs = [d for d in diagnoses if d.kind.endswith("_in")]
    observed = [d for d in diagnoses if not d.kind.endswith("_in") and d.flagged_by]
    shown = inputs[:ROWS] + observed[:ROWS]
    hidden = sum(bool(d.flagged_by) for d in diagnoses) - sum(bool(d.flagged_by) for d in shown)
    scheme = f"low input {low.spell('a')}" if low else "the low scheme leaves inputs in float"
    left_out = f"{GAP}without the first {count(len(record.prefix), 'token')} of a window" if record.prefix else ""
    yield title("activations", record.provenance.model, f"{record.windows} windows × {record.length} tokens")
    yield dim(f"{record.provenance.convention}{GAP}{scheme}{left_out}")
    yield from ("", _streams(shown), "")
    more = f"; {hidden} more are flagged, see the rules" if hidden else ""
    yield dim(f"{len(shown)} of {len(diagnoses)} streams{more}")
    yield from ("", _rules(find_spikes(record, rule, low) for rule in RULES))


def _streams(diagnoses: Iterable[Diagnosis]) -> DataTable:
    sizes, places = numbers("r", "max", "SNR (dB)"), numbers("position", "channel")
    columns = (*texts("stream", wrap=False), *sizes, *texts("at token"), *places, *texts("flagged by"))
    rows = (
        marked(
            (
                short_name(d.stream),
                *(fixed(value, 1) for value in (d.ratio, d.maximum, d.snr_db)),
                _token(d.peak.text),
                str(d.peak.position),
                str(d.peak.channel),
                ", ".join(d.flagged_by),
            ),
            "bold" if d.flagged_by else "",
        )
        for d in diagnoses
    )
    return table(columns, rows)


def _token(text: str) -> str:
    quoted = repr(text)
    return quoted if len(quoted) <= 18 else f"{quoted[:17]}…"


def _rules(verdicts: Iterable[SpikeVerdict]) -> DataTable:
    columns = (*texts("rule", wrap=False), *texts("flags", "margin"), *texts("asks", style="dim"))
    return table(columns, ((v.rule, _flags(v), _margin(v), v.statement) for v in verdicts))


def _flags(verdict: SpikeVerdict) -> str:
    names = [short_name(name) for name in verdict.flagged]
    more = [f"and {len(names) - NAMES} more"] if len(names) > NAMES else []
    return Marked(", ".join(names[:NAMES] + more), "bold") if names else "none"


def _margin(verdict: SpikeVerdict) -> str:
    decibel = verdict.rule == "snr"
    if math.isnan(verdict.margin):
        return "n/a"
    if verdict.flagged and verdict.margin < (0 if decibel else 1):
        return "nothing else to compare with"
    size = fixed(verdict.margin, 1) + (" dB" if decibel else " times")
    return f"{size} to the next" if verdict.flagged else f"{size} to the limit"

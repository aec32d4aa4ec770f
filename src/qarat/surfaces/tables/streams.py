"""Activation stats as tables: where a scale shared by all tokens starves the ordinary ones."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.text import Text

from qarat.stages.spikes import RULES, Diagnosis, SpikeVerdict, diagnose, find_spikes
from qarat.surfaces.tables.layout import GAP, cells, count, fixed, label, number, table, title, words
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import TensorScheme
from qarat.values.sites import short_name

ROWS = 10  # of the ranking; what is left out is said below it
NAMES = 6  # streams named in one cell


def show_stats(record: ActivationStats, *, low: TensorScheme | None) -> RenderableType:
    """The streams the low scheme would hurt most, and what each spike rule says of them."""
    rows = diagnose(record, low)
    inputs = [d for d in rows if d.kind.endswith("_in")]
    observed = [d for d in rows if not d.kind.endswith("_in") and d.flagged_by]
    shown = inputs[:ROWS] + observed[:ROWS]
    hidden = sum(bool(d.flagged_by) for d in rows) - sum(bool(d.flagged_by) for d in shown)
    scheme = f"low input {low.spell('a')}" if low else "the low scheme leaves inputs in float"
    left_out = f"{GAP}without the first {count(len(record.prefix), 'token')} of a window" if record.prefix else ""
    counts = f"{len(shown)} of {len(rows)} streams"
    if hidden:
        counts += f"; {hidden} more are flagged, see the rules"
    return Group(
        title("activations", record.provenance.model, f"{record.windows} windows × {record.length} tokens"),
        words(f"{record.provenance.convention}{GAP}{scheme}{left_out}", "dim"),
        Text(),
        _streams(shown),
        Text(),
        words(counts, "dim"),
        Text(),
        _rules(find_spikes(record, rule, low) for rule in RULES),
    )


def _streams(rows: Iterable[Diagnosis]) -> RenderableType:
    out = table(
        label("stream", wrap=False),
        number("r"),
        number("max"),
        number("SNR (dB)"),
        label("at token"),
        number("position"),
        number("channel"),
        label("flagged by"),
    )
    for d in rows:
        cells(
            out,
            short_name(d.stream),
            fixed(d.ratio, 1),
            fixed(d.maximum, 1),
            fixed(d.snr_db, 1),
            _token(d.peak.text),
            str(d.peak.position),
            str(d.peak.channel),
            ", ".join(d.flagged_by),
            style="bold" if d.flagged_by else "",
        )
    return out


def _token(text: str) -> str:
    quoted = repr(text)
    return quoted if len(quoted) <= 18 else f"{quoted[:17]}…"


def _rules(verdicts: Iterable[SpikeVerdict]) -> RenderableType:
    out = table(label("rule", wrap=False), label("flags"), label("margin"), label("asks", style="dim"))
    for verdict in verdicts:
        names = [short_name(name) for name in verdict.flagged]
        more = [f"and {len(names) - NAMES} more"] if len(names) > NAMES else []
        flags = ", ".join(names[:NAMES] + more) or "none"
        cells(out, verdict.rule, words(flags, "bold" if names else ""), _margin(verdict), verdict.statement)
    return out


def _margin(verdict: SpikeVerdict) -> str:
    decibel = verdict.rule == "snr"
    if math.isnan(verdict.margin):
        return "n/a"
    if verdict.flagged and verdict.margin < (0 if decibel else 1):
        return "nothing else to compare with"
    size = fixed(verdict.margin, 1) + (" dB" if decibel else " times")
    return f"{size} to the next" if verdict.flagged else f"{size} to the limit"

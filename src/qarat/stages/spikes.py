"""Spikes: what the stats say about where a scale shared by all tokens starves the ordinary ones. Pure.

The rules *diagnose*, side by side; none of them decides: magnitudes rank the lesser of two spikes
first, and what decides is damage. Each rule says which streams it flags, its statistic, and the margin to the next
stream, so that a reader sees how clear the case is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import msgspec
import torch

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.values.records.streams import ActivationStats, Peak, StreamStats
from qarat.values.roles import INPUTS, Role
from qarat.values.schemes import Granularity, TensorScheme
from qarat.values.sites import Site

# PrefixQuant (arXiv 2410.05265) calls a token an outlier when its maximum is 64 times the median.
RATIO_LIMIT = 64.0
# Noise above a sixteenth of the signal: 8 bits behave like 2. Ordinary streams of small LLaMAs keep 20 dB and more.
SNR_LIMIT = 12.0
# Sun et al. 2024 (arXiv 2402.17762): a massive activation exceeds 100 and a thousand times the median magnitude.
MASSIVE_LIMIT, MASSIVE_MEDIANS = 100.0, 1000.0
# Yu et al. 2024 (arXiv 2411.07191) look for super weights where input and output of a down_proj both exceed 50.
SUPER_LIMIT = 50.0
# The gap rule needs a spike at all (r of ordinary streams is below 8) and a gap that is more than the usual scatter.
GAP_FLOOR, GAP_FACTOR = 8.0, 2.0


class Diagnosis(msgspec.Struct, frozen=True):
    """One stream, as the rules see it.

    Attributes:
        stream: Name.
        block: Index of the decoder layer.
        kind: Its role, `qarat.values.roles.Role`.
        ratio: r, a window's largest token over its median token, the mean of the windows.
        maximum: Largest magnitude.
        snr_db: What the median token keeps under the low scheme, in decibel; NaN where the scheme does not reach.
        peak: The largest value, with token, position and channel.
        flagged_by: The rules that flag it.
    """

    stream: str
    block: int
    kind: str
    ratio: float
    maximum: float
    snr_db: float
    peak: Peak
    flagged_by: tuple[str, ...]


class SpikeVerdict(msgspec.Struct, frozen=True):
    """What one rule says of a whole model.

    Attributes:
        rule: Key of `RULES`.
        flagged: Streams, the most extreme first.
        margin: How many times more extreme the last flagged stream is than the first one not flagged (in dB for `snr`);
            where nothing is flagged, how far the most extreme stream stays on the safe side of the limit; NaN where
            there is nothing to compare with.
        statement: The rule in words.
    """

    rule: str
    flagged: tuple[str, ...]
    margin: float
    statement: str


def snr(stream: StreamStats, scheme: TensorScheme) -> float:
    """Signal-to-noise ratio that the median token keeps under a scheme, in decibel.

    The signal is the median token's mean square; the noise a twelfth of the squared step, averaged over a normal
    distribution of that energy. The step follows from the maximum of whatever shares the scale: the whole stream under
    one scale per tensor, the median token otherwise (groups inside a token are not told apart). Infinite where the
    stream is all zeros.
    """
    if stream.median_energy == 0 or stream.maximum == 0:
        return math.inf
    fmt = scheme.number_format
    shared = stream.maximum if scheme.granularity == Granularity() else stream.typical_maximum
    scale = shared / fmt.largest
    # Quantiles of the normal distribution stand for the token's elements.
    normal = torch.erfinv(torch.linspace(-0.999, 0.999, 999, dtype=torch.float64)) * math.sqrt(2 * stream.median_energy)
    table = torch.tensor(fmt.values, dtype=torch.float64)
    above = torch.bucketize(normal / scale, table).clamp(1, len(table) - 1)
    steps = (table[above] - table[above - 1]) * scale
    noise = float((steps.square() / 12).mean())
    return 10 * math.log10(stream.median_energy / noise)


def diagnose(stats: ActivationStats, low: TensorScheme | None) -> tuple[Diagnosis, ...]:
    """Every stream as the rules see it, the worst SNR first.

    Args:
        stats: Of one observing pass.
        low: The low scheme's input; None where the low scheme leaves inputs in float.
    """
    flags: dict[str, list[str]] = {}
    for rule in RULES:
        for name in find_spikes(stats, rule, low).flagged:
            flags.setdefault(name, []).append(rule)
    rows = [
        Diagnosis(
            s.name, s.block, s.kind, s.ratio, s.maximum, _snr_of(s, low), s.peaks[0], tuple(flags.get(s.name, ()))
        )
        for s in stats.streams.values()
    ]
    return tuple(sorted(rows, key=lambda d: (math.isnan(d.snr_db), d.snr_db if d.snr_db == d.snr_db else -d.ratio)))


def find_spikes(stats: ActivationStats, rule: str, low: TensorScheme | None) -> SpikeVerdict:
    """What one rule says.

    Args:
        stats: Of one observing pass.
        rule: Key of `RULES`.
        low: The low scheme's input; None where inputs stay in float.

    Raises:
        UserError: Unknown rule; names the nearest.
    """
    if rule not in RULES:
        raise UserError(f"unknown spike rule {rule!r}; {nearest_names(rule, list(RULES))}")
    return RULES[rule](stats, low)


def sites_of(verdict: SpikeVerdict, sites: Sequence[Site]) -> tuple[Site, ...]:
    """The projections that read the flagged streams, in the verdict's order."""
    return tuple(s for name in verdict.flagged for s in sites if s.kind == "projection" and name in s.streams)


def spiking_front(stats: ActivationStats) -> int:
    """How many positions in front, with those the stats leave out, hold spikes: what a prefix has to cover.

    A spike is a peak above `GAP_FLOOR` times the median token's maximum. Only a stream's largest peaks are kept, so
    where the first position spikes in every window the next ones show in stats that leave it out.
    """
    inputs = _inputs(stats)
    spiking = {p.position for s in inputs for p in s.peaks if abs(p.value) > GAP_FLOOR * s.typical_maximum}
    front = len(stats.prefix)
    while front in spiking:
        front += 1
    return front


def _inputs(stats: ActivationStats) -> list[StreamStats]:
    """The streams that projections read."""
    return [s for s in stats.streams.values() if s.kind in INPUTS]


def _snr_of(stream: StreamStats, low: TensorScheme | None) -> float:
    return snr(stream, low) if low is not None and stream.kind in INPUTS else math.nan


def _above(rule: str, scores: dict[str, float], limit: float, statement: str) -> SpikeVerdict:
    """The streams whose score exceeds a limit, with the margin as a factor."""
    order = sorted(scores, key=lambda name: -scores[name])
    flagged = tuple(name for name in order if scores[name] > limit)
    rest = order[len(flagged) :]
    if not rest:
        margin = math.nan
    elif flagged:
        margin = scores[flagged[-1]] / max(scores[rest[0]], 1e-30)
    else:
        margin = limit / max(scores[rest[0]], 1e-30)
    return SpikeVerdict(rule, flagged, margin, statement)


def _by_snr(stats: ActivationStats, low: TensorScheme | None) -> SpikeVerdict:
    statement = f"the median token keeps less than {SNR_LIMIT:g} dB under the low scheme"
    if low is None:
        return SpikeVerdict("snr", (), math.nan, statement + " (inputs stay in float)")
    scores = {s.name: snr(s, low) for s in _inputs(stats)}
    order = sorted(scores, key=scores.__getitem__)
    flagged = tuple(name for name in order if scores[name] < SNR_LIMIT)
    rest = order[len(flagged) :]
    margin = scores[rest[0]] - (scores[flagged[-1]] if flagged else SNR_LIMIT) if rest else math.nan
    return SpikeVerdict("snr", flagged, margin, statement)


def _by_ratio(stats: ActivationStats, low: TensorScheme | None) -> SpikeVerdict:
    scores = {s.name: s.ratio for s in _inputs(stats)}
    return _above("ratio", scores, RATIO_LIMIT, f"r > {RATIO_LIMIT:g} (PrefixQuant)")


def _by_massive(stats: ActivationStats, low: TensorScheme | None) -> SpikeVerdict:
    # One score for both conditions: how many times over the stricter one.
    scores = {
        s.name: min(s.maximum / MASSIVE_LIMIT, s.maximum / (MASSIVE_MEDIANS * max(s.element_median, 1e-30)))
        for s in stats.streams.values()
        if s.kind == Role.BLOCK_OUTPUT
    }
    return _above("massive", scores, 1.0, "residual stream > 100 and > 1000 medians (massive activations)")


def _by_super_weight(stats: ActivationStats, low: TensorScheme | None) -> SpikeVerdict:
    outputs = {s.block: s.maximum for s in stats.streams.values() if s.kind == Role.DOWN_OUTPUT}
    inputs = [s for s in stats.streams.values() if s.kind == Role.DOWN_INPUT and s.block in outputs]
    scores = {s.name: min(s.maximum, outputs[s.block]) for s in inputs}
    return _above("super-weight", scores, SUPER_LIMIT, "down_proj input and output > 50 (super weights)")


def _by_gap(stats: ActivationStats, low: TensorScheme | None) -> SpikeVerdict:
    ranked = sorted(_inputs(stats), key=lambda s: -s.ratio)
    statement = f"above the largest gap in log r, if it is over {GAP_FACTOR:g} times and r > {GAP_FLOOR:g}"
    gaps = [(a.ratio / max(b.ratio, 1e-30), i + 1) for i, (a, b) in enumerate(pairwise(ranked)) if a.ratio > GAP_FLOOR]
    if not gaps:
        return SpikeVerdict("gap", (), GAP_FLOOR / ranked[0].ratio if ranked else math.nan, statement)
    gap, count = max(gaps)
    if gap < GAP_FACTOR:
        return SpikeVerdict("gap", (), GAP_FACTOR / gap, statement)
    return SpikeVerdict("gap", tuple(s.name for s in ranked[:count]), gap, statement)


RULES: dict[str, Callable[[ActivationStats, TensorScheme | None], SpikeVerdict]] = {
    "snr": _by_snr,
    "ratio": _by_ratio,
    "massive": _by_massive,
    "super-weight": _by_super_weight,
    "gap": _by_gap,
}

"""A stream token by token, and what a grid leaves of its ordinary values when the largest has stretched it.

The profile shows which positions tower over the rest, and how few steps are left to the others. Under the grids,
magnitudes lie along a logarithmic axis, where the steps of an integer crowd at the top and a float's are spread evenly.
So one sees why the one starves the ordinary values and the other does not: what lies left of an integer's first step
becomes zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qarat.stages.spikes import snr
from qarat.surfaces.page.figures.base import Figure, chart, log_ticks
from qarat.surfaces.tables.data import DataTable, numbers, table, texts
from qarat.surfaces.tables.wording import count, fixed
from qarat.values.formats import NumberFormat, format_named
from qarat.values.records.streams import StreamStats
from qarat.values.schemes import Granularity, TensorScheme
from qarat.values.sites import short_name

_MOST = 1024  # positions drawn; in longer windows the largest of several neighbours stands for them


def profile(stream: StreamStats, low: NumberFormat) -> Figure:
    """The mean token-wise maximum at each position, the largest single tokens, and one step of the low format.

    Args:
        stream: With ``position_maxima`` in its arrays.
        low: The format whose step, under one scale for the whole tensor, is drawn.
    """
    maxima: list[float] = stream.arrays["position_maxima"].tolist()
    wide = -(-len(maxima) // _MOST)
    means = [(start, max(maxima[start : start + wide])) for start in range(0, len(maxima), wide)]
    step = stream.maximum / low.largest
    least = min([m for _, m in means if m > 0], default=step)
    under = step <= least  # then the step's name has room below, and none above
    floor = step / 2 if under else least
    shown = _profile_table(stream, means)
    line = [{"position": at, "maximum": max(m, floor)} for at, m in means]
    peaks: list[dict[str, Any]] = [
        {**shown.details(i), "at": p.position, "size": abs(p.value), "name": repr(p.text)}
        for i, p in enumerate(stream.peaks)
    ]
    left = peaks[0]["at"] > len(maxima) / 2  # the largest carries its token, on the side where there is room
    rows = {
        "means": line,
        "peaks": peaks,
        "largest": peaks[:1],
        "step": [{"step": step, "name": f"one {low.name.upper()} step, {step:.2g}"}],
    }
    name, ticks = short_name(stream.name), log_ticks(floor, stream.maximum)
    side, beside = ("right", -10) if left else ("left", 10)
    baseline, below = ("top", 5) if under else ("bottom", -5)
    drawn = chart("profile", shown, rows, ticks=ticks, side=side, beside=beside, baseline=baseline, below=below)
    caption = _profile_caption(stream, step, low)
    return Figure(f"profile-{name.replace('.', '-')}", f"{name}, token by token", caption, drawn, shown)


def _profile_caption(stream: StreamStats, step: float, low: NumberFormat) -> str:
    peak = stream.peaks[0]
    steps = stream.typical_maximum / step
    left = fixed(steps, 0 if steps > 10 else 1)
    return (
        f"Line: each position's largest magnitude, averaged over windows. Dots: the {count(len(stream.peaks), 'token')}"
        f" that reach furthest, up to {fixed(stream.maximum, 1)} at {peak.text!r}. Where that sets the scale of all, "
        f"{low.name.upper()} has {low.largest:.0f} steps up to there, and {left} of them for the median token, which "
        f"reaches {fixed(stream.typical_maximum, 1)}."
    )


def _profile_table(stream: StreamStats, means: list[tuple[int, float]]) -> DataTable:
    columns = (*texts("what"), *numbers("position", "magnitude"), *texts("token"), *numbers("channel", "window"))
    rows = [
        ("largest", str(p.position), fixed(abs(p.value), 2), repr(p.text), str(p.channel), str(p.window))
        for p in stream.peaks
    ]
    rows += [("mean", str(at), fixed(m, 2), "", "", "") for at, m in means]
    return table(columns, rows)


_BARS, _ROW = 150, 40  # pixels: of the histogram, and of each grid above it
_COARSE = 4  # bins of the record in one bar: four bars an octave
_RARE = 1e-4  # share of the values that may lie left of the chart


@dataclass(frozen=True)
class Grid:
    """A format's numbers, laid over a stream by one scale.

    Attributes:
        format: The format.
        shared: Whose maximum sets the scale, in words.
        scale: Factor of the format's values.
        zeros: Share of the stream's values that round to zero.
        snr_db: What the median token keeps.
    """

    format: NumberFormat
    shared: str
    scale: float
    zeros: float
    snr_db: float

    @property
    def smallest(self) -> float:
        """The smallest positive number of the grid."""
        return self.format.values[self.format.zero + 1] * self.scale

    @property
    def name(self) -> str:
        """What stands above its row."""
        return f"{self.format.name.upper()}, {self.shared}: {fixed(100 * self.zeros, 1)} % become zero"


def laid_over(stream: StreamStats, edges: Tensor, formats: Sequence[str]) -> tuple[Grid, ...]:
    """Each format with one scale for all tokens, and the first again with a scale for an ordinary token alone.

    Args:
        stream: With a histogram of magnitudes.
        edges: Of its bins.
        formats: Names; a format reaches the stream's maximum with its largest value.
    """
    laid: list[Grid] = []
    for name, granularity in (*((f, Granularity()) for f in formats), (formats[0], Granularity(1, None))):
        fmt = format_named(name)
        whole = granularity == Granularity()
        scale = (stream.maximum if whole else stream.typical_maximum) / fmt.largest
        zeros = _share_below(stream, edges, fmt.values[fmt.zero + 1] * scale / 2)
        shared = "scaled to the maximum" if whole else "scaled to an ordinary token"
        laid.append(Grid(fmt, shared, scale, zeros, snr(stream, TensorScheme(name, granularity))))
    return tuple(laid)


def grids(stream: StreamStats, edges: Tensor, formats: Sequence[str]) -> Figure:
    """The histogram of a stream's magnitudes under the grids of several formats.

    Args:
        stream: With a histogram of magnitudes.
        edges: Of its bins.
        formats: Names, that of the low scheme first.
    """
    laid, bars = laid_over(stream, edges, formats), _bars(stream, edges)
    left, height = bars[0]["from"], _BARS + _ROW * len(laid)
    starved = {"from": left, "to": laid[0].smallest / 2}  # what the first grid rounds to zero
    rows = {
        "starved": [starved] if starved["to"] > left else [],
        "bars": bars,
        "numbers": [
            {"from": v * grid.scale, "above": _ROW * i + 18, "below": _ROW * i + 30}
            for i, grid in enumerate(laid)
            for v in grid.format.values
            if v > 0 and v * grid.scale >= left
        ],
        "names": [{"name": grid.name, "at": _ROW * i + 2} for i, grid in enumerate(laid)],
    }
    shown = _grids_table(laid, bars)
    extent = {"left": left, "right": stream.maximum * 1.15, "ticks": log_ticks(left, stream.maximum)}
    most = max(bar["density"] for bar in bars)
    extent |= {"levels": _levels(most), "top": most * height / _BARS}  # the bars stand at the foot of the chart
    name = short_name(stream.name)
    drawn = chart("grids", shown, rows, height=height, **extent)
    return Figure(f"grids-{name.replace('.', '-')}", f"{name}, under the grids", _grids_caption(laid), drawn, shown)


def _levels(most: float) -> list[float]:
    """Two or three round shares from zero on, up to the largest."""
    step = next(s for s in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0) if 2 * s <= most)
    return [step * i for i in range(math.floor(most / step) + 1)] if step else [0.0]


def _bars(stream: StreamStats, edges: Tensor) -> list[dict[str, Any]]:
    """The histogram in coarse bins, from where all but a few values lie."""
    counts, bounds = stream.arrays["histogram"].tolist(), edges.tolist()
    total, below = sum(counts), 0
    bars: list[dict[str, Any]] = []
    for start in range(1, len(counts), _COARSE):  # the bin from zero on has no place on a logarithmic axis
        low, high = bounds[start], bounds[min(start + _COARSE, len(counts))]
        inside = sum(counts[start : start + _COARSE])
        below += inside
        if below > _RARE * total and low <= stream.maximum:
            share = inside / total
            labels = {"magnitude": f"{low:.3g} to {high:.3g}", "percent": fixed(100 * share, 3)}
            # Bars of one height an octave: the bins are not of one width there.
            bars.append({"from": low, "to": high, "density": share / math.log2(high / low), **labels})
    return bars


def _share_below(stream: StreamStats, edges: Tensor, bound: float) -> float:
    """Share of the values whose magnitude is below a bound; within a bin they count as spread evenly."""
    counts, bounds = stream.arrays["histogram"].double(), edges.double()
    inside = ((bound - bounds[:-1]) / (bounds[1:] - bounds[:-1])).clamp(0, 1)
    return float((counts * inside).sum() / counts.sum())


def _grids_caption(laid: Sequence[Grid]) -> str:
    low, *others = laid
    eight = next((g for g in others if g.format.name == "e4m3"), None)
    caption = (
        f"Grey: the magnitudes of all values; spikes are too few to show. Ticks: the numbers that each grid has. The "
        f"tinted range is what {low.format.name.upper()} rounds to zero, {fixed(100 * low.zeros, 1)} % of the values, "
        f"leaving the median token {fixed(low.snr_db, 1)} dB"
    )
    if eight is None:
        return f"{caption}."
    kept = fixed(eight.snr_db, 1)
    return f"{caption}; E4M3's steps shrink with the values, so it keeps {kept} dB with the same maximum."


def _grids_table(laid: Sequence[Grid], bars: Sequence[dict[str, Any]]) -> DataTable:
    columns = numbers("from", "become zero (%)", "median token keeps (dB)", "share of values (%)")
    rows = [
        (
            f"{g.format.name.upper()}, {g.shared}",
            f"first step {g.smallest:.3g}",
            fixed(100 * g.zeros, 2),
            "all" if math.isinf(g.snr_db) else fixed(g.snr_db, 1),
            "",
        )
        for g in laid
    ]
    rows += [("values", bar["magnitude"], "", "", bar["percent"]) for bar in bars]
    return table((*texts("what"), *columns), rows)

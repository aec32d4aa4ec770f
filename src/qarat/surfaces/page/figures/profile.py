"""A stream token by token: which positions tower over the rest, and how few steps are left to the others."""

from __future__ import annotations

from typing import Any

from qarat.surfaces.page.figures.base import Figure, chart, log_ticks
from qarat.surfaces.tables.data import DataTable, numbers, table, texts
from qarat.surfaces.tables.wording import count, fixed
from qarat.values.formats import NumberFormat
from qarat.values.records.streams import StreamStats
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
    floor = min([step, *(m for _, m in means if m > 0)]) / 2
    shown = _table(stream, means)
    line = [{"position": at, "maximum": max(m, floor), "floor": floor} for at, m in means]
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
    drawn = chart("profile", shown, rows, ticks=ticks, side=side, beside=beside)
    caption = _caption(stream, step, low)
    return Figure(f"profile-{name.replace('.', '-')}", f"{name}, token by token", caption, drawn, shown)


def _caption(stream: StreamStats, step: float, low: NumberFormat) -> str:
    peak = stream.peaks[0]
    steps = stream.typical_maximum / step
    left = fixed(steps, 0 if steps > 10 else 1)
    return (
        f"Line: each position's largest magnitude, averaged over windows. Dots: the {count(len(stream.peaks), 'token')}"
        f" that reach furthest, up to {fixed(stream.maximum, 1)} at {peak.text!r}. Where that sets the scale of all, "
        f"{low.name.upper()} has {low.largest:.0f} steps up to there, and {left} of them for the median token, which "
        f"reaches {fixed(stream.typical_maximum, 1)}."
    )


def _table(stream: StreamStats, means: list[tuple[int, float]]) -> DataTable:
    columns = (*texts("what"), *numbers("position", "magnitude"), *texts("token"), *numbers("channel", "window"))
    rows = [
        ("largest", str(p.position), fixed(abs(p.value), 2), repr(p.text), str(p.channel), str(p.window))
        for p in stream.peaks
    ]
    rows += [("mean", str(at), fixed(m, 2), "", "", "") for at, m in means]
    return table(columns, rows)

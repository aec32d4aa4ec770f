"""A stream token by token: which positions tower over the rest, and how few steps are left to the others."""

from __future__ import annotations

from collections.abc import Callable

import altair as alt

from qarat.surfaces.page.figures.base import Figure, data, log_ticks, tooltips
from qarat.surfaces.tables.data import DataTable, numbers, table, texts
from qarat.surfaces.tables.wording import count, fixed
from qarat.values.formats import NumberFormat
from qarat.values.records.streams import StreamStats
from qarat.values.sites import short_name

_HEIGHT = 220  # pixels
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
    peaks = [
        {**shown.details(i), "at": p.position, "size": abs(p.value), "name": repr(p.text)}
        for i, p in enumerate(stream.peaks)
    ]
    y = _y(floor, stream.maximum)
    layers = [*_means(line, y), *_peaks(peaks, shown, len(maxima), y), *_step(step, low, y)]
    chart = alt.LayerChart(layer=layers, height=_HEIGHT)
    name = short_name(stream.name)
    caption = _caption(stream, step, low)
    return Figure(f"profile-{name.replace('.', '-')}", f"{name}, token by token", caption, chart, shown)


def _x(field: str) -> alt.X:
    return alt.X(
        f"{field}:Q",
        title="position in the window",
        scale=alt.Scale(padding=8, nice=False, zero=False),
        axis=alt.Axis(tickCount=8),
    )


def _y(low: float, high: float) -> Callable[[str], alt.Y]:
    """The encoding of a magnitude by a field."""
    scale = alt.Scale(type="log", nice=False, padding=8)
    axis = alt.Axis(values=log_ticks(low, high), format="~g")
    return lambda field: alt.Y(f"{field}:Q", title="largest magnitude of a token", scale=scale, axis=axis)


def _means(line: list[dict[str, float]], y: Callable[[str], alt.Y]) -> list[alt.Chart]:
    base = alt.Chart(data(line)).encode(x=_x("position"))
    area = base.mark_area(style="profile-area").encode(y=y("maximum"), y2="floor:Q")
    return [area, base.mark_line(style="profile").encode(y=y("maximum"))]


def _peaks(peaks: list[dict[str, object]], shown: DataTable, length: int, y: Callable[[str], alt.Y]) -> list[alt.Chart]:
    base = alt.Chart(data(peaks)).encode(x=_x("at"), y=y("size"))
    # The largest carries its token, on the side where there is room.
    left = int(str(peaks[0]["at"])) > length / 2
    name = alt.Chart(data(peaks[:1])).encode(x=_x("at"), y=y("size"), text="name:N")
    return [
        base.mark_point(style=["dot", "peak"]).encode(tooltip=tooltips(shown)),
        name.mark_text(style="label", align="right" if left else "left", dx=-10 if left else 10),
    ]


def _step(step: float, low: NumberFormat, y: Callable[[str], alt.Y]) -> list[alt.Chart]:
    base = alt.Chart(data([{"step": step, "name": f"one {low.name.upper()} step, {step:.2g}"}])).encode(y=y("step"))
    text = base.mark_text(style="note", align="right", baseline="top", dy=5)
    return [base.mark_rule(style="limit"), text.encode(x=alt.value("width"), text="name:N")]


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

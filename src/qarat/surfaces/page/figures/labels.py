"""Where a chart's labels stand: off the marks and off each other, on a wide screen and on a phone.

Vega-Lite puts a label where it is told to. So the places that it may take beside its point are gone through in order,
and the first that covers least is taken; what is covered is counted at both widths, since one definition serves both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTHS, HEIGHT = (720, 330), 300  # pixels of what is inside the axes: on a screen, on a phone
PADDING = 12  # pixels between the outermost marks and the axes
_LETTER, _LINE = 6.4, 14  # pixels
_SAMPLES = 60  # points that a line is taken for
_SIDES = ("left", 9), ("right", -9), ("center", 0)  # a text that is aligned left stands right of its point
_BESIDE = [(align, dx, dy) for dy in (-9, 9, -23, 23) for align, dx in _SIDES if abs(dy) > 9 or dx]
_ANCHORS = {1: "right", 0.75: "center", 0.5: "center", 0.25: "center", 0: "left"}  # shares of the width
_ALONG = [(share, align, dy) for share, align in _ANCHORS.items() for dy in (-9, 9)]

Point = tuple[float, float]
Box = tuple[float, float, float, float]


@dataclass
class Places:
    """The inside of a chart's axes, and what is taken of it.

    Attributes:
        x: Least and greatest value along the first axis.
        y: The same of the second.
        logs: Which of the two is logarithmic.
    """

    x: Point
    y: Point
    logs: tuple[bool, bool]
    _marks: list[Point] = field(default_factory=list)
    _taken: list[tuple[Box, ...]] = field(default_factory=list)

    def mark(self, points: Iterable[Point]) -> None:
        """Points that labels should not cover."""
        self._marks += (self._share(*point) for point in points)

    def line(self, ends: Sequence[Point]) -> None:
        """The same for a line through points."""
        shares = [self._share(*point) for point in ends]
        for (a, b), (c, d) in itertools.pairwise(shares):
            self._marks += ((a + (c - a) * i / _SAMPLES, b + (d - b) * i / _SAMPLES) for i in range(_SAMPLES + 1))

    def beside(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of a named point with the place of its ``label``."""
        at = self._share(row["x"], row["y"])
        align, dx, dy = min(_BESIDE, key=lambda place: self._cost(self._boxes(at, row["label"], *place)))
        self._taken.append(self._boxes(at, row["label"], align, dx, dy))
        return {**row, "align": align, "dx": dx, "dy": dy}

    def along(self, at: float, name: str) -> dict[str, Any]:
        """A row of a bound on y with the place of its name, as a share of the width."""
        level = self._share(self.x[0], at)[1]

        def boxes(place: tuple[float, str, int]) -> tuple[Box, ...]:
            share, align, dy = place
            outer = (share * w for w in WIDTHS)
            return tuple(_box((left, self._down(level)), name, align, 0, dy) for left in outer)

        best = min(_ALONG, key=lambda place: self._cost(boxes(place)))
        self._taken.append(boxes(best))
        return {"at": at, "name": name, "along": best[0], "align": best[1], "dy": best[2]}

    def _share(self, x: float, y: float) -> Point:
        return _share(x, self.x, self.logs[0]), _share(y, self.y, self.logs[1])

    def _boxes(self, at: Point, text: str, align: str, dx: int, dy: int) -> tuple[Box, ...]:
        return tuple(_box((_across(at[0], w), self._down(at[1])), text, align, dx, dy) for w in WIDTHS)

    @staticmethod
    def _down(share: float) -> float:
        return PADDING + (1 - share) * (HEIGHT - 2 * PADDING)

    def _cost(self, boxes: tuple[Box, ...]) -> int:
        """How much is covered: marks once each, labels and what lies outside more."""
        cost = 0
        for i, (width, box) in enumerate(zip(WIDTHS, boxes, strict=True)):
            left, top, right, bottom = box
            cost += sum(left < _across(u, width) < right and top < self._down(v) < bottom for u, v in self._marks)
            cost += 100 * sum(_overlap(box, other[i]) for other in self._taken)
            cost += 1000 * (left < -3 or right > width + 3 or top < 0 or bottom > HEIGHT)
        return cost


def _share(value: float, ends: Point, log: bool) -> float:
    low, high, at = (math.log(v) for v in (*ends, value)) if log else (*ends, value)
    return (at - low) / ((high - low) or 1.0)


def _across(share: float, width: float) -> float:
    return PADDING + share * (width - 2 * PADDING)


def _box(at: Point, text: str, align: str, dx: int, dy: int) -> Box:
    wide = _LETTER * len(text)
    left = at[0] + dx - wide * {"left": 0, "center": 0.5, "right": 1}[align]
    return left - 2, at[1] + dy - _LINE / 2, left + wide + 2, at[1] + dy + _LINE / 2


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

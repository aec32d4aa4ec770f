"""Options of `qarat study spikes`."""

from __future__ import annotations

from typing import ClassVar

from qarat.surfaces.options.groups import General, IntoFolder, Machine, Text
from qarat.values.requests.spike_study import SpikeRequest

REPORT_WINDOWS = 128  # fewer than elsewhere: there are some two hundred arms


class StudySpikesOptions(IntoFolder, frozen=True, kw_only=True):
    """Measure what protecting a few sites buys, beside controls and general-purpose methods, in INT8 and INT6.

    Attributes:
        out: Folder to write. Work goes on in FOLDER.partial; after a kill the same command continues it, arm by arm.
            (default: MODEL-spikes)
        quick: INT8 and INT6 per channel with static inputs alone, fewer controls, orders of at most two sites.
        full: Orders and methods at every static setting, five random controls everywhere.
        other_calibration: Text of another kind than the report, .txt or .jsonl, to calibrate on for comparison.
            (default: not compared)
        published: List the figures that others published, with source and scheme, and measure nothing.
    """

    SUFFIX = "spikes"
    HIDDEN: ClassVar[tuple[str, ...]] = ("SpikeRequest.extent",)  # quick and full say it

    quick: bool = False
    full: bool = False
    other_calibration: str | None = None
    published: bool = False
    study: SpikeRequest = SpikeRequest()
    text: Text = Text(report_samples=REPORT_WINDOWS)
    machine: Machine = Machine()
    general: General = General()

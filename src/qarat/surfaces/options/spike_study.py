"""Options of `qarat study spikes`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from qarat.surfaces.options.groups import BUNDLED, Flag, General, Machine, Name, Text

REPORT_WINDOWS = 128  # fewer than elsewhere: there are some two hundred arms


@dataclass(frozen=True, kw_only=True)
class StudySpikes:
    """Measure what protecting a few sites buys, beside controls and general-purpose methods, in INT8 and INT6."""

    model: Positional[Name] = BUNDLED
    """A Hugging Face folder, a reference model's name (see `qarat models`), or a hub id."""
    out: Annotated[Path | None, arg(aliases=["-o"], metavar="FOLDER", help_behavior_hint="(default: MODEL-spikes)")] = (
        None
    )
    """Folder to write. Work goes on in FOLDER.partial; after a kill the same command continues it, arm by arm."""
    overwrite: Flag = False
    """Replace FOLDER if it is there."""
    quick: Flag = False
    """INT8 and INT6 per channel with static inputs alone, fewer controls, orders of at most two sites."""
    full: Flag = False
    """Orders and methods at every static setting, five random controls everywhere."""
    methods: Annotated[tuple[str, ...], arg(metavar="METHOD ...", help_behavior_hint="(default: all)")] = ()
    """Only these: smooth, smooth-all, llm-int8, llm-int8-tensor, hadamard, clip-p99.9, clip-p99.99, clip-mse,
    prefix."""
    rules: Annotated[tuple[str, ...], arg(metavar="RULE ...", help_behavior_hint="(default: all)")] = ()
    """Protect in the order of only these: damage, snr, ratio, maximum."""
    sites: Annotated[tuple[str, ...], arg(metavar="PATTERN ...", help_behavior_hint="")] = ()
    """Protect just these instead of what the planner chooses, such as 1.down."""
    budget: Annotated[str, arg(metavar="LOSS")] = "ppl+1%"
    """What may be lost over float: a perplexity (ppl+1%) or nats per token (nats+0.05)."""
    most: Annotated[int, arg(metavar="N")] = 3
    """Sites that the planner may protect."""
    other_calibration: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="(default: not compared)")] = None
    """Text of another kind than the report, .txt or .jsonl, to calibrate on for comparison."""
    published: Flag = False
    """List the figures that others published, with source and scheme, and measure nothing."""
    text: Text = field(default_factory=lambda: Text(report_samples=REPORT_WINDOWS))
    machine: Machine = field(default_factory=Machine)
    general: General = field(default_factory=General)

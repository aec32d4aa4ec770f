"""Options that several verbs share, in groups, and the types that options have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import UseAppendAction, arg

from qarat.values.schemes import LOW

BUNDLED = "py-128"

Flag = Annotated[bool, arg(help_behavior_hint="")]
Name = Annotated[str, arg(metavar="MODEL")]
Scheme = Annotated[str, arg(metavar="SCHEME")]
StatsFile = Annotated[Path, arg(metavar="FILE")]
Prefix = Annotated[str, arg(metavar="N|auto")]
Out = Annotated[Path, arg(aliases=["-o"], metavar="FILE")]
Rules = UseAppendAction[Annotated[tuple[str, ...], arg(metavar="'PATTERN: SCHEME'", help_behavior_hint="")]]
Conditions = Annotated[tuple[str, ...], arg(metavar="CONDITION ...", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class Text:
    """The three token sets: scales come from the first, choices from the second, printed numbers from the third."""

    calibration: Annotated[
        str | None, arg(metavar="TEXT", help_behavior_hint="(default: the Python source that ships with qarat)")
    ] = None
    """A .txt or .jsonl file, or hub:OWNER/NAME. Given alone, it is split by documents into all three sets."""
    selection: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")] = None
    """Text on which choices are made."""
    report_text: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")] = None
    """Text on which every printed number is measured."""
    samples: Annotated[int, arg(metavar="N")] = 64
    """At most so many windows for calibration, and for selection."""
    report_samples: Annotated[int, arg(metavar="N")] = 256
    """At most so many windows for the report."""
    length: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the model's, at most 512)")] = None
    """Tokens of a window."""
    bos: Literal["auto", "each", "once", "never"] = "auto"
    """Whether each window begins with BOS, only the first of a document, none, or as the tokenizer does."""


@dataclass(frozen=True, kw_only=True)
class Transforms:
    """What is done to the float model first; its function is kept."""

    transform: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="")] = ()
    """Change the float model first: hadamard, smooth/0.5 (see docs/formats.md). The same for every step of one plan."""
    transform_stats: Annotated[tuple[Path, ...], arg(metavar="FILE ...", help_behavior_hint="")] = ()
    """For each smooth, stats of the model that it is applied to, from `qarat profile`."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where to compute; none of this changes what is found, beyond rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of every pass. Published numbers are float32."""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: as torch chooses)")] = None
    """CPU threads. With equal threads, results are equal to the byte."""
    memory: Annotated[str | None, arg(metavar="SIZE", help_behavior_hint="(default: half of what is free)")] = None
    """Bound on weights kept in memory, such as 8GB. It changes time, never results."""


@dataclass(frozen=True, kw_only=True)
class Planning:
    """What is quantized, what may be protected, and what that may cost."""

    low: Scheme = LOW
    """Scheme of every projection that is not protected."""
    protect: Scheme = "float"
    """What protected sites get: float, fp8, fp8-e5m2, or a scheme."""
    budget: Annotated[str, arg(metavar="LOSS")] = "ppl+1%"
    """What may be lost over float: a perplexity (ppl+1%) or nats per token (nats+0.05)."""
    by: Annotated[str, arg(metavar="RULE")] = "damage"
    """What chooses: damage, confirmed by measurement; or one rule alone: snr, ratio, super-weight, gap."""
    sites: Annotated[tuple[str, ...], arg(metavar="PATTERN ...", help_behavior_hint="")] = ()
    """Protect just these instead of choosing, such as 1.down or '*.30.*.down_proj'."""
    set: Rules = ()
    """Override the scheme of some sites; may be given several times, the last match wins."""
    runtime: Annotated[str, arg(metavar="ENGINE")] = "any"
    """Engine whose fused projections must share a scheme: any or vllm."""


@dataclass(frozen=True, kw_only=True)
class Printing:
    """How to ask, and how to be answered."""

    json: Flag = False
    """Print one JSON document on stdout, and nothing else there."""
    config: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """YAML file with any of these options by name; what is given on the command line wins."""


@dataclass(frozen=True, kw_only=True)
class General(Printing):
    """How to ask, and how to be answered."""

    dry_run: Flag = False
    """Check everything, print what it would take in time, memory and disk, and write nothing."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Of every random choice."""
    revision: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Revision of a hub id."""

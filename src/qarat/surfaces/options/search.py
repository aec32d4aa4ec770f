"""Options of `qarat search`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from qarat.surfaces.options.groups import BUNDLED, Flag, General, Machine, Name, Rules, Scheme, Text


@dataclass(frozen=True, kw_only=True)
class Runners:
    """Who measures; none of this changes what is found, beyond rounding."""

    workers: Annotated[int, arg(metavar="N")] = 1
    """Processes of this machine that measure side by side, each with the model in memory; --threads are shared out."""
    ray: Annotated[str | None, arg(metavar="ADDRESS|local", help_behavior_hint="")] = None
    """Measure on a Ray cluster instead (pip install 'qarat[ray]'); local starts one here, of --workers workers."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """Find how much of a model can go low within a budget, measured, and write the plans."""

    model: Positional[Name] = BUNDLED
    """A Hugging Face folder, a reference model's name (see `qarat models`), or a hub id."""
    out: Annotated[Path | None, arg(aliases=["-o"], metavar="FOLDER", help_behavior_hint="(default: MODEL-search)")] = (
        None
    )
    """Folder to write. Work goes on in FOLDER.partial; after a kill the same command continues it."""
    overwrite: Flag = False
    """Replace FOLDER if it is there."""
    low: Scheme = "w=mxint4 a=mxint4"
    """Scheme whose share is to be as large as possible; also mxint4, mxfp4, int4, int8-static, or a weight's format."""
    high: Scheme = "float"
    """What the other sites get: float, fp8, fp8-e5m2, or a scheme as for --low."""
    menu: Annotated[tuple[str, ...], arg(metavar="SCHEME ...", help_behavior_hint="")] = ()
    """More schemes as for --low, commas between them or not; the curve then runs over bits per weight."""
    granularity: Literal["matmul", "layer"] = "matmul"
    """Decide each projection, or whole blocks."""
    basis: Literal["parameters", "macs"] = "parameters"
    """What Q_r counts; by macs, the attention products are decided too."""
    budget: Annotated[tuple[str, ...], arg(metavar="BUDGET ...")] = ("ppl+5%",)
    """What may be lost (ppl+5%, nats+0.05, acc(TASK)-1%) or spent (ratio=0.9; bits=4.5, bytes=2.1GB)."""
    points: Annotated[tuple[float, ...], arg(metavar="N ...", help_behavior_hint="")] = ()
    """Ratios at which the curve is measured as well; bits per weight with a --menu, or a budget of bits or bytes."""
    strategy: Annotated[str, arg(metavar="NAME")] = "predicted"
    """Who proposes plans: predicted, greedy, random or tpe."""
    metric: Annotated[str, arg(metavar="NAME")] = "fisher"
    """What predictions come from; see `qarat damage --help`."""
    trials: Annotated[int, arg(metavar="N")] = 50
    """Plans that random and tpe try at each point."""
    price_windows: Annotated[int, arg(metavar="N")] = 16
    """At most so many selection windows, that prices come from."""
    set: Rules = ()
    """Override the scheme of some sites; may be given several times, the last match wins."""
    runtime: Annotated[str, arg(metavar="ENGINE")] = "any"
    """Engine whose fused projections must share a scheme: any or vllm."""
    keep: Annotated[str | None, arg(metavar="SIZE", help_behavior_hint="(default: a quarter of --memory)")] = None
    """Bound on hidden states kept between measurements, such as 2GB. It changes time, never results."""
    runners: Runners = field(default_factory=Runners)
    text: Text = field(default_factory=Text)
    machine: Machine = field(default_factory=Machine)
    general: General = field(default_factory=General)

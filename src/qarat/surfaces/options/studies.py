"""Options of the verbs that search many times: `qarat study ratio` and `qarat sweep`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from qarat.surfaces.options.groups import BUNDLED, Flag, General, Machine, Name, Scheme, Text
from qarat.surfaces.options.search import Runners

Keep = Annotated[str | None, arg(metavar="SIZE", help_behavior_hint="(default: a quarter of --memory)")]


@dataclass(frozen=True, kw_only=True)
class StudyRatio:
    """Compare predicted search with the best of 50 random plans, ratio by ratio, and what loss budgets reach."""

    model: Positional[Name] = BUNDLED
    """A Hugging Face folder, a reference model's name (see `qarat models`), or a hub id."""
    out: Annotated[Path | None, arg(aliases=["-o"], metavar="FOLDER", help_behavior_hint="(default: MODEL-ratio)")] = (
        None
    )
    """Folder to write. Work goes on in FOLDER.partial; after a kill the same command continues it."""
    overwrite: Flag = False
    """Replace FOLDER if it is there."""
    low: Scheme = "w=mxint4 a=mxint4"
    """Scheme whose share is to be as large as possible; --blocks gives its block size."""
    blocks: Annotated[tuple[int, ...], arg(metavar="N ...")] = (16, 32)
    """Block sizes: values that share a scale."""
    ratios: Annotated[tuple[float, ...], arg(metavar="N ...")] = (0.5, 0.9, 0.95, 0.975, 0.99)
    """Ratios at which each projection is decided; none leaves that out."""
    layer_ratios: Annotated[tuple[float, ...], arg(metavar="N ...")] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    """Ratios at which whole blocks are decided; none leaves that out."""
    budgets: Annotated[tuple[str, ...], arg(metavar="LOSS ...")] = ("ppl+5%", "ppl+10%", "ppl+20%")
    """Losses within which the highest ratio is looked for."""
    trials: Annotated[int, arg(metavar="N")] = 50
    """Random plans at each ratio."""
    best_of: Annotated[tuple[int, ...], arg(metavar="N ...")] = (10, 20, 50, 100, 200)
    """Numbers of random plans whose best are compared, matmul-wise at the last block size; none leaves that out."""
    best_of_ratio: Annotated[float, arg(metavar="N")] = 0.9
    """Ratio at which that is done."""
    basis: Literal["parameters", "macs"] = "parameters"
    """What Q_r counts; by macs, the attention products are decided too."""
    metric: Annotated[str, arg(metavar="NAME")] = "fisher"
    """What predictions come from; see `qarat damage --help`."""
    price_windows: Annotated[int, arg(metavar="N")] = 16
    """Selection windows that prices come from."""
    keep: Keep = None
    """Bound on hidden states kept between measurements, such as 2GB. It changes time, never results."""
    runners: Runners = field(default_factory=Runners)
    text: Text = field(default_factory=Text)
    machine: Machine = field(default_factory=Machine)
    general: General = field(default_factory=General)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Search a family of models over ratios, formats and block sizes: the table that laws are fitted to."""

    models: Positional[Annotated[tuple[str, ...], arg(metavar="MODELS ...")]] = (BUNDLED,)
    """Hugging Face folders, reference models' names (see `qarat models`), or hub ids."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="FOLDER")] = Path("sweep")
    """Folder to write: sweep.csv, budgets.csv, and every search. After a kill the same command continues it."""
    overwrite: Flag = False
    """Replace FOLDER if it is there."""
    ratios: Annotated[tuple[float, ...], arg(metavar="N ...")] = (0.5, 0.75, 0.9, 1.0)
    """Ratios at which the best predicted plan is measured."""
    formats: Annotated[tuple[str, ...], arg(metavar="FORMAT ...")] = ("mxint4",)
    """Low formats: mxint4, mxfp4 (weights and inputs), int4 (weights), int8-static, or schemes 'w=... a=...'."""
    blocks: Annotated[tuple[str, ...], arg(metavar="N|row|tensor ...")] = ("32",)
    """Values that share a scale, a row (channel or token), or the tensor; formats with static scales keep theirs."""
    budgets: Annotated[tuple[str, ...], arg(metavar="LOSS ...")] = ("ppl+5%", "ppl+10%", "ppl+20%")
    """Losses within which the highest ratio is looked for."""
    granularity: Literal["matmul", "layer"] = "matmul"
    """Decide each projection, or whole blocks."""
    basis: Literal["parameters", "macs"] = "parameters"
    """What Q_r counts; by macs, the attention products are decided too."""
    metric: Annotated[str, arg(metavar="NAME")] = "fisher"
    """What predictions come from; see `qarat damage --help`."""
    price_windows: Annotated[int, arg(metavar="N")] = 16
    """Selection windows that prices come from."""
    family: Annotated[str, arg(metavar="NAME", help_behavior_hint="(default: what the names begin with)")] = ""
    """What the table calls models that share recipe and data."""
    keep: Keep = None
    """Bound on hidden states kept between measurements, such as 2GB. It changes time, never results."""
    runners: Runners = field(default_factory=Runners)
    text: Text = field(default_factory=Text)
    machine: Machine = field(default_factory=Machine)
    general: General = field(default_factory=General)

"""Options of the verbs that make, check and show folders."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from qarat.stages.export import EXPORTERS
from qarat.surfaces.options.groups import (
    BUNDLED,
    Flag,
    General,
    Machine,
    Name,
    Planning,
    Prefix,
    Printing,
    Scheme,
    Text,
)
from qarat.values.schemes import LOW

FORMATS = "; ".join(f"{name}: {words.rstrip('.')}" for name, words in EXPORTERS.describe().items())


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a quantized model, or its plan, in the format of another program."""

    run: Positional[Annotated[Path, arg(metavar="RUN")]]
    """A folder that `qarat run` or `qarat quantize` wrote."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="FOLDER")] = Path("exported")
    """Folder to write."""
    format: Annotated[str, arg(metavar="FORMAT", help=f"What to write. {FORMATS}.")] = "compressed-tensors"
    source: Annotated[
        str | None, arg(metavar="MODEL", help_behavior_hint="(default: RUN's codes are all there is)")
    ] = None
    """The float model behind RUN: formats that round weights anew (gguf) then begin from it, and round once."""
    overwrite: Flag = False
    """Replace FOLDER if it is there."""
    dry_run: Flag = False
    """Check everything, print what it would take in time, memory and disk, and write nothing."""
    general: Printing = field(default_factory=Printing)


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check what each engine will run of a quantized folder, and compare it with its run or float model."""

    model: Positional[Annotated[str, arg(metavar="FOLDER")]]
    """A folder in the compressed-tensors format: from `qarat export`, llm-compressor, AutoRound or anybody."""
    against: Annotated[str | None, arg(metavar="RUN|MODEL", help_behavior_hint="")] = None
    """What to compare with: the run (or native folder) it was exported from, or the float model it was made from."""
    engine: Annotated[tuple[str, ...], arg(metavar="ENGINE ...", help_behavior_hint="(default: all)")] = ()
    """Engines to follow: transformers, vllm, vllm-0.26, sglang, sglang-old."""
    gpu: Annotated[str | None, arg(metavar="GENERATION", help_behavior_hint="")] = None
    """Where it must run: turing, ampere, ada, hopper, blackwell, blackwell-rtx or cpu."""
    out: Annotated[Path | None, arg(aliases=["-o"], metavar="FILE", help_behavior_hint="(default: nowhere)")] = None
    """Where the verification goes."""
    text: Text = field(default_factory=Text)
    machine: Machine = field(default_factory=Machine)
    general: General = field(default_factory=General)


@dataclass(frozen=True, kw_only=True)
class Show:
    """Print what a file or a run's folder holds, or compare evaluations with the first."""

    paths: Positional[Annotated[tuple[Path, ...], arg(metavar="PATH ...", help_behavior_hint="")]]
    """Files of stats, prices, plans, sweeps or evaluations, or the folder of a run, finished or not."""
    low: Scheme = LOW
    """Scheme under which stats are shown."""
    general: Printing = field(default_factory=Printing)


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the reference models; their names are accepted wherever a MODEL is."""

    general: Printing = field(default_factory=Printing)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Do it all: profile, damage, plan, quantize, and evaluate float, naive and plan."""

    model: Positional[Name] = BUNDLED
    """A Hugging Face folder, a reference model's name (see `qarat models`), or a hub id."""
    out: Annotated[Path | None, arg(aliases=["-o"], metavar="FOLDER", help_behavior_hint="(default: MODEL-qarat)")] = (
        None
    )
    """Folder to write. Work goes on in FOLDER.partial; after a kill the same command continues it."""
    overwrite: Flag = False
    """Replace FOLDER if it is there."""
    prompt: Annotated[str | None, arg(metavar="WORDS", help_behavior_hint="(default: from the report text)")] = None
    """What float, naive and plan continue at the end."""
    page: Flag = True
    """Leave the page (FOLDER/report.html) and its figures out."""
    export: Annotated[tuple[str, ...], arg(metavar="FORMAT ...", help_behavior_hint="")] = ()
    """Write the result in other programs' formats too, each to FOLDER/FORMAT (see `qarat export --help`)."""
    prefix: Prefix = "0"
    """Keep so many tokens in front of each window in float, as keys and values; auto: as many as hold spikes."""
    transform: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="")] = ()
    """Change the float model first, its function kept: hadamard, smooth/0.5, smooth/auto (see docs/formats.md)."""
    planning: Planning = field(default_factory=Planning)
    text: Text = field(default_factory=Text)
    machine: Machine = field(default_factory=Machine)
    general: General = field(default_factory=General)

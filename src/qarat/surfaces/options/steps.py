"""Options of the verbs that do one step each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from qarat.stages.prices import DEFAULT
from qarat.stages.prices import METRICS as PRICE_METRICS
from qarat.surfaces.options.groups import (
    BUNDLED,
    Flag,
    General,
    Machine,
    Name,
    Out,
    Planning,
    Prefix,
    Scheme,
    StatsFile,
    Text,
    Transforms,
)
from qarat.values.schemes import LOW

METRICS = "; ".join(f"{name}: {words.rstrip('.')}" for name, words in PRICE_METRICS.describe().items())


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Measure every activation stream in one pass, and say where the spikes are."""

    model: Positional[Name] = BUNDLED
    """A Hugging Face folder, a reference model's name (see `qarat models`), or a hub id."""
    out: Out = Path("stats.safetensors")
    """Where the stats go."""
    low: Scheme = LOW
    """Scheme under which the signal-to-noise ratio is shown."""
    attention: Flag = True
    """Leave the operands of the attention products out."""
    prefix: Prefix = "0"
    """Leave so many tokens in front of each window out, to be kept in float; auto: as many as hold spikes."""
    transforms: Transforms = field(default_factory=Transforms)
    text: Text = field(default_factory=Text)
    machine: Machine = field(default_factory=Machine)
    general: General = field(default_factory=General)


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Predict what each scheme would cost at each site, in nats per token."""

    model: Positional[Name] = BUNDLED
    """A Hugging Face folder, a reference model's name (see `qarat models`), or a hub id."""
    stats: StatsFile = Path("stats.safetensors")
    """Stats from `qarat profile`."""
    out: Out = Path("menu.json")
    """Where the menu of prices goes."""
    schemes: Annotated[tuple[str, ...], arg(metavar="SCHEME ...")] = (LOW,)
    """Schemes to price: 'w=... a=...' at projections, 'l=... r=...' at attention products."""
    metrics: Annotated[tuple[str, ...], arg(metavar="NAME ...", help=f"What prices come from, or all. {METRICS}.")] = (
        DEFAULT,
    )
    check: Flag = False
    """Measure every site alone as well, under the first scheme, and say how well each metric predicts that."""
    transforms: Transforms = field(default_factory=Transforms)
    text: Text = field(default_factory=Text)
    machine: Machine = field(default_factory=Machine)
    general: General = field(default_factory=General)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Choose the sites to protect, by measurement, and write the plan."""

    model: Positional[Name] = BUNDLED
    """A Hugging Face folder, a reference model's name (see `qarat models`), or a hub id."""
    stats: StatsFile = Path("stats.safetensors")
    """Stats from `qarat profile`."""
    menu: Annotated[Path, arg(metavar="FILE")] = Path("menu.json")
    """Prices from `qarat damage`, the low scheme among them."""
    out: Out = Path("plan.json")
    """Where the plan goes; its measurements go beside it, to NAME.protection.json."""
    planning: Planning = field(default_factory=Planning)
    transforms: Transforms = field(default_factory=Transforms)
    text: Text = field(default_factory=Text)
    machine: Machine = field(default_factory=Machine)
    general: General = field(default_factory=General)


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Quantize a model by a plan, and write it as a folder."""

    model: Positional[Name] = BUNDLED
    """A Hugging Face folder, a reference model's name (see `qarat models`), or a hub id."""
    plan: Annotated[Path, arg(metavar="FILE")] = Path("plan.json")
    """From `qarat plan`; may be edited by hand."""
    stats: StatsFile = Path("stats.safetensors")
    """Stats from `qarat profile`; static scales come from them."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="FOLDER")] = Path("quantized")
    """Folder to write."""
    overwrite: Flag = False
    """Replace FOLDER if it is there."""
    transforms: Transforms = field(default_factory=Transforms)
    machine: Machine = field(default_factory=Machine)
    general: General = field(default_factory=General)

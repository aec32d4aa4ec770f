"""Options: what each verb can be asked, as frozen values.

The command line, its help and the names that ``--config`` knows are made from these fields and the words below them.
Nothing here imports torch, so help and a mistyped option answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from qarat.schemes import LOW

__all__ = [
    "BUNDLED",
    "VERBS",
    "Computing",
    "Damage",
    "Evaluate",
    "General",
    "Machine",
    "Models",
    "Options",
    "Plan",
    "Planning",
    "Printing",
    "Profile",
    "Quantize",
    "Run",
    "Show",
    "Text",
]

BUNDLED = "py-128"

Flag = Annotated[bool, arg(help_behavior_hint="")]
Name = Annotated[str, arg(metavar="MODEL")]
Scheme = Annotated[str, arg(metavar="SCHEME")]
StatsFile = Annotated[Path, arg(metavar="FILE")]
Out = Annotated[Path, arg(aliases=["-o"], metavar="FILE")]


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
    set: UseAppendAction[Annotated[tuple[str, ...], arg(metavar="'PATTERN: SCHEME'", help_behavior_hint="")]] = ()
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
    """Where the plan goes; its measurements go beside it, to NAME.sweep.json."""
    planning: Planning = field(default_factory=Planning)
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
    machine: Machine = field(default_factory=Machine)
    general: General = field(default_factory=General)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure perplexity on the report text, of a float model, a quantized folder or a run."""

    model: Positional[Name] = BUNDLED
    """A float model as for the other verbs, or a folder that `qarat quantize` or `qarat run` wrote."""
    out: Annotated[Path | None, arg(aliases=["-o"], metavar="FILE", help_behavior_hint="(default: nowhere)")] = None
    """Where the evaluation goes."""
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
    planning: Planning = field(default_factory=Planning)
    text: Text = field(default_factory=Text)
    machine: Machine = field(default_factory=Machine)
    general: General = field(default_factory=General)


Computing = Profile | Damage | Plan | Quantize | Evaluate | Run
Options = Computing | Show | Models
VERBS: dict[str, type[Options]] = {
    "run": Run,
    "profile": Profile,
    "damage": Damage,
    "plan": Plan,
    "quantize": Quantize,
    "evaluate": Evaluate,
    "show": Show,
    "models": Models,
}

"""Options: what each verb can be asked, as frozen values.

The command line, its help and the names that ``--config`` knows are made from these fields and the words below them.
Nothing here imports torch, so help and a mistyped option answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from qarat.exporters import describe
from qarat.schemes import LOW

__all__ = [
    "BUNDLED",
    "VERBS",
    "Computing",
    "Damage",
    "Evaluate",
    "Export",
    "General",
    "LawData",
    "LawFit",
    "LawForms",
    "LawPredict",
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
    "Verify",
]

BUNDLED = "py-128"

Flag = Annotated[bool, arg(help_behavior_hint="")]
Name = Annotated[str, arg(metavar="MODEL")]
Scheme = Annotated[str, arg(metavar="SCHEME")]
StatsFile = Annotated[Path, arg(metavar="FILE")]
Out = Annotated[Path, arg(aliases=["-o"], metavar="FILE")]
Conditions = Annotated[tuple[str, ...], arg(metavar="CONDITION ...", help_behavior_hint="")]
FORMATS = "; ".join(f"{name}: {words.rstrip('.')}" for name, words in describe().items())


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
    """Measure perplexity on the report text, or zero-shot accuracy, of a float or quantized model or a run."""

    model: Positional[Name] = BUNDLED
    """A float model as for the other verbs, or a folder that `qarat quantize` or `qarat run` wrote."""
    out: Annotated[Path | None, arg(aliases=["-o"], metavar="FILE", help_behavior_hint="(default: nowhere)")] = None
    """Where the evaluation goes."""
    tasks: Annotated[tuple[str, ...], arg(metavar="TASK ...", help_behavior_hint="")] = ()
    """Measure these instead of perplexity: code_continuation, or any task of the lm-evaluation-harness."""
    limit: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """At most so many questions of each task."""
    text: Text = field(default_factory=Text)
    machine: Machine = field(default_factory=Machine)
    general: General = field(default_factory=General)


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
    export: Annotated[tuple[str, ...], arg(metavar="FORMAT ...", help_behavior_hint="")] = ()
    """Write the result in other programs' formats too, each to FOLDER/FORMAT (see `qarat export --help`)."""
    planning: Planning = field(default_factory=Planning)
    text: Text = field(default_factory=Text)
    machine: Machine = field(default_factory=Machine)
    general: General = field(default_factory=General)


@dataclass(frozen=True, kw_only=True)
class LawData:
    """List the measurements that ship with qarat, with source and known defects, or show one table."""

    table: Positional[Annotated[str, arg(metavar="TABLE", help_behavior_hint="(default: list them all)")]] = ""
    """A table's name, or a CSV file of your own to be checked and shown."""
    where: Conditions = ()
    """Only rows that meet these, such as model=Qwen1.5-7B or 'block<=512'."""
    out: Annotated[Path | None, arg(aliases=["-o"], metavar="FILE", help_behavior_hint="(default: nowhere)")] = None
    """Write the rows as CSV: a pattern for a table of your own."""
    general: Printing = field(default_factory=Printing)


@dataclass(frozen=True, kw_only=True)
class LawForms:
    """List the forms of laws: equation, source, what each needs, and printed coefficients."""

    general: Printing = field(default_factory=Printing)


@dataclass(frozen=True, kw_only=True)
class LawFit:
    """Fit a law, or every form side by side, to measurements."""

    data: Positional[Annotated[str, arg(metavar="DATA")]]
    """A CSV file, or a table's name (see `qarat law data`)."""
    form: Annotated[str, arg(metavar="FORM")] = "all"
    """A form's name (see `qarat law forms`); all compares them by their error on sizes left out."""
    where: Conditions = ()
    """Only rows that meet these, such as model=Qwen1.5-7B or 'block<=512'."""
    method: Literal["paper", "huber", "ols"] = "paper"
    """Huber's loss or least squares, both of the logarithm; paper: what the form's authors took."""
    standard_error: Annotated[float | None, arg(metavar="NATS", help_behavior_hint="(default: none)")] = None
    """Of rows that have none; points at or below zero cannot count without."""
    draws: Annotated[int, arg(metavar="N")] = 500
    """Bootstrap samples behind the intervals; 0 for no intervals."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Of starts and bootstrap samples."""
    out: Out = Path("law.json")
    """Where the law goes."""
    general: Printing = field(default_factory=Printing)


@dataclass(frozen=True, kw_only=True)
class LawPredict:
    """Ask a law: give every variable of its form but one, and it answers with that one."""

    law: Positional[Annotated[str, arg(metavar="LAW")]]
    """A file from `qarat law fit`, or a published law by name (see `qarat law forms`), such as undertraining."""
    form: Annotated[str | None, arg(metavar="FORM", help_behavior_hint="(default: the best one)")] = None
    """Which form, where the law has several."""
    budget: Annotated[str | None, arg(metavar="LOSS", help_behavior_hint="")] = None
    """Loss increase: ppl+5% or nats+0.05. Left out, the law predicts it."""
    size: Annotated[str | None, arg(metavar="N", help_behavior_hint="")] = None
    """Parameters, such as 70B."""
    tokens: Annotated[str | None, arg(metavar="N", help_behavior_hint="")] = None
    """Training tokens, such as 2T."""
    ratio: Annotated[float | None, arg(metavar="SHARE", help_behavior_hint="")] = None
    """Q_r: the low share of the parameters, 0 to 1."""
    block: Annotated[float | None, arg(metavar="N", help_behavior_hint="")] = None
    """Q_b: values that share one scale."""
    bits: Annotated[float | None, arg(metavar="N", help_behavior_hint="")] = None
    """Bits a weight, averaged over all sites."""
    general: Printing = field(default_factory=Printing)


Computing = Profile | Damage | Plan | Quantize | Evaluate | Verify | Run
Options = Computing | Export | Show | Models | LawData | LawForms | LawFit | LawPredict
VERBS: dict[str, type[Options]] = {
    "run": Run,
    "profile": Profile,
    "damage": Damage,
    "plan": Plan,
    "quantize": Quantize,
    "evaluate": Evaluate,
    "verify": Verify,
    "export": Export,
    "show": Show,
    "models": Models,
    "law data": LawData,
    "law forms": LawForms,
    "law fit": LawFit,
    "law predict": LawPredict,
}

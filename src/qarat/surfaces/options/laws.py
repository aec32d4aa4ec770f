"""Options of the `law` verbs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from qarat.surfaces.options.groups import Conditions, Out, Printing


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

    data: Positional[Annotated[tuple[str, ...], arg(metavar="DATA ...", help_behavior_hint="")]]
    """CSV files, or tables' names (see `qarat law data`); of several, the rows are joined."""
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
    """Parameters as the law's data count them, such as 70B; those of `qarat sweep` leave out embeddings and head."""
    tokens: Annotated[str | None, arg(metavar="N", help_behavior_hint="")] = None
    """Training tokens, such as 2T."""
    ratio: Annotated[float | None, arg(metavar="SHARE", help_behavior_hint="")] = None
    """Q_r: the low share, 0 to 1, of what the law's data take it of."""
    block: Annotated[float | None, arg(metavar="N", help_behavior_hint="")] = None
    """Q_b: values that share one scale."""
    bits: Annotated[float | None, arg(metavar="N", help_behavior_hint="")] = None
    """Bits a weight, averaged over all sites."""
    general: Printing = field(default_factory=Printing)


@dataclass(frozen=True, kw_only=True)
class LawCheck:
    """Check a law by measurements that it has not seen: predicted, measured, and how far off."""

    law: Positional[Annotated[str, arg(metavar="LAW")]]
    """A file from `qarat law fit`, or a published law by name (see `qarat law forms`)."""
    data: Positional[Annotated[tuple[str, ...], arg(metavar="DATA ...", help_behavior_hint="")]]
    """CSV files, or tables' names (see `qarat law data`); of several, the rows are joined."""
    form: Annotated[str | None, arg(metavar="FORM", help_behavior_hint="(default: the best one)")] = None
    """Which form, where the law has several."""
    of: Annotated[Literal["loss", "ratio"] | None, arg(help_behavior_hint="(default: loss; of size-share ratio)")] = (
        None
    )
    """The loss increase at each row's ratio, or the ratio that each row's loss allows, as in tables of budgets."""
    where: Conditions = ()
    """Only rows that meet these, such as model=Qwen1.5-7B or 'block<=512'."""
    general: Printing = field(default_factory=Printing)

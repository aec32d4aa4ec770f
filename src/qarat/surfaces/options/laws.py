"""Options of the `law` verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from qarat.surfaces.options.groups import IntoFile, Reading


class LawDataOptions(Reading, IntoFile, frozen=True, kw_only=True):
    """List the measurements that ship with qarat, with source and known defects, or show one table.

    Attributes:
        table: A table's name, or a CSV file of your own to be checked and shown. (default: list them all)
        where: Only rows that meet these, such as model=Qwen1.5-7B or 'block<=512'.
        out: Write the rows as CSV: a pattern for a table of your own. (default: nowhere)
        overwrite: Replace FILE if it is there.
    """

    table: Positional[str] = ""
    where: tuple[str, ...] = ()
    out: Path | None = None
    overwrite: bool = False


class LawFormsOptions(Reading, frozen=True, kw_only=True):
    """List the forms of laws: equation, source, what each needs, and printed coefficients."""


class LawFitOptions(Reading, IntoFile, frozen=True, kw_only=True):
    """Fit a law, or every form side by side, to measurements.

    Attributes:
        data: CSV files, or tables' names (see `qarat law data`); of several, the rows are joined.
        form: A form's name (see `qarat law forms`); all compares them by their error on sizes left out.
        where: Only rows that meet these, such as model=Qwen1.5-7B or 'block<=512'.
        method: Huber's loss or least squares, both of the logarithm; paper: what the form's authors took.
        standard_error: Of rows that have none; points at or below zero cannot count without. (default: none)
        draws: Bootstrap samples behind the intervals; 0 for no intervals.
        seed: Of starts and bootstrap samples.
        out: Where the law goes.
        overwrite: Replace FILE if it is there.
    """

    data: Positional[tuple[str, ...]]
    form: str = "all"
    where: tuple[str, ...] = ()
    method: Literal["paper", "huber", "ols"] = "paper"
    standard_error: float | None = None
    draws: int = 500
    seed: int = 0
    out: Path = Path("law.json")
    overwrite: bool = False


class LawPredictOptions(Reading, frozen=True, kw_only=True):
    """Ask a law: give every variable of its form but one, and it answers with that one.

    Attributes:
        law: A file from `qarat law fit`, or a published law by name (see `qarat law forms`), such as undertraining.
        form: Which form, where the law has several. (default: the best one)
        budget: Loss increase: ppl+5% or nats+0.05. Left out, the law predicts it.
        size: Parameters as the law's data count them, such as 70B; those of `qarat sweep` leave out embeddings and
            head.
        tokens: Training tokens, such as 2T.
        ratio: Q_r: the low share, 0 to 1, of what the law's data take it of.
        block: Q_b: values that share one scale.
        bits: Bits a weight, averaged over all sites.
    """

    law: Positional[str]
    form: str | None = None
    budget: str | None = None
    size: str | None = None
    tokens: str | None = None
    ratio: float | None = None
    block: float | None = None
    bits: float | None = None


class LawCheckOptions(Reading, frozen=True, kw_only=True):
    """Check a law by measurements that it has not seen: predicted, measured, and how far off.

    Attributes:
        law: A file from `qarat law fit`, or a published law by name (see `qarat law forms`).
        data: CSV files, or tables' names (see `qarat law data`); of several, the rows are joined.
        form: Which form, where the law has several. (default: the best one)
        of: The loss increase at each row's ratio, or the ratio that each row's loss allows, as in tables of budgets.
            (default: loss; of size-share ratio)
        where: Only rows that meet these, such as model=Qwen1.5-7B or 'block<=512'.
    """

    law: Positional[str]
    data: Positional[tuple[str, ...]]
    form: str | None = None
    of: Literal["loss", "ratio"] | None = None
    where: tuple[str, ...] = ()

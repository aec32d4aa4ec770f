"""The steps of a whole run, and its story told from what they left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qarat.jobs.folder import CONTINUE, DAMAGE, PROFILE, PROTECT, Step, read_manifest
from qarat.jobs.open_any import RUN_MODEL
from qarat.values.parsing import input_scheme
from qarat.values.records.scores import Divergence, Evaluation
from qarat.values.records.streams import ActivationStats

Shower = Callable[..., None]
"""Called with records, and keywords that say how to show them."""

LABELS = ("float", "naive", "plan")
KIND, MODEL = "run", RUN_MODEL
TITLES = {
    "profile": "Where the spikes are",
    "damage": "What each site would cost, predicted",
    "protection": "Protecting what is predicted to cost most, measured",
    "plan": "The plan",
    "divergence": "How often float's likeliest token stays the likeliest",
    "continue": "One prompt, continued greedily: an example, as where two texts part is chance",
}


BEFORE = Step[ActivationStats]("profile before", ("before.safetensors",))
QUANTIZE = Step[Any]("quantize", (MODEL,))  # a folder, which is no record
EVALUATE = tuple(Step[Evaluation](f"evaluate {label}", (f"evaluation-{label}.json",)) for label in LABELS)
WITHOUT = {
    part: Step[Evaluation](f"evaluate without {part}", (f"evaluation-without-{part}.json",))
    for part in ("protection", "transforms")
}
"""Of a plan that has both: what each of them alone would lose."""
DIVERGE = Step[tuple[Divergence, Divergence]]("divergence", ("divergence-naive.json", "divergence-plan.json"))
DIVERGED_ON = 8192
"""Tokens of the report that both models' predictions are compared on, one by one: each is a whole vocabulary."""
OPTIONAL = {step.name: step.files for step in WITHOUT.values()}
STEPS: dict[str, tuple[str, ...]] = {
    step.name: step.files for step in (PROFILE, DAMAGE, PROTECT, QUANTIZE, *EVALUATE, DIVERGE, CONTINUE)
}
"""What each step writes, in the order they are done."""


def show_run(folder: Path, show: Shower, low: str) -> tuple[str, ...]:
    """Tell the story of a run from its files, as far as it has come.

    Args:
        folder: Of the run, finished or not.
        show: Called with the records.
        low: Scheme under which stats are shown where there is no plan yet.

    Returns:
        The steps that are missing; none if the run is finished.

    Raises:
        UserError: If the folder holds no run.
    """
    done = read_manifest(folder).steps
    missing = tuple(step for step in STEPS if step not in done)
    if "profile" in done:
        show_stats(folder, show, PROTECT.read(folder)[0].low if "plan" in done else low)
    if {"damage", "plan"} <= done.keys():
        show_choices(folder, show)
    elif "damage" in done:
        show(DAMAGE.read(folder), title=TITLES["damage"])
    if not any(step.startswith("evaluate") for step in missing):
        show_outcome(folder, show)
    if DIVERGE.name in done:
        show_divergence(folder, show)
    if "continue" in done:
        show_continuations(folder, show)
    return missing


def show_stats(folder: Path, show: Shower, low: str) -> None:
    """The spikes of the model as it was asked for: transforms may have taken them away."""
    first = BEFORE if BEFORE.name in read_manifest(folder).steps else PROFILE
    show(first.read(folder), title=TITLES["profile"], low=input_scheme(low))


def show_choices(folder: Path, show: Shower) -> None:
    """Prices, measured plans and the plan."""
    plan, protection = PROTECT.read(folder)
    show(DAMAGE.read(folder), plan=plan, title=TITLES["damage"])
    show(protection, plan=plan, title=TITLES["protection"])
    show(plan, protection=protection, title=TITLES["plan"])


def show_outcome(folder: Path, show: Shower) -> None:
    """Losses on the report tokens, of the plan's parts alone as well where they were measured."""
    without = [step for step in WITHOUT.values() if step.name in read_manifest(folder).steps]
    records = (step.read(folder) for step in (*EVALUATE, *without))
    show(*records, title="What it cost, on the report tokens")


def show_divergence(folder: Path, show: Shower) -> None:
    """How far from float's the predictions are, token by token."""
    show(*DIVERGE.read(folder), title=TITLES["divergence"])


def show_continuations(folder: Path, show: Shower) -> None:
    """How the models continue a prompt, where memory had room for them."""
    if (record := CONTINUE.read(folder)).texts:
        show(record, title=TITLES["continue"])

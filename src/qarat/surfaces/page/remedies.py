"""What each thing that a run did against the loss bought: measured where the run measured it, else predicted."""

from __future__ import annotations

import math

from qarat.surfaces.page.figures.losses import Remedy
from qarat.surfaces.page.story import Story
from qarat.surfaces.tables.data import DataTable, numbers, table, texts
from qarat.surfaces.tables.scores import arm_label
from qarat.surfaces.tables.wording import count, decimals, fixed, listed, share
from qarat.values.fingerprints import changes_of
from qarat.values.plans import Plan
from qarat.values.records.prices import NATS, Menu, Protection
from qarat.values.records.rewrites import Rewrites
from qarat.values.records.scores import Evaluation
from qarat.values.sites import short_name

_STREAMS = 8  # of the rewritten streams, those that a table has


def remedies(story: Story) -> list[Remedy]:
    """Everything low, what parts of the plan do alone, and the plan; of evaluations without a plan, those."""
    plan, measured = story.one(Plan), {e.label: e for e in story.evaluations if e.label != "float"}
    if plan is None or "plan" not in measured:
        return [Remedy(arm_label(e), e, group=e.label) for e in measured.values()]
    done, kept = done_words(plan.model), count(len(story.protected), "site") + " in float"
    low, all_of_it = _predicted_low(story), listed([*done, *([kept] if story.protected else [])] or ["everything low"])
    remedies = [Remedy(_naive_label(measured["naive"]), measured["naive"], _predicted_naive(story), "naive")]
    if done and story.protected:
        remedies.append(Remedy(f"{listed(done)} alone", measured.get("without protection"), low, "part"))
        if alone := measured.get("without transforms"):
            remedies.append(Remedy(f"{kept} alone", alone, group="part"))
    remedies.append(Remedy(f"{all_of_it}: the plan", measured["plan"], _predicted_plan(story, low), "plan"))
    named = [remedy.measured for remedy in remedies]
    return remedies + [Remedy(arm_label(e), e, group=e.label) for e in measured.values() if e not in named]


def done_words(model: str) -> list[str]:
    """What was done to the float model, as one says it."""
    return ["rewrites" if word.startswith("rewrite") else word for word in changes_of(model)]


def _naive_label(naive: Evaluation) -> str:
    done = done_words(naive.provenance.model)
    return f"naive: everything low, with {listed(done)}" if done else "naive: everything low"


def _predicted_naive(story: Story) -> float:
    """Of the model as it was asked for; its rewrites know it, and without those its prices."""
    plan, rewrites, menu = story.one(Plan), story.one(Rewrites), story.one(Menu)
    if rewrites is not None:
        return rewrites.naive
    if plan is None or menu is None or not menu.in_nats or changes_of(plan.model):
        return math.nan
    return math.fsum(menu.damages(plan.low).values())


def _predicted_low(story: Story) -> float:
    """Of the planned model with nothing protected."""
    sweep = story.one(Protection)
    if sweep is None or sweep.unit != NATS or sweep.trials[0].sites:
        return math.nan
    return sweep.predicted[0]


def _predicted_plan(story: Story, low: float) -> float:
    sweep = story.one(Protection)
    if sweep is None or sweep.unit != NATS:
        return low
    own = (p for p, t in zip(sweep.predicted, sweep.trials, strict=True) if frozenset(t.sites) == sweep.protected)
    return next(own, math.nan)


def rewritten_streams(story: Story) -> DataTable | None:
    """The streams that would cost most, before and after rewrites, predicted; None where nothing was rewritten."""
    plan, rewrites = story.one(Plan), story.one(Rewrites)
    columns = [word for word in changes_of(plan.model) if word.startswith("rewrite/")] if plan else []
    if rewrites is None or not columns:
        return None
    after = rewrites.choose(int(columns[0].partition("/")[2]))
    dearest = sorted(rewrites.streams, key=lambda s: -s.naive)[:_STREAMS]
    digits = decimals([s.naive for s in dearest])
    rows = [
        (
            short_name(s.stream),
            fixed(s.naive, digits),
            share(s.naive, rewrites.naive),
            fixed(after[s.stream].damage, digits),
        )
        for s in dearest
    ]
    heads = ("before (nats)", "of all before (%)", "after (nats)")
    return table((*texts("stream", wrap=False), *numbers(*heads)), rows)

"""Records as tables for the terminal, up to 100 columns wide; they also read well without colour.

`render` takes any record; keyword arguments give it other records to set beside it. `compare` and `continuations` show
what a plan cost: in perplexity, and in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

from rich.console import Group, RenderableType

from qarat.ground.runtime import Estimate
from qarat.jobs.spike_study.published import PublishedResults
from qarat.model.checkpoints import ReferenceModel
from qarat.stages.laws.forms import Catalog
from qarat.stages.laws.tables import Table
from qarat.surfaces.tables.accuracy import compare_accuracy, show_accuracy
from qarat.surfaces.tables.choices import show_menu, show_plan, show_sweep
from qarat.surfaces.tables.comparison import show_comparison
from qarat.surfaces.tables.continuations import continuations
from qarat.surfaces.tables.divergences import show_divergence
from qarat.surfaces.tables.law_checks import show_law_check
from qarat.surfaces.tables.laws import show_forms, show_law, show_prediction, show_table, show_tables
from qarat.surfaces.tables.layout import words
from qarat.surfaces.tables.listings import show_estimate, show_models
from qarat.surfaces.tables.prices import show_check, show_checks, show_measurements
from qarat.surfaces.tables.ratios import show_ratio_study, show_sweep_of_family
from qarat.surfaces.tables.scores import compare, show_evaluation
from qarat.surfaces.tables.search import show_search
from qarat.surfaces.tables.spike_study import show_published, show_spike_study
from qarat.surfaces.tables.streams import show_stats
from qarat.surfaces.tables.verification import show_verification
from qarat.values.plans import Plan
from qarat.values.records.comparison import Comparison
from qarat.values.records.family import FamilySweep
from qarat.values.records.law import Law, LawCheck, Prediction
from qarat.values.records.prices import Menu, MetricCheck, SiteMeasurements
from qarat.values.records.protection import Protection
from qarat.values.records.ratios import RatioStudy
from qarat.values.records.scores import Continuations, Divergence, Evaluation, ZeroShot
from qarat.values.records.search import SearchResult
from qarat.values.records.spike_study import SpikeStudy
from qarat.values.records.streams import ActivationStats
from qarat.values.records.verification import Verification


@singledispatch
def render(record: object, **context: Any) -> RenderableType:
    """A record as something rich can print.

    Args:
        record: Activation stats, a menu, a plan, a sweep, an evaluation or a verification.
        **context: Of stats ``low`` (the low scheme's input, or None); of a menu ``plan``, ``sites`` and ``sweep``; of a
            plan ``sweep``.

    Raises:
        UserError: If the context belongs to another model.
    """
    raise TypeError(f"no report of a {type(record).__name__}")


render.register(ActivationStats, show_stats)
render.register(Menu, show_menu)
render.register(MetricCheck, show_check)
render.register(Plan, show_plan)
render.register(RatioStudy, show_ratio_study)
render.register(SearchResult, show_search)
render.register(SiteMeasurements, show_measurements)
render.register(Protection, show_sweep)
render.register(FamilySweep, show_sweep_of_family)
render.register(SpikeStudy, show_spike_study)
render.register(PublishedResults, show_published)
render.register(Evaluation, show_evaluation)
render.register(Comparison, show_comparison)
render.register(Divergence, show_divergence)
render.register(Verification, show_verification)
render.register(ZeroShot, show_accuracy)


@render.register
def _(record: Continuations) -> RenderableType:
    return continuations(record.prompt, record.texts)


render.register(Estimate, show_estimate)
render.register(Law, show_law)
render.register(LawCheck, show_law_check)
render.register(Prediction, show_prediction)
render.register(Catalog, show_forms)
render.register(Table, show_table)


def render_all(records: Sequence[object], **context: Any) -> RenderableType:
    """Several records as one: evaluations and scores compared with the first, metrics and models listed, or a row."""
    if len(records) > 1 and all(isinstance(r, Evaluation) for r in records):
        return compare([r for r in records if isinstance(r, Evaluation)])
    if len(records) > 1 and all(isinstance(r, ZeroShot) for r in records):
        return compare_accuracy([r for r in records if isinstance(r, ZeroShot)])
    if len(records) > 1 and all(isinstance(r, MetricCheck) for r in records):
        return show_checks([r for r in records if isinstance(r, MetricCheck)])
    if len(records) > 1 and all(isinstance(r, Table) for r in records):
        return show_tables([r for r in records if isinstance(r, Table)])
    if records and all(isinstance(r, ReferenceModel) for r in records):
        return show_models([r for r in records if isinstance(r, ReferenceModel)])
    return Group(*(render(r, **context) for r in records))


def ending(lines: Sequence[str]) -> RenderableType:
    """The last lines of a command: what was written, and what to do next.

    A path or a command in them must survive being copied: print it with ``soft_wrap=True``.
    """
    return words("\n".join(lines))

"""Records as tables for the terminal, up to 100 columns wide; they also read well without colour.

`render` takes any record; keyword arguments give it other records to set beside it. `compare` and `continuations` show
what a plan cost: in perplexity, and in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

from rich.console import Group, RenderableType

from qarat.checkpoints import ReferenceModel
from qarat.comparisons import Comparison
from qarat.divergences import Divergence
from qarat.lawrecords import Law, LawCheck, Prediction
from qarat.laws.forms import Catalog
from qarat.laws.tables import Table
from qarat.metricrecords import MetricCheck, SiteMeasurements
from qarat.plans import Plan
from qarat.records import ActivationStats, Continuations, Evaluation, Menu, Sweep, ZeroShot
from qarat.report.accuracy import compare_accuracy, show_accuracy
from qarat.report.activations import show_stats
from qarat.report.choices import show_menu, show_plan, show_sweep
from qarat.report.comparisons import show_comparison
from qarat.report.continuations import continuations
from qarat.report.divergences import show_divergence
from qarat.report.law_checks import show_law_check
from qarat.report.laws import show_forms, show_law, show_prediction, show_table, show_tables
from qarat.report.layout import words
from qarat.report.listings import show_estimate, show_models
from qarat.report.metrics import show_check, show_checks, show_measurements
from qarat.report.outcomes import compare, show_evaluation
from qarat.report.searches import show_search
from qarat.report.spike_studies import show_published, show_spike_study
from qarat.report.studies import show_ratio_study, show_sweep_of_family
from qarat.report.verdicts import show_verification
from qarat.searches import SearchResult
from qarat.spikestudies import SpikeStudy
from qarat.spikestudy.published import Figures
from qarat.studies import FamilySweep, RatioStudy
from qarat.verifications import Verification
from qarat.workspace import Estimate

__all__ = ["compare", "continuations", "ending", "render", "render_all"]


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
render.register(Sweep, show_sweep)
render.register(FamilySweep, show_sweep_of_family)
render.register(SpikeStudy, show_spike_study)
render.register(Figures, show_published)
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

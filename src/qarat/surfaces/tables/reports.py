"""Which function makes the report of a record: one line for each kind.

By name, so that a module, and whatever it reads a record with, is imported when its first record is shown: a law or a
list of models is shown without torch.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

from qarat.surfaces.tables.data import Part


class _Kind(NamedTuple):
    """Where the reports of a kind are made: of one record, and of several side by side, where that is more."""

    module: str
    one: str
    several: str = ""


_KINDS = {
    "ActivationStats": _Kind("streams", "show_stats"),
    "Advice": _Kind("advice", "show_advice"),
    "CalibrationStudy": _Kind("calibration_study", "show_calibration_study"),
    "Catalog": _Kind("law_data", "show_forms"),
    "Comparison": _Kind("scores", "show_comparison"),
    "Continuations": _Kind("scores", "show_continuations"),
    "Divergence": _Kind("scores", "show_divergence", "compare_divergence"),
    "EngineSpeed": _Kind("speed", "show_speed"),
    "Estimate": _Kind("listings", "show_estimate"),
    "Evaluation": _Kind("scores", "show_evaluation", "compare"),
    "FamilySweep": _Kind("ratios", "show_family_sweep"),
    "Law": _Kind("laws", "show_law"),
    "LawCheck": _Kind("laws", "show_law_check"),
    "Menu": _Kind("choices", "show_menu"),
    "MetricCheck": _Kind("prices", "show_check", "show_checks"),
    "Plan": _Kind("choices", "show_plan"),
    "Prediction": _Kind("laws", "show_prediction"),
    "Protection": _Kind("choices", "show_protection"),
    "PublishedResults": _Kind("spike_study", "show_published"),
    "RatioStudy": _Kind("ratios", "show_ratio_study"),
    "ReferenceModel": _Kind("listings", "", "show_models"),
    "SearchResult": _Kind("search", "show_search"),
    "SiteMeasurements": _Kind("prices", "show_measurements"),
    "SpikeStudy": _Kind("spike_study", "show_spike_study"),
    "Table": _Kind("law_data", "show_table", "show_tables"),
    "Verification": _Kind("verification", "show_verification"),
    "ZeroShot": _Kind("scores", "show_accuracy", "compare_accuracy"),
}


def report_of(*records: object, **context: Any) -> tuple[Part, ...]:
    """The report of a record; several of a kind stand side by side where they can, others one after the other.

    Args:
        *records: Of any kinds.
        **context: Of stats ``low`` (the low scheme's input, or None); of a menu ``plan`` and ``sites``; of a plan
            ``protection``; of a protection ``plan``.

    Raises:
        TypeError: There is no report of such a thing.
        UserError: The context belongs to another model; the records do not belong together.
    """
    kinds = {_kind(record) for record in records}
    if len(kinds) == 1 and (kind := next(iter(kinds))).several and (len(records) > 1 or not kind.one):
        return tuple(_function(kind.module, kind.several)(records))
    functions = ((_function(kind.module, kind.one), record) for record in records for kind in [_kind(record)])
    return tuple(part for function, record in functions for part in function(record, **context))


def _kind(record: object) -> _Kind:
    name = type(record).__name__
    if name not in _KINDS:
        raise TypeError(f"no report of a {name}")
    return _KINDS[name]


def _function(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"qarat.surfaces.tables.{module}"), name)

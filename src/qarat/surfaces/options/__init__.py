"""Options: what each verb can be asked, as frozen values.

The command line, its help and the names that ``--config`` knows are made from the fields and docstrings of these
structs (`qarat.surfaces.options.arguments`). The command of a verb stands in the module of `qarat.surfaces.commands`
that is called as the one of its options here. Nothing here imports torch, so help and a mistyped option answer at once.
"""

from __future__ import annotations

from qarat.surfaces.options.advising import AdviseOptions
from qarat.surfaces.options.folders import ExportOptions, RunOptions, VerifyOptions
from qarat.surfaces.options.groups import Group
from qarat.surfaces.options.laws import (
    LawCheckOptions,
    LawDataOptions,
    LawFitOptions,
    LawFormsOptions,
    LawPredictOptions,
)
from qarat.surfaces.options.measuring import BenchOptions, CompareOptions, EvaluateOptions
from qarat.surfaces.options.reading import CompletionOptions, ModelsOptions, ReportOptions, ShowOptions
from qarat.surfaces.options.searching import SearchOptions, StudyRatioOptions, StudySpikesOptions, SweepOptions
from qarat.surfaces.options.steps import DamageOptions, PlanOptions, ProfileOptions, QuantizeOptions
from qarat.surfaces.options.studying import StudyCalibrationOptions

__all__ = ["VERBS"]

VERBS: dict[str, type[Group]] = {
    "run": RunOptions,
    "advise": AdviseOptions,
    "profile": ProfileOptions,
    "damage": DamageOptions,
    "plan": PlanOptions,
    "search": SearchOptions,
    "quantize": QuantizeOptions,
    "evaluate": EvaluateOptions,
    "compare": CompareOptions,
    "verify": VerifyOptions,
    "bench": BenchOptions,
    "export": ExportOptions,
    "show": ShowOptions,
    "report": ReportOptions,
    "study spikes": StudySpikesOptions,
    "models": ModelsOptions,
    "study ratio": StudyRatioOptions,
    "study calibration": StudyCalibrationOptions,
    "sweep": SweepOptions,
    "law data": LawDataOptions,
    "law forms": LawFormsOptions,
    "law fit": LawFitOptions,
    "law predict": LawPredictOptions,
    "law check": LawCheckOptions,
    "completion": CompletionOptions,
}

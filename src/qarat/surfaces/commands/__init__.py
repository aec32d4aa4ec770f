"""Commands: one function per verb, paths in, paths out; each puts stages together and holds no logic of its own.

A command takes the options of its verb and a screen, and returns the last lines to be said: what was written, and what
to try next.
"""

from __future__ import annotations

from qarat.surfaces.commands.folders import export, models, run, show, verify
from qarat.surfaces.commands.laws import law_check, law_data, law_fit, law_forms, law_predict
from qarat.surfaces.commands.measuring import compare, evaluate
from qarat.surfaces.commands.reporting import report
from qarat.surfaces.commands.search import search
from qarat.surfaces.commands.spike_study import study_spikes
from qarat.surfaces.commands.steps import damage, plan, profile, quantize
from qarat.surfaces.commands.studies import study_ratio, sweep

__all__ = [
    "compare",
    "damage",
    "evaluate",
    "export",
    "law_check",
    "law_data",
    "law_fit",
    "law_forms",
    "law_predict",
    "models",
    "plan",
    "profile",
    "quantize",
    "report",
    "run",
    "search",
    "show",
    "study_ratio",
    "study_spikes",
    "sweep",
    "verify",
]

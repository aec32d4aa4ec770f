"""Options: what each verb can be asked, as frozen values.

The command line, its help and the names that ``--config`` knows are made from these fields and the words below them.
Nothing here imports torch, so help and a mistyped option answer at once.
"""

from __future__ import annotations

from qarat.surfaces.options.folders import Export, Models, Run, Show, Verify
from qarat.surfaces.options.groups import BUNDLED, General, Machine, Planning, Printing, Text
from qarat.surfaces.options.laws import LawCheck, LawData, LawFit, LawForms, LawPredict
from qarat.surfaces.options.measuring import Compare, Evaluate, Measure
from qarat.surfaces.options.reporting import Report
from qarat.surfaces.options.search import Runners, Search
from qarat.surfaces.options.spike_study import StudySpikes
from qarat.surfaces.options.steps import Damage, Plan, Profile, Quantize
from qarat.surfaces.options.studies import StudyRatio, Sweep
from qarat.values.schemes import LOW

__all__ = [
    "BUNDLED",
    "LOW",
    "VERBS",
    "Compare",
    "Computing",
    "Damage",
    "Evaluate",
    "Export",
    "General",
    "LawCheck",
    "LawData",
    "LawFit",
    "LawForms",
    "LawPredict",
    "Machine",
    "Measure",
    "Models",
    "Options",
    "Plan",
    "Planning",
    "Printing",
    "Profile",
    "Quantize",
    "Report",
    "Run",
    "Runners",
    "Search",
    "Searching",
    "Show",
    "StudyRatio",
    "StudySpikes",
    "Sweep",
    "Text",
    "Verify",
]

Computing = Profile | Search | StudyRatio | StudySpikes | Damage | Plan | Quantize | Evaluate | Verify | Run
Laws = LawData | LawForms | LawFit | LawPredict | LawCheck
Searching = Search | StudyRatio | Sweep
Options = Computing | Sweep | Compare | Export | Report | Show | Models | Laws
VERBS: dict[str, type[Options]] = {
    "run": Run,
    "profile": Profile,
    "damage": Damage,
    "plan": Plan,
    "search": Search,
    "quantize": Quantize,
    "evaluate": Evaluate,
    "compare": Compare,
    "verify": Verify,
    "export": Export,
    "show": Show,
    "report": Report,
    "study spikes": StudySpikes,
    "models": Models,
    "study ratio": StudyRatio,
    "sweep": Sweep,
    "law data": LawData,
    "law forms": LawForms,
    "law fit": LawFit,
    "law predict": LawPredict,
    "law check": LawCheck,
}

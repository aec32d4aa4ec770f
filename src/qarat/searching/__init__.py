"""Searching: stats and prices become the plans that budgets allow. Where the stages of a search are put together.

A job is steps in a folder, like a run: profile (only where scales are static), price, search, and the chosen plans
measured on the report tokens. The trial log lies beside them, so a killed search goes on from its last plan. Studies
and sweeps are many such jobs, each a folder and a step of a larger run.
"""

from __future__ import annotations

from qarat.searching.job import MENU, RESULT, STATS, TRIALS, SearchJob, plan_file, search_plans
from qarat.searching.nested import SEARCHES, count_plans, is_searching
from qarat.searching.request import POINTS, SearchRequest
from qarat.searching.setting import Member, Setting
from qarat.searching.study import STUDY, StudyJob, StudyRequest
from qarat.searching.sweep import BUDGET_TABLE, LOSS_TABLE, SWEEP, SweepJob, SweepRequest

__all__ = [
    "BUDGET_TABLE",
    "LOSS_TABLE",
    "MENU",
    "POINTS",
    "RESULT",
    "SEARCHES",
    "STATS",
    "STUDY",
    "SWEEP",
    "TRIALS",
    "Member",
    "SearchJob",
    "SearchRequest",
    "Setting",
    "StudyJob",
    "StudyRequest",
    "SweepJob",
    "SweepRequest",
    "count_plans",
    "is_searching",
    "plan_file",
    "search_plans",
]

"""Searching: stats and prices become the plans that budgets allow. Where the stages of a search are put together.

A job is steps in a folder, like a run: profile (only where scales are static), price, search, and the chosen plans
measured on the report tokens. The trial log lies beside them, so a killed search goes on from its last plan.
"""

from __future__ import annotations

from qarat.searching.job import MENU, RESULT, STATS, TRIALS, SearchJob, plan_file
from qarat.searching.request import POINTS, SearchRequest

__all__ = ["MENU", "POINTS", "RESULT", "STATS", "TRIALS", "SearchJob", "SearchRequest", "plan_file"]

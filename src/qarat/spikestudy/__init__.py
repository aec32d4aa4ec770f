"""The spike study: protecting a few sites, beside controls and general-purpose methods.

A study is steps in a folder, like a run: profile, price and plan at the main setting, choose what methods leave open,
then every arm on the report tokens, each kept in a log as it is measured; so a killed study goes on from its last arm.
"""

from __future__ import annotations

from qarat.spikestudy.folders import is_study, read_study
from qarat.spikestudy.job import RESULT, StudyJob
from qarat.spikestudy.published import PUBLISHED
from qarat.spikestudy.request import EXTENTS, METHODS, ORDERS, StudyRequest
from qarat.spikestudy.worlds import StudyTokens

__all__ = [
    "EXTENTS",
    "METHODS",
    "ORDERS",
    "PUBLISHED",
    "RESULT",
    "StudyJob",
    "StudyRequest",
    "StudyTokens",
    "is_study",
    "read_study",
]

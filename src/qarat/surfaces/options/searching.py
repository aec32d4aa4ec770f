"""Options of the verbs that search, once or many times: `search`, `study ratio` and `sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from tyro.conf import Positional

from qarat.surfaces.options.groups import BUNDLED, General, Group, IntoFolder, Machine, Runners, Text
from qarat.values.requests.search import SearchRequest
from qarat.values.requests.studies import FamilyRequest, RatioRequest


class SearchOptions(IntoFolder, frozen=True, kw_only=True):
    """Find how much of a model can go low within a budget, measured, and write the plans.

    Attributes:
        out: Folder to write. Work goes on in FOLDER.partial; after a kill the same command continues it.
            (default: MODEL-search)
        keep: Bound on hidden states kept between measurements, such as 2GB. It changes time, never results.
            (default: a quarter of --memory)
    """

    SUFFIX = "search"

    keep: str | None = None
    search: SearchRequest = SearchRequest()
    runners: Runners = Runners()
    text: Text = Text()
    machine: Machine = Machine()
    general: General = General()


class StudyRatioOptions(IntoFolder, frozen=True, kw_only=True):
    """Compare predicted search with the best of 50 random plans, ratio by ratio, and what loss budgets reach.

    Attributes:
        out: Folder to write. Work goes on in FOLDER.partial; after a kill the same command continues it.
            (default: MODEL-ratio)
        keep: Bound on hidden states kept between measurements, such as 2GB. It changes time, never results.
            (default: a quarter of --memory)
    """

    SUFFIX = "ratio"

    keep: str | None = None
    study: RatioRequest = RatioRequest()
    runners: Runners = Runners()
    text: Text = Text()
    machine: Machine = Machine()
    general: General = General()


class SweepOptions(Group, frozen=True, kw_only=True):
    """Search a family of models over ratios, formats and block sizes: the table that laws are fitted to.

    Attributes:
        models: Hugging Face folders, reference models' names (see `qarat models`), or hub ids.
        out: Folder to write: sweep.csv, budgets.csv, and every search. After a kill the same command continues it.
        overwrite: Replace FOLDER if it is there.
        keep: Bound on hidden states kept between measurements, such as 2GB. It changes time, never results.
            (default: a quarter of --memory)
    """

    METAVARS: ClassVar[dict[str, str]] = {"out": "FOLDER"}

    models: Positional[tuple[str, ...]] = (BUNDLED,)
    out: Path = Path("sweep")
    overwrite: bool = False
    keep: str | None = None
    sweep: FamilyRequest = FamilyRequest()
    runners: Runners = Runners()
    text: Text = Text()
    machine: Machine = Machine()
    general: General = General()

"""Options of the verbs that search or study, once or many times."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from tyro.conf import Positional

from qarat.model.mixtures import check_texts
from qarat.surfaces.options.groups import BUNDLED, IntoFolder, OnText, Runners, Searching, Text, check_models
from qarat.values.budgets import parse_size
from qarat.values.requests.search import SearchRequest
from qarat.values.requests.spike_study import SpikeRequest
from qarat.values.requests.studies import FamilyRequest, RatioRequest


class SearchOptions(Searching, frozen=True, kw_only=True):
    """Find how much of a model can go low within a budget, measured, and write the plans.

    Attributes:
        out: Folder to write. Work goes on in FOLDER.partial; after a kill the same command continues it.
            (default: MODEL-search)
        page: Leave the page (FOLDER/report.html) and its figures out.
    """

    SUFFIX = "search"

    page: bool = True

    search: SearchRequest = SearchRequest()


class StudyRatioOptions(Searching, frozen=True, kw_only=True):
    """Compare predicted search with the best of 50 random plans, ratio by ratio, and what budgets reach.

    Attributes:
        out: Folder to write. Work goes on in FOLDER.partial; after a kill the same command continues it.
            (default: MODEL-ratio)
    """

    SUFFIX = "ratio"

    study: RatioRequest = RatioRequest()


class SweepOptions(OnText, frozen=True, kw_only=True):
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

    def check(self) -> None:
        """Refuse models that are not there, and what is no size."""
        super().check()
        check_models(self.models)
        if self.keep is not None:
            parse_size("keep", self.keep)


REPORT_WINDOWS = 128  # fewer than elsewhere: there are some two hundred arms


class StudySpikesOptions(IntoFolder, frozen=True, kw_only=True):
    """Measure what protecting a few sites buys, beside controls and other methods, in INT8 and INT6.

    Attributes:
        out: Folder to write. Work goes on in FOLDER.partial; after a kill the same command continues it, arm by arm.
            (default: MODEL-spikes)
        quick: INT8 and INT6 per channel with static inputs alone, fewer controls, orders of at most two sites.
        full: Orders at every static setting, methods at every setting that they fit, five random controls everywhere.
        other_calibration: Text of another kind than the report, as --calibration takes it, to calibrate on for
            comparison. (default: not compared)
        published: List the figures that others published, with source and scheme, and measure nothing.
    """

    SUFFIX = "spikes"
    HIDDEN: ClassVar[tuple[str, ...]] = ("SpikeRequest.extent",)  # quick and full say it

    quick: bool = False
    full: bool = False
    other_calibration: str | None = None
    published: bool = False
    study: SpikeRequest = SpikeRequest()
    text: Text = Text(report_samples=REPORT_WINDOWS)

    def check(self) -> None:
        """As all verbs, where something is to be measured."""
        if not self.published:
            super().check()
            if self.other_calibration is not None:
                check_texts([self.other_calibration])

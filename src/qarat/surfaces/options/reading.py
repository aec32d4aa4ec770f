"""Options of the verbs that only read: `show`, `report` and `models`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from tyro.conf import Positional

from qarat.surfaces.options.groups import Reading
from qarat.values.schemes import LOW


class ShowOptions(Reading, frozen=True, kw_only=True):
    """Print what a file or a run's folder holds, or compare evaluations with the first.

    Attributes:
        paths: Files of stats, prices, plans, searches or evaluations, or the folder of a run, finished or not.
        low: Scheme under which stats are shown.
    """

    paths: Positional[tuple[Path, ...]]
    low: str = LOW


class ReportOptions(Reading, frozen=True, kw_only=True):
    """Write one HTML page about a run, finished or not, or about records, and every figure as SVG and PNG.

    Attributes:
        paths: The folder of a run, or files of records such as a law's.
        out: Folder for report.html and figures/; what else is in it stays. (default: the run's own, or report)
    """

    METAVARS: ClassVar[dict[str, str]] = {"out": "FOLDER"}

    paths: Positional[tuple[Path, ...]]
    out: Path | None = None


class ModelsOptions(Reading, frozen=True, kw_only=True):
    """List the reference models; their names are accepted wherever a MODEL is."""

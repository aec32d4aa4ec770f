"""Options of `qarat report`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from qarat.surfaces.options.groups import Printing


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one HTML page about a run, finished or not, or about records, and every figure as SVG and PNG."""

    paths: Positional[Annotated[tuple[Path, ...], arg(metavar="PATH ...", help_behavior_hint="")]]
    """The folder of a run, or files of records such as a law's."""
    out: Annotated[
        Path | None, arg(aliases=["-o"], metavar="FOLDER", help_behavior_hint="(default: the run's own, or report)")
    ] = None
    """Folder for report.html and figures/; what else is in it stays."""
    general: Printing = field(default_factory=Printing)

"""Options of the verbs that only read: `show`, `report` and `models`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from tyro.conf import Positional

from qarat.surfaces.options.groups import Reading
from qarat.values.parsing import parse_scheme_in
from qarat.values.schemes import LOW


class ShowOptions(Reading, frozen=True, kw_only=True):
    """Print what a file or a run's folder holds, or compare evaluations with the first.

    Attributes:
        paths: Files of stats, prices, plans, searches or evaluations, or the folder of a run, finished or not.
        low: Scheme under which stats are shown.
    """

    paths: Positional[tuple[Path, ...]]
    low: str = LOW

    def check(self) -> None:
        """Refuse what is no scheme."""
        super().check()
        parse_scheme_in("low", self.low)


class ReportOptions(Reading, frozen=True, kw_only=True):
    """Write one HTML page about a run, finished or not, or about records, and every figure as SVG and PNG.

    Attributes:
        paths: The folder of a run, or files of records such as a law's.
        out: Folder for report.html and figures/; what else is in it stays. (default: the run's own, or report)
    """

    METAVARS: ClassVar[dict[str, str]] = {"out": "FOLDER"}

    paths: Positional[tuple[Path, ...]]
    out: Path | None = None


class CompletionOptions(Reading, frozen=True, kw_only=True):
    """Print what makes a shell complete verbs, options and choices: source <(qarat completion bash).

    Attributes:
        shell: Which shell; fish: qarat completion fish | source.
    """

    HIDDEN: ClassVar[tuple[str, ...]] = ("Printing.json",)

    shell: Positional[Literal["bash", "zsh", "fish"]]


class ModelsOptions(Reading, frozen=True, kw_only=True):
    """List the reference models; their names are accepted wherever a MODEL is."""

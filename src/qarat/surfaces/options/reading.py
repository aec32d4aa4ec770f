"""Options of the verbs that only read: `show`, `report` and `models`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from tyro.conf import Positional

from qarat.ground.disk import check_file, partial_of
from qarat.ground.errors import ArgumentError, UserError
from qarat.surfaces.options.groups import Reading
from qarat.values.parsing import parse_scheme_in
from qarat.values.schemes import LOW


class OfRecords(Reading, frozen=True, kw_only=True):
    """A verb about files of records, and the folders of jobs, finished or not."""

    if TYPE_CHECKING:
        paths: tuple[Path, ...]

    def check(self) -> None:
        """Refuse nothing at all, and what is not there."""
        super().check()
        if not self.paths:
            raise ArgumentError("give files of records, or the folder of a run")
        for path in self.paths:
            if not path.exists() and not partial_of(path).is_dir():
                raise UserError(f"no such file: {path}")


class ShowOptions(OfRecords, frozen=True, kw_only=True):
    """Print what a file or a run's folder holds, or compare evaluations with the first.

    Attributes:
        paths: Files of stats, prices, plans, searches or evaluations, or the folder of a run, finished or not.
        low: Scheme under which stats are shown.
    """

    paths: Positional[tuple[Path, ...]]
    low: str = LOW

    def check(self) -> None:
        """Refuse what is no scheme, and what is not there."""
        parse_scheme_in("low", self.low)
        super().check()


class ReportOptions(OfRecords, frozen=True, kw_only=True):
    """Write one HTML page about a run, finished or not, or about records, and every figure as SVG and PNG.

    Attributes:
        paths: The folder of a run, or files of records such as a law's.
        out: Folder for report.html and figures/; what else is in it stays. (default: the run's own, or report)
    """

    METAVARS: ClassVar[dict[str, str]] = {"out": "FOLDER"}

    paths: Positional[tuple[Path, ...]]
    out: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the page goes."""
        places = (place for path in self.paths for place in (path, partial_of(path)))
        return self.out or next(filter(Path.is_dir, places), Path("report"))

    def check(self) -> None:
        """Refuse a folder that cannot be written to."""
        super().check()
        check_file(self.folder / "report.html", overwrite=True)


class CompletionOptions(Reading, frozen=True, kw_only=True):
    """Print what makes a shell complete verbs, options and choices: source <(qarat completion bash).

    Attributes:
        shell: Which shell; fish: qarat completion fish | source.
    """

    HIDDEN: ClassVar[tuple[str, ...]] = ("Printing.json",)

    shell: Positional[Literal["bash", "zsh", "fish"]]


class ModelsOptions(Reading, frozen=True, kw_only=True):
    """List the reference models; their names are accepted wherever a MODEL is."""

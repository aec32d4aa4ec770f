"""The verb `report`: a page that people want to look at."""

from __future__ import annotations

from pathlib import Path

from qarat.ground.errors import ArgumentError
from qarat.surfaces import options
from qarat.surfaces.commands.common import quoted
from qarat.surfaces.page import write_report
from qarat.surfaces.screens import Lines, Screen


def report(asked: options.Report, screen: Screen) -> Lines:
    """Write the page and its figures."""
    if not asked.paths:
        raise ArgumentError("give `qarat report` the folder of a run, or files of records")
    folders = [path for path in asked.paths if path.is_dir()]
    out = asked.out or (folders[0] if folders else Path("report"))
    page = write_report(asked.paths, out, progress=screen.progress)
    return (f"written: {quoted(page)} (open it in a browser; its figures lie in {quoted(out / 'figures')})",)

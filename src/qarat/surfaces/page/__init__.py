"""The page: a run, or any records, as one HTML file that people want to look at.

`story` gathers the records, `verdict` says what they come to, `figures` draws, `sections` has what comes where, and
`document` fills `page.html` and `parts.html`, which alone are HTML. `rendering` says how figures look and makes
files of the same. Colours live in `theme.json` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qarat.ground.disk import write_whole
from qarat.ground.runtime import Progress, no_progress

__all__ = ["write_report"]


def write_report(sources: Sequence[Path], out: Path, *, progress: Progress = no_progress) -> Path:
    """Write ``report.html``, and each of its figures as ``figures/KEY.svg`` and ``figures/KEY.png``.

    Args:
        sources: The folder of a run, finished or not; files of records, such as a law's; or both.
        out: The folder to write into; made if need be. What else is in it stays.
        progress: Called after every figure.

    Returns:
        The page.

    Raises:
        UserError: There is no such run or record; they are of several models; the folder cannot be written.
    """
    # Here, because drawing takes long to import, which every other verb would pay.
    from qarat.surfaces.page.document import assemble, document
    from qarat.surfaces.page.parts import figures_in
    from qarat.surfaces.page.rendering import write_figure
    from qarat.surfaces.page.story import gather

    story = gather(sources)
    assembled = assemble(story)
    figures = [figure for section in assembled for figure in figures_in(section.parts)]
    progress("report", 0, len(figures) + 1)
    page = document(story, assembled)
    for done, figure in enumerate(figures, 1):
        write_figure(figure, out / "figures")
        progress("report", done, len(figures) + 1)
    write_whole(out / "report.html", page)
    progress("report", len(figures) + 1, len(figures) + 1)
    return out / "report.html"

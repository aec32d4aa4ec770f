"""The law's part of a page: its forms side by side, its figures, its coefficients, and what must be known of it."""

from __future__ import annotations

from collections.abc import Iterator

from qarat.stages.laws.forms import FORMS
from qarat.surfaces.page.figures.base import Part
from qarat.surfaces.page.figures.law_fit import law_fit, law_residuals
from qarat.surfaces.page.figures.law_reach import law_reach
from qarat.surfaces.page.figures.law_sections import law_along
from qarat.surfaces.tables.data import DataTable
from qarat.surfaces.tables.html import element, escaped, paragraph, scrolled
from qarat.surfaces.tables.laws import coefficients, compared_forms, notes_table
from qarat.values.records.law import Law


def law_parts(law: Law) -> Iterator[Part]:
    """Everything that the page says of a law.

    Args:
        law: Fitted, or published, which comes without points and so without figures.
    """
    form = FORMS.load(law.shown)
    yield paragraph(f"{form.title}: {form.equation}")
    if any(fit.quality for fit in law.fits):
        yield from _titled("Forms compared", compared_forms(law))
    if any(fit.points for fit in law.fits):
        figures = (law_along(law, "ratio"), law_reach(law), law_along(law, "block"), law_fit(law), law_residuals(law))
        yield from (figure for figure in figures if figure is not None)
    else:
        yield paragraph("This law comes without the points it was fitted to, so there is nothing to draw.")
    # The form that is shown first, those that are fitted in groups, which may be many, last.
    fits = sorted(law.fits, key=lambda fit: (fit.form != law.shown, bool(fit.group)))
    yield from _titled("Coefficients", coefficients(fits))
    yield from _titled("What must be known of the fits", notes_table(law, fits))


def _titled(title: str, data: DataTable) -> tuple[str, ...]:
    return element("h3", escaped(title)), element("div", scrolled(data, title), class_="tabled")

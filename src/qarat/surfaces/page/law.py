"""The law's part of a page: its forms side by side, its figures, its coefficients, and what must be known of it."""

from __future__ import annotations

from qarat.stages.laws.forms import FORMS
from qarat.surfaces.page.figures.base import DataTable, Figure
from qarat.surfaces.page.figures.law_fit import law_fit, law_residuals
from qarat.surfaces.page.figures.law_reach import law_reach
from qarat.surfaces.page.figures.law_sections import law_along
from qarat.surfaces.page.markup import element, escaped, paragraph, scrolled
from qarat.surfaces.tables.law_words import COEFFICIENTS, COMPARED, coefficients, compared, fit_lines, group_words
from qarat.values.records.law import Fit, Law

_FIT = ("form", "fitted for")


def law_parts(law: Law) -> tuple[Figure | str, ...]:
    """Everything that the page says of a law.

    Args:
        law: Fitted, or published, which comes without points and so without figures.
    """
    form = FORMS.load(law.shown)
    parts: list[Figure | str] = [paragraph(f"{form.title}: {form.equation}")]
    if any(fit.quality for fit in law.fits):
        parts += _titled("Forms compared", _comparison(law))
    if any(fit.points for fit in law.fits):
        found = [law_along(law, "ratio"), law_reach(law), law_along(law, "block"), law_fit(law), law_residuals(law)]
        parts += [figure for figure in found if figure is not None]
    else:
        parts.append(paragraph("This law comes without the points it was fitted to, so there is nothing to draw."))
    return (
        *parts,
        *_titled("Coefficients", _coefficients(law)),
        *_titled("What must be known of the fits", _notes(law)),
    )


def _titled(title: str, data: DataTable) -> tuple[str, ...]:
    return element("h3", escaped(title)), element("div", scrolled(data, title), class_="tabled")


def _comparison(law: Law) -> DataTable:
    columns = tuple(c.replace("\n", " ") for c in COMPARED)
    return DataTable(columns, tuple(compared(law)), frozenset(columns[2:-1]))


def _in_turn(law: Law) -> list[Fit]:
    """The form that is shown first, those that are fitted in groups, which may be many, last."""
    return sorted(law.fits, key=lambda fit: (fit.form != law.shown, bool(fit.group)))


def _coefficients(law: Law) -> DataTable:
    rows = tuple((fit.form, group_words(fit), *row) for fit in _in_turn(law) for row in coefficients(fit))
    return DataTable((*_FIT, *COEFFICIENTS), rows, frozenset(COEFFICIENTS[1:]))


def _notes(law: Law) -> DataTable:
    """How each fit was made and what limits it; the forms that could not be fitted; what is wrong with the data."""
    rows = [(fit.form, group_words(fit), line) for fit in _in_turn(law) for line in fit_lines(fit)]
    rows += [(name, "", f"not fitted: {reason}") for name, reason in law.refused.items()]
    rows += [("", "", f"the law's data: {defect}") for defect in law.defects]
    return DataTable((*_FIT, "what must be known"), tuple(rows))

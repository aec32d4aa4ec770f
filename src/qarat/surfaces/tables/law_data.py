"""What laws are made from: tables of measurements, and the forms with the coefficients that their authors print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from qarat.stages.laws.forms import RESPONSES, VARIABLES, Catalog, Form
from qarat.stages.laws.tables import COLUMNS, Table
from qarat.surfaces.tables.data import Line, Parts, bold, numbers, pairs, table, texts
from qarat.surfaces.tables.wording import GAP
from qarat.values.records.law_data import spell_value, spell_values


def show_tables(tables: Sequence[Table]) -> Parts:
    """What tables there are, and what is known to be wrong with them."""
    # Tables share most of what is to be said of them: each thing is said once, below, under a number.
    notes: dict[str, int] = {}
    rows: list[tuple[str, ...]] = []
    for one in tables:
        remarks = (one.how, *(one.defects if len(tables) == 1 else _said_once(one)))
        places = [notes.setdefault(note, len(notes) + 1) for note in remarks if note]
        rows.append((one.name, str(len(one.rows)), one.title, one.source, " ".join(map(str, places))))
    about = texts("what it holds", "source", "notes")
    yield table((*texts("name", wrap=False), *numbers("rows"), *about), rows)
    yield from ("", pairs((f"{n:{len(str(len(notes)))}}", note) for note, n in notes.items()))


def _said_once(one: Table) -> list[str]:
    """A table's defects; of many that end alike, and so are one of many rows, the first and how many more there are."""
    endings: dict[str, list[str]] = {}
    for defect in one.defects:
        endings.setdefault(defect.rpartition(", ")[2], []).append(defect)
    remarks: list[str] = []
    for first, *others in endings.values():
        more = f" (and {len(others)} more such: qarat law data {one.name})"
        remarks += [first + more] if len(others) > 2 else [first, *others]
    return remarks


def show_table(one: Table) -> Parts:
    """One table: what all rows share in words, and the rest in rows."""
    values = {c: [_cell(getattr(row, c), c) for row in one.rows] for c in COLUMNS}
    varied = [c for c in COLUMNS if len(set(values[c])) > 1]
    shared = pairs((c, values[c][0]) for c in COLUMNS if c not in varied and values[c][0])
    columns = [(texts if isinstance(getattr(one.rows[0], c), str) else numbers)(c)[0] for c in varied]
    rows = table(columns, zip(*(values[c] for c in varied), strict=True))
    yield from (*show_tables([one]), "", shared, "", rows)


def _cell(value: object, column: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return spell_value(column, value) if isinstance(value, float) else str(value)


def show_forms(catalog: Catalog) -> Parts:
    """Every form: equation, source, needs, and the coefficients that its authors print."""
    for name, form in catalog.forms.items():
        yield bold(name, f"{GAP}{form.title}")
        yield from (Line(text, indent=2) for text in _form(form))
        yield ""


def _form(form: Form) -> Iterator[str]:
    needs = ", ".join(f"{n} values of {v}" for v, n in form.needs.items())
    yield form.equation
    yield f"gives {RESPONSES[form.response]}; {'; '.join(f'{v}: {VARIABLES[v]}' for v in form.variables)}"
    yield f"source: {form.source}"
    yield f"needs {form.points} points, {needs}" + ("; whole models in one precision" * form.uniform)
    if form.transfers:
        yield f"transfer: {form.transfers}"
    # The authors' coefficients; below those of one domain, that and what must be known of them.
    for (domain, note), alike in groupby(form.published, key=lambda p: (p.domain, p.note)):
        for p in alike:
            group = f"{spell_values(p.group)}, " if p.group else ""
            printed = ", ".join(f"{k} = {v:.5g}" for k, v in p.values.items())
            yield f"printed {f'({p.name}) ' if p.name else ''}{group}{printed}"
        ranges = (f"{v} {spell_value(v, low)} to {spell_value(v, high)}" for v, (low, high) in domain.items())
        yield f"fitted to {', '.join(ranges)}{f'; {note}' if note else ''}"

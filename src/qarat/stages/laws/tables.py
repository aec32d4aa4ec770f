"""Tables of measurements: read from CSV, bundled or a user's, checked whole, and narrowed.

A file is plain CSV with one column for each field of `Measurement`, all of them there, cells empty where a source does
not say. Lines in front that begin with ``#`` say ``title``, ``source``, ``how`` the numbers were obtained, and each
known ``defect``. Every line that cannot be is reported, all at once, with its number.
"""

from __future__ import annotations

import csv
import io
import operator
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from qarat.ground.disk import hash_json
from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.values.records.law_data import Measurement, find_problems, parse_count

COLUMNS = Measurement.__struct_fields__
_COUNTS = ("size", "tokens")
_NUMBERS = (*_COUNTS, "ratio", "block", "bits", "value", "base_value", "standard_error")
_ABOUT = ("title", "source", "how", "defect")
_FOLDER = Path(__file__).parents[2] / "bundled" / "laws"
_MOST_SHOWN = 20  # wrong lines in one message; the rest is counted
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Measurements, and what is known of them as a whole.

    Attributes:
        name: By which it is asked for: a bundled table's, or the file's.
        title: What it holds.
        source: Where it comes from.
        how: How the numbers were obtained.
        defects: What is known to be wrong or missing.
        rows: The measurements.
    """

    name: str
    title: str
    source: str
    how: str
    defects: tuple[str, ...]
    rows: tuple[Measurement, ...]

    @property
    def hash(self) -> str:
        """SHA-256 of the rows."""
        return hash_json(self.rows)


def bundled_tables() -> tuple[Table, ...]:
    """The tables that ship with qarat, in the order of their numbers."""
    return tuple(read_table(path) for path in sorted(_FOLDER.glob("*.csv"), key=_number))


def load_table(name: str) -> Table:
    """A user's CSV file, or a bundled table by name.

    Raises:
        UserError: Neither; or as `read_table`.
    """
    path = Path(name)
    if path.is_file():
        return read_table(path)
    names = [p.stem for p in sorted(_FOLDER.glob("*.csv"), key=_number)]
    if name not in names:
        raise UserError(f"{name} is no file, and no table that ships with qarat; {nearest_names(name, names)}")
    return read_table(_FOLDER / f"{name}.csv")


def join(tables: Sequence[Table]) -> Table:
    """The rows of several tables as those of one, which names the sources of all.

    Raises:
        UserError: A row stands in two of them, and would count twice.
    """
    if len(tables) == 1:
        return tables[0]
    seen: set[Measurement] = set()
    for table in tables:
        if twice := [row.model for row in dict.fromkeys(table.rows) if row in seen]:
            models = ", ".join(dict.fromkeys(twice))
            raise UserError(
                f"{len(twice)} rows of {table.name} stand in a table before it too: {models}; give each once"
            )
        seen |= set(table.rows)
    names, titles, sources, hows = (
        list(dict.fromkeys(filter(None, texts)))
        for texts in zip(*((t.name, t.title, t.source, t.how) for t in tables), strict=True)
    )
    return Table(
        "+".join(names),
        "; ".join(titles),
        "; ".join(sources),
        "; ".join(hows),
        tuple(dict.fromkeys(defect for table in tables for defect in table.defects)),
        tuple(row for table in tables for row in table.rows),
    )


def read_table(path: Path) -> Table:
    """Read and check a CSV file.

    Raises:
        UserError: Columns missing or unknown; lines that are malformed or cannot be, each with its number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text: {error}") from None
    head = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    about = _read_about(lines[:head])
    reader = csv.reader(io.StringIO("".join(lines[head:])), strict=True)
    try:
        columns = [c.strip() for c in next(reader, [])]
        _check_columns(path, columns)
        rows, problems = _read_rows(reader, columns, head)
    except csv.Error as error:
        raise UserError(f"{path}, line {head + reader.line_num}: {error}") from None
    if problems:
        more = f"\n… and {len(problems) - _MOST_SHOWN} more" if len(problems) > _MOST_SHOWN else ""
        listed = "\n".join(problems[:_MOST_SHOWN])
        raise UserError(f"{path} has {len(problems)} wrong entries:\n{listed}{more}")
    if not rows:
        raise UserError(f"{path} has no rows")
    title, source, how = ("; ".join(about[key]) for key in _ABOUT[:3])
    return Table(path.stem, title or path.name, source, how, tuple(about["defect"]), tuple(rows))


def write_table(table: Table) -> str:
    """The text of a table's file; `read_table` gives the same table back."""
    out = io.StringIO()
    for key, value in zip(_ABOUT, (table.title, table.source, table.how), strict=False):
        if value:
            out.write(f"# {key}: {value}\n")
    out.writelines(f"# defect: {defect}\n" for defect in table.defects)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_spell(getattr(row, column)) for column in COLUMNS] for row in table.rows)
    return out.getvalue()


def narrow(table: Table, conditions: Sequence[str]) -> Table:
    """The rows that meet every condition, such as ``model=Qwen1.5-7B`` or ``block<=512``.

    Raises:
        UserError: Malformed; an unknown column; or no row is left.
    """
    rows = list(table.rows)
    for text in conditions:
        match = re.fullmatch(r"\s*(\w+)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*", text)
        if not match or not match[3]:
            raise UserError(f"{text!r} is no condition; write for example model=Qwen1.5-7B or 'block<=512'")
        column, comparison, wanted = match.groups()
        if column not in COLUMNS:
            raise UserError(f"{text!r}: there is no column {column!r}; {nearest_names(column, COLUMNS)}")
        there = list(dict.fromkeys(_spell(getattr(row, column)) for row in rows))
        rows = [row for row in rows if _meets(getattr(row, column), comparison, _convert(column, wanted))]
        if not rows:
            more = f" and {len(there) - _MOST_SHOWN} more" if len(there) > _MOST_SHOWN else ""
            choices = ", ".join(map(repr, there[:_MOST_SHOWN]))
            raise UserError(f"{table.name} has no rows left where {text}; there {column} is {choices}{more}")
    title = f"{table.title}, where {', '.join(conditions)}" if conditions else table.title
    return msgspec.structs.replace(table, rows=tuple(rows), title=title)


def _meets(value: Any, comparison: str, wanted: Any) -> bool:
    return value is not None and _COMPARISONS[comparison](value, wanted)


def _number(path: Path) -> tuple[str, int]:
    """Sorts t2 before t10."""
    letters = path.stem.rstrip("0123456789")
    return letters, int(path.stem[len(letters) :] or 0)


def _read_about(lines: Sequence[str]) -> dict[str, list[str]]:
    about: dict[str, list[str]] = {key: [] for key in _ABOUT}
    for line in lines:
        key, _, value = line.lstrip("#").partition(":")
        if key.strip() in about and value.strip():
            about[key.strip()].append(value.strip())
    return about


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    problems = [f"unknown column {c!r}; {nearest_names(c, COLUMNS)}" for c in columns if c not in COLUMNS]
    problems += [f"column {c!r} twice" for c in sorted({c for c in columns if columns.count(c) > 1})]
    if missing := [c for c in COLUMNS if c not in columns]:
        problems.append(f"missing: {', '.join(missing)} (add them, with empty cells where you do not know)")
    if problems:
        raise UserError(f"{path} does not have the columns of a table: {'; '.join(problems)}")


def _read_rows(reader: Any, columns: Sequence[str], head: int) -> tuple[list[Measurement], list[str]]:
    rows: list[Measurement] = []
    problems: list[str] = []
    for cells in reader:
        if not any(c.strip() for c in cells):
            continue
        line = f"line {head + reader.line_num}"
        if len(cells) != len(columns):
            problems.append(f"{line}: {len(cells)} cells in {len(columns)} columns")
            continue
        fields, wrong = _read_fields(dict(zip(columns, (c.strip() for c in cells), strict=True)))
        if not wrong:
            row = Measurement(**fields)
            wrong = find_problems(row)
            rows.append(row)
        problems += [f"{line}: {problem}" for problem in wrong]
    return rows, problems


def _read_fields(cells: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The fields of a row, and what is wrong with its cells."""
    fields: dict[str, Any] = {}
    wrong: list[str] = []
    for column, text in cells.items():
        try:
            fields[column] = _convert(column, text)
        except UserError as error:
            wrong.append(f"{column}: {error}")
    if fields.get("value", 0.0) is None:
        wrong.append("value is empty: leave the line out")
    return fields, wrong


def _convert(column: str, text: str) -> Any:
    if column == "higher_is_better":
        if text not in ("yes", "no"):
            raise UserError(f"{text!r} is neither yes nor no")
        return text == "yes"
    if column not in _NUMBERS:
        return text
    if not text:
        return None
    if column in _COUNTS:
        return parse_count(text)
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{text!r} is no number") from None


def _spell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return repr(value) if isinstance(value, float) else str(value)

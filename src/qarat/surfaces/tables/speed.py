"""How fast an engine ran folders, and what their weights took of its memory."""

from __future__ import annotations

from collections.abc import Sequence

from qarat.surfaces.tables.data import DataTable, Parts, bold, dim, numbers, table, texts
from qarat.surfaces.tables.wording import GAP, count, fixed
from qarat.values.records.speed import EngineSpeed, MedianRange


def show_speed(record: EngineSpeed) -> Parts:
    """What was timed, a row for every folder and measure, and what should be known of it."""
    ran_by, *notes = conditions(record)
    yield bold("speed", f"{GAP}{ran_by}")
    yield dim("; ".join(notes))
    yield from ("", speeds(record))
    yield from map(dim, record.notes)


def conditions(record: EngineSpeed) -> tuple[str, ...]:
    """What computed, what was asked of it, and how often."""
    how = record.request
    graphs = ["without compiled graphs"] if how.eager else []
    facts = (f"{record.engine} {record.version}", how.dtype, record.device, count(record.threads, "thread"), *graphs)
    prompt = f"prompts of {count(how.prompt_tokens, 'token')}, {how.new_tokens:,} more behind the first new one"
    seconds = ("a second is one of a processor's spent on it",) if how.clock == "cpu" else ()
    turns = f"median of {count(how.turns, 'turn')} and the range, ratios to the first folder turn by turn"
    return ", ".join(facts), prompt, *seconds, turns


def speeds(record: EngineSpeed) -> DataTable:
    """A row for every folder and measure."""
    rows: list[Sequence[str]] = []
    for folder in record.folders:
        for place, (name, values, ratios) in enumerate(record.measures(folder)):
            titles = (folder.folder, folder.format or "float") if place == 0 else ("", "")
            beside = ("", "") if folder is record.folders[0] else _cells(ratios, 3)
            rows.append((*titles, name, *_cells(values, 1), *beside))
    return table((*texts("folder", "stored as", "measured"), *numbers("median", "range", "ratio", "range ")), rows)


def _cells(measured: MedianRange, digits: int) -> tuple[str, str]:
    """The median, and the range."""
    least, most = fixed(measured.least, digits), fixed(measured.most, digits)
    return fixed(measured.median, digits), f"{least} to {most}"

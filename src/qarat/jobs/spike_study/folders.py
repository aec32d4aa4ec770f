"""A study's folder seen from outside: what lies in it, and what is missing."""

from __future__ import annotations

from pathlib import Path

from qarat.jobs.folder import read_manifest
from qarat.jobs.spike_study.job import RESULT, SHOWN_WITH, STEPS
from qarat.values.records.files import Record, decode_record
from qarat.values.records.spike_study import SpikeStudy


def read_study(folder: Path) -> tuple[dict[str, Record], tuple[str, ...]]:
    """The records of a study by file name, its result first, and what it has not come to.

    Args:
        folder: Of a study, finished or not.

    Raises:
        UserError: If there is none, or a file is damaged.
    """
    done = read_manifest(folder).steps
    records: dict[str, Record] = {}
    missing = (*(step for step in STEPS if step not in done), "every arm")
    if (folder / RESULT).is_file():
        study = records[RESULT] = decode_record(folder / RESULT, SpikeStudy)
        missing = (study.missing_words,) if study.missing else ()
    names = [name for step in STEPS if step in done for name in done[step] if name in SHOWN_WITH]
    return records | {name: decode_record(folder / name) for name in names}, missing

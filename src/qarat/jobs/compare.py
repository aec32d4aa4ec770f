"""`qarat compare`: whatever was named, as records of one kind, and those compared.

A record is taken as it lies there, and so is what a finished run measured of its plan. Everything else is opened and
measured, unless every name is of the first kind, when nothing is. A scheme stands for the first model with every
projection under it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from qarat.ground.errors import UserError
from qarat.jobs.open_any import Opened, open_for_evaluation
from qarat.model.finding import is_gguf
from qarat.values.parsing import is_scheme
from qarat.values.records.comparison import Comparable, Comparison, compare
from qarat.values.records.files import decode_record, kind_of
from qarat.values.records.scores import Divergence, Evaluation, ZeroShot

RUN_EVALUATION = "evaluation-plan.json"
"""What a run measured of its quantized model, in the run's folder."""


def compare_named(
    names: Sequence[str],
    measure: Callable[[Opened], Comparable],
    opened: Callable[[str], Opened] = open_for_evaluation,
    *,
    recorded: bool = True,
) -> Comparison:
    """Compare models, runs, exports and records with the first named.

    Args:
        names: Files of evaluations, scores or divergences; and what can be opened, schemes too.
        measure: Measures an opened model on the tokens or tasks that were asked for; its label is replaced.
        opened: Opens what has no record; the one given takes no schemes.
        recorded: Whether a run stands for what it measured itself, where no name has to be measured anyway.

    Raises:
        UserError: As `compare`, `decode_record` and ``opened``.
    """
    labels = _labels(names)
    records: dict[str, Comparable] = {name: _read(Path(name)) for name in names if _is_record(Path(name))}
    runs = {name: Path(name) / RUN_EVALUATION for name in names if (Path(name) / RUN_EVALUATION).is_file()}
    if recorded and records.keys() | runs.keys() >= set(names):
        records |= {name: _read(path) for name, path in runs.items()}
    for name in names:
        if name not in records:
            records[name] = measure(opened(name))
    return compare([msgspec.structs.replace(records[name], label=labels[name]) for name in names])


def _is_record(path: Path) -> bool:
    return path.is_file() and not is_gguf(path)


def _read(path: Path) -> Comparable:
    record = decode_record(path)
    if not isinstance(record, Evaluation | ZeroShot | Divergence):
        raise UserError(f"{path} is of kind {kind_of(type(record))}; give an evaluation, scores or a divergence")
    return record


def _labels(names: Sequence[str]) -> dict[str, str]:
    """A short label for each: the last part of its path, or all of it where two would be called alike.

    Raises:
        UserError: If one is named twice.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"named twice: {', '.join(twice)}; a model compared with itself says nothing")
    last = [
        name if is_scheme(name) else Path(name).stem if _is_record(Path(name)) else Path(name).name or name
        for name in names
    ]
    return {name: short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)}

"""What a page tells of: records, where they lie, and what made them. Gathered from a job's folder, files, or both."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePath
from typing import NamedTuple, TypeVar

from qarat.ground.disk import partial_of
from qarat.ground.errors import UserError
from qarat.jobs.advising import KIND as ADVICE
from qarat.jobs.calibration_study import KIND as CALIBRATION
from qarat.jobs.exporting import bytes_of, serving_lines
from qarat.jobs.folder import PROFILE, kind_of, read_command, read_log, read_manifest, result_of
from qarat.jobs.run_steps import BEFORE, KIND, LABELS, MODEL, OPTIONAL, STEPS
from qarat.jobs.search.job import KIND as SEARCH
from qarat.jobs.spike_study.arms import NAIVE, PROTECTED
from qarat.jobs.spike_study.job import KIND as SPIKE_STUDY
from qarat.jobs.spike_study.job import read_study
from qarat.values.fingerprints import brief, source_of
from qarat.values.plans import Assignment, Plan
from qarat.values.records.files import Record, content_hash, decode_record
from qarat.values.records.origin import Provenance
from qarat.values.records.prices import Protection
from qarat.values.records.rewrites import Rewrites
from qarat.values.records.scores import Divergence, Evaluation
from qarat.values.records.spike_study import MAIN, SpikeStudy

R = TypeVar("R")
_OF_ONE_RECORD = (ADVICE, SEARCH, CALIBRATION)
_SEVERAL = (Evaluation, Divergence, Rewrites)  # of these a page may tell of more than one


class About(NamedTuple):
    """What the log of a folder, and the folder itself, say of a job beside its records.

    Attributes:
        folder: Its name.
        model: As it was called; empty where that is not known.
        date: Of the last step.
        float_bytes: Of the float model's tensors; 0 where that is not known.
        bytes: Of the quantized model's; 0 without one.
        command: That last worked on it, without the places of one machine.
        serving: Lines to type for vLLM to serve the quantized model.
    """

    folder: str = ""
    model: str = ""
    date: str = ""
    float_bytes: int = 0
    bytes: int = 0
    command: str = ""
    serving: tuple[str, ...] = ()


@dataclass(frozen=True)
class Story:
    """What there is to tell.

    Attributes:
        records: Of one model; a law beside them, or alone.
        hashes: What each record's file is called, and its content's SHA-256.
        missing: Steps that a run has not come to yet.
        about: The job behind them.
    """

    records: tuple[Record, ...]
    hashes: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    about: About = field(default_factory=About)

    def all(self, kind: type[R]) -> tuple[R, ...]:
        """Every record of a kind."""
        return tuple(r for r in self.records if isinstance(r, kind))

    def one(self, kind: type[R]) -> R | None:
        """The record of a kind that has one at the most."""
        return next(iter(self.all(kind)), None)

    @property
    def models(self) -> Iterator[str]:
        """Fingerprints of the records' models."""
        return filter(None, map(_model, self.records))

    @property
    def protected(self) -> tuple[Assignment, ...]:
        """The projections that the plan protects; a plan without its sweep does not tell those from overrides."""
        plan, sweep = self.one(Plan), self.one(Protection)
        return tuple(a for a in (plan.exceptions() if plan else ()) if sweep is None or a.site.name in sweep.protected)

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Float's first, then naive's, the plan's, and others; of a study alone, those of its main setting."""
        order = {label: i for i, label in enumerate(LABELS)}
        study = self.one(SpikeStudy)
        evaluations = self.all(Evaluation) or (_evaluations_of(study) if study else ())
        return tuple(sorted(evaluations, key=lambda e: (order.get(e.label, len(order)), e.label)))


def gather(paths: Sequence[Path]) -> Story:
    """Read runs' folders and files of records.

    Args:
        paths: A run's folder, finished or ``.partial``, and files.

    Raises:
        UserError: Nothing there; a folder of searching; two records of which a page has room for one; records of
            several models.
    """
    records: dict[str, Record] = {}
    missing: tuple[str, ...] = ()
    about = About()
    for path in paths:
        folder = path if path.exists() else partial_of(path)
        if folder.is_dir():
            read, missing = _read_run(folder)
            about = _about(folder, path, finished=not missing)
        else:
            read = {path.name: decode_record(path)}
        if twice := records.keys() & read.keys():
            raise UserError(f"a page tells of one run; {', '.join(sorted(twice))} is there twice: make a page of each")
        records |= read
    _check_one_of_each(records)
    _check_one_model(records)
    return Story(tuple(records.values()), {n: content_hash(r) for n, r in records.items()}, missing, about)


def _about(folder: Path, called: Path, *, finished: bool) -> About:
    """What there is to say of a job's folder, which goes by the name that it has when it is finished."""
    log, model = read_log(folder), folder / MODEL
    there = finished and model.is_dir()
    return About(
        called.name,
        portable(log["model"]) if "model" in log else "",
        _date(log["time"]) if "time" in log else "",
        log.get("float_bytes", 0),
        bytes_of(model) if there else 0,
        shlex.join(map(portable, shlex.split(log.get("command", "")))),
        serving_lines(folder) if there else (),
    )


def _date(time: str) -> str:
    day = datetime.fromisoformat(time)
    return f"{day.day} {day:%B %Y}"


def portable(word: str) -> str:
    """A word of a command without the places of one machine: of an absolute path, its last part."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    path = PurePath(value)
    away = path.is_absolute() or value.startswith("~") or ".." in path.parts
    return option + equals + (path.name if away else value)


def _evaluations_of(study: SpikeStudy) -> tuple[Evaluation, ...]:
    """Float, naive and planned at a study's main setting, as far as they were measured; it protects what it planned."""
    arms = [("naive", study.find(study.main, NAIVE)), ("plan", study.find(study.main, PROTECTED))]
    return (
        *((study.floats[MAIN],) if MAIN in study.floats else ()),
        *(study.evaluation(arm, label) for label, arm in arms if arm is not None),
    )


def _read_run(folder: Path) -> tuple[dict[str, Record], tuple[str, ...]]:
    """The records of a run by file name, and the steps that are missing."""
    kind = kind_of(folder)
    if kind == SPIKE_STUDY:
        return read_study(folder)
    if kind in _OF_ONE_RECORD:
        result = result_of(kind)
        if not (folder / result).is_file():
            raise UserError(f"{folder} is not finished; it continues with the same command: {read_command(folder)}")
        return {result: decode_record(folder / result)}, ()
    if kind not in ("", KIND):
        raise UserError(
            f"{folder} is of many searches, of which there is no page: `qarat show {folder}` prints it, each search in "
            "it has a page, and so has a law fitted to a sweep (`qarat law fit`, then `qarat report law.json`)"
        )
    done = read_manifest(folder).steps
    steps = STEPS | OPTIONAL
    if BEFORE.name in done:  # the spikes are those of the model as it was asked for
        steps |= {PROFILE.name: BEFORE.files}
    names = [name for step, outputs in steps.items() if step in done for name in outputs]
    names += [name for files in done.values() for name in files if name.startswith("rewrites")]
    records = {name: decode_record(folder / name) for name in names if (folder / name).is_file()}
    return records, tuple(step for step in STEPS if step not in done)


def _check_one_of_each(records: Mapping[str, Record]) -> None:
    kinds: dict[type, list[str]] = {}
    for name, record in records.items():
        kinds.setdefault(type(record), []).append(name)
    twice = [" and ".join(names) for kind, names in kinds.items() if len(names) > 1 and kind not in _SEVERAL]
    if twice:
        raise UserError(f"a page has room for one of a kind; make a page of each: {'; '.join(twice)}")


def _check_one_model(records: Mapping[str, Record]) -> None:
    models = {name: model for name, record in records.items() if (model := _model(record))}
    # A transformed model is the one it was made from, as far as losses go: a run has records of both.
    if len(set(map(source_of, models.values()))) > 1:
        listed = ", ".join(f"{name} is of {brief(model)}" for name, model in models.items())
        raise UserError(f"these records are of several models; make a page of each: {listed}")


def origin(record: Record) -> Provenance | None:
    """Where a record comes from; None for those of several models, such as laws and comparisons, and for plans."""
    return getattr(record, "provenance", None)


def _model(record: Record) -> str:
    if isinstance(record, Plan):
        return record.model
    where = origin(record)
    return where.model if where else ""

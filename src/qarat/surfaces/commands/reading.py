"""Verbs that only read: show, report, models. A record is read without torch; a folder needs those who wrote it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qarat.ground.disk import partial_of
from qarat.ground.errors import UserError
from qarat.surfaces.commands import Lines, Screen
from qarat.surfaces.options import VERBS
from qarat.surfaces.options.reading import CompletionOptions, ModelsOptions, ReportOptions, ShowOptions
from qarat.values.parsing import parse_scheme_in
from qarat.values.records.files import Record, decode_record
from qarat.values.records.scores import Evaluation, ZeroShot
from qarat.values.schemes import LinearScheme


def show(options: ShowOptions, screen: Screen) -> Lines:
    """Print records, or a run's folder."""
    low = parse_scheme_in("low", options.low)
    context = {"low": low.input if isinstance(low, LinearScheme) else None}
    records: list[Record] = []
    for path in options.paths:
        folder = path if path.exists() else partial_of(path)
        records += _show_folder(folder, screen, options.low, context) if folder.is_dir() else [decode_record(path)]
    if len(records) > 1 and any(all(isinstance(r, kind) for r in records) for kind in (Evaluation, ZeroShot)):
        screen.show(*records)
    else:
        _show_each(records, screen, context)
    return ()


def _show_each(records: Sequence[object], screen: Screen, context: dict[str, Any]) -> None:
    for record in records:
        stats = hasattr(record, "streams")  # their class needs torch, which only they may wait for
        screen.show(record, **(context if stats else {}))


def _show_folder(folder: Path, screen: Screen, low: str, context: dict[str, Any]) -> list[Record]:
    """Show what a folder holds that a job wrote or is writing; the plan of a quantized model is left to the caller."""
    from qarat.jobs import run_steps
    from qarat.jobs.advising import KIND as ADVICE
    from qarat.jobs.calibration_study import KIND as CALIBRATION
    from qarat.jobs.folder import PLAN, kind_of, read_command, result_of
    from qarat.jobs.spike_study.job import KIND as SPIKE_STUDY
    from qarat.model.folders import MARK
    from qarat.model.native import is_native

    kind, quoted = kind_of(folder), shlex.quote(str(folder))
    if kind and (folder / result_of(kind)).is_file():
        screen.show(decode_record(folder / result_of(kind)))
    elif kind == SPIKE_STUDY:
        _show_begun_study(folder, screen, context)
    elif kind in (ADVICE, CALIBRATION):
        screen.note(f"{folder} holds {'advice' if kind == ADVICE else 'a calibration study'} that is not finished")
        screen.note(f"it continues with the same command: {read_command(folder)}")
    elif kind not in ("", run_steps.KIND):
        _note_begun_search(folder, screen)
    elif is_native(folder):
        return [decode_record(folder / PLAN)]
    elif (folder / MARK).is_file():
        screen.note(f"{folder} is an export of the plan below; qarat verify {quoted} says what engines make of it")
        return [decode_record(folder / MARK)]
    elif not kind and (folder / "config.json").is_file():
        raise UserError(f"{folder} is a model, no run: qarat verify {quoted} (quantized) or qarat run {quoted} (float)")
    else:
        _show_run(folder, screen, low)
    return []


def _show_begun_study(folder: Path, screen: Screen, context: dict[str, Any]) -> None:
    """What a study has found that has not measured its first arms."""
    from qarat.jobs.folder import read_command
    from qarat.jobs.spike_study.job import read_study

    records, missing = read_study(folder)
    _show_each(list(records.values()), screen, context)
    screen.note(f"{folder} is a study that is not finished; missing: {', '.join(missing)}")
    screen.note(f"it continues with the same command: {read_command(folder) or 'qarat study spikes'}")


def _note_begun_search(folder: Path, screen: Screen) -> None:
    """What a search, or many, has come to that has no result yet."""
    from qarat.jobs.folder import read_command
    from qarat.jobs.search.nested import count_plans

    plans = count_plans(folder)
    screen.note(f"{folder} holds searching that is not finished: {plans:,} plans measured so far")
    screen.note(f"it continues with the same command: {read_command(folder)}")


def _show_run(folder: Path, screen: Screen, low: str) -> None:
    from qarat.jobs import run_steps
    from qarat.jobs.folder import read_command

    missing = run_steps.show_run(folder, screen.show, low)
    if missing:
        there = [step for step in run_steps.STEPS if step not in missing]
        done = f"done: {', '.join(there) or 'nothing'}"
        screen.note(f"{folder} is not finished; {done}; missing: {', '.join(missing)}")
    elif folder.name.endswith(".partial"):
        screen.note(f"{folder} has every step, but was not put into place")
    else:
        return
    screen.note(f"it continues with the same command: {read_command(folder) or 'qarat run'}")


def models(options: ModelsOptions, screen: Screen) -> Lines:
    """List the reference models."""
    from qarat.model.reference_models import describe_reference_models

    screen.show(*describe_reference_models())
    return ()


def completion(options: CompletionOptions, screen: Screen) -> Lines:
    """Print the script of a shell."""
    from qarat.surfaces.completion import script_for

    print(script_for(options.shell, VERBS))
    return ()


def report(options: ReportOptions, screen: Screen) -> Lines:
    """Write the page and its figures."""
    from qarat.surfaces.page import write_report

    page = write_report(options.paths, options.folder, progress=screen.progress)
    written, figures = shlex.quote(str(page)), shlex.quote(str(options.folder / "figures"))
    return (f"written: {written} (open it in a browser; its figures lie in {figures})",)

"""Verbs that make, check and show folders: run, export, verify, show, models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from qarat.ground.disk import check_file, check_folder, write_whole
from qarat.ground.errors import ArgumentError, NotPassedError
from qarat.jobs import whole_run as pipeline
from qarat.jobs.estimates import ROUNDING, quantized_bytes
from qarat.jobs.exporting import open_to_export
from qarat.jobs.folder import Run, kind_of, read_command, result_of
from qarat.jobs.open_any import find_native
from qarat.jobs.search.nested import count_plans
from qarat.jobs.spike_study.folders import read_study
from qarat.jobs.spike_study.job import KIND as SPIKE_STUDY
from qarat.jobs.verify import verify_against_float, verify_against_run, verify_alone
from qarat.model.checkpoints import describe_reference_models
from qarat.model.native import is_native, read_native
from qarat.stages.export.base import MARK, check_export, export_model
from qarat.surfaces import options
from qarat.surfaces.commands.common import (
    check_weights,
    command_line,
    is_reference,
    load_tokens,
    note_matches,
    open_float,
    quoted,
    request_of,
    runtime_of,
    scheme_of,
    show_estimate,
)
from qarat.surfaces.page import write_report
from qarat.surfaces.screens import Lines, Screen
from qarat.values.records.files import Record, decode_record, encode_record
from qarat.values.records.scores import Evaluation, ZeroShot
from qarat.values.records.streams import ActivationStats
from qarat.values.records.verification import Verification
from qarat.values.schemes import LinearScheme

INT6 = "w=int6/channel a=int6/tensor/static"  # harder than the default: what spikes cost is plain to see


def run(asked: options.Run, screen: Screen) -> Lines:
    """Do everything, in a folder that survives a kill."""
    request = request_of(asked.planning, asked.prefix, asked.transform)
    out = asked.out or Path(f"{Path(asked.model).resolve().name}-qarat")
    folder = Run(out, pipeline.KIND, overwrite=asked.overwrite)
    model = open_float(asked)
    tokens = load_tokens(asked, model, screen)
    job = pipeline.Pipeline(
        model,
        tokens,
        request,
        seed=asked.general.seed,
        prompt=asked.prompt,
        exports=asked.export,
        progress=screen.progress,
        show=screen.show,
        note=screen.note,
    )
    note_matches(request, model, screen)
    if asked.general.dry_run:
        check_weights(model)
        screen.show(job.estimate())
        return ()
    with folder.work(command=screen.command):
        job.execute(folder)
    if asked.page:
        write_report([out], out, progress=screen.progress)
    harder = ["--low", INT6] if request.low != INT6 else ["--low", options.LOW]
    harder += ["--transform", *asked.transform] if asked.transform else []
    harder += ["--prefix", asked.prefix] if asked.prefix != "0" else []
    name = out.name + ("-int6" if request.low != INT6 else "-int8")
    return (
        f"written: {quoted(out)} (the quantized model in {quoted(out / pipeline.MODEL)}, and every record behind it)",
        *([f"the page to look at: {quoted(out / 'report.html')}"] if asked.page else []),
        *(f"exported: {quoted(out / format)}" for format in asked.export),
        "try next:",
        f"  qarat show {quoted(out)}",
        f"  qarat evaluate {quoted(out)}",
        f"  {command_line('run', asked, *harder, '-o', out.with_name(name))}",
        *(["  qarat run YOUR_MODEL --calibration YOUR_TEXT.jsonl"] if is_reference(model) else []),
    )


def export(asked: options.Export, screen: Screen) -> Lines:
    """Write a quantized model, or its plan, in the format of another program."""
    check_folder(asked.out, MARK, overwrite=asked.overwrite)
    model, chosen = open_to_export(asked.run, asked.source)
    check_export(model, chosen, asked.format)
    if asked.dry_run:
        return show_estimate(screen, model, {"export": ROUNDING}, disk=quantized_bytes(model, chosen))
    notes = export_model(model, chosen, asked.out, asked.format, overwrite=asked.overwrite, progress=screen.progress)
    screen.show(chosen)
    for note in notes:
        screen.note(note)
    return (f"written: {quoted(asked.out)}",)


def verify(asked: options.Verify, screen: Screen) -> Lines:
    """Check a quantized folder, alone or against its run or float model; fails where it has errors."""
    if asked.general.dry_run:
        raise ArgumentError("--dry-run: verify writes nothing but -o; without --against it does little but read")
    if asked.out is not None:
        check_file(asked.out)
    verification = _verify(asked, screen)
    screen.show(verification)
    if asked.out is not None:
        write_whole(asked.out, encode_record(verification))
    if not verification.passed:
        raise NotPassedError(f"{asked.model} does not pass; its errors are listed first among the findings")
    return () if asked.out is None else (f"written: {quoted(asked.out)}",)


def _verify(asked: options.Verify, screen: Screen) -> Verification:
    folder, engines, gpu = Path(asked.model), asked.engine, asked.gpu or ""
    if asked.against is None:
        return verify_alone(folder, engines, gpu)
    native = find_native(Path(asked.against))
    if native is not None:
        run, chosen = read_native(native, runtime_of(asked.machine))
        _, _, report = load_tokens(asked, run, screen)
        return verify_against_run(folder, run, chosen, report, engines, gpu, progress=screen.progress)
    model = open_float(dataclasses.replace(asked, model=asked.against))
    calibration, _, report = load_tokens(asked, model, screen)
    return verify_against_float(folder, model, calibration, report, engines, gpu, progress=screen.progress)


def show(asked: options.Show, screen: Screen) -> Lines:
    """Print records, or a run's folder."""
    if not asked.paths:
        raise ArgumentError("give `qarat show` files, or the folder of a run")
    low = scheme_of("--low", asked.low)
    context: dict[str, Any] = {"low": low.input if isinstance(low, LinearScheme) else None}
    records: list[Record] = []
    for path in asked.paths:
        folder = path if path.exists() else path.with_name(path.name + ".partial")
        kind = kind_of(folder)
        if kind and (folder / result_of(kind)).is_file():
            screen.show(decode_record(folder / result_of(kind)))
        elif kind == SPIKE_STUDY:
            _show_begun_study(folder, screen, **context)
        elif kind not in ("", pipeline.KIND):
            _note_begun_search(folder, screen)
        elif folder.is_dir() and not is_native(folder):
            _show_run(folder, screen, asked.low)
        else:
            records.append(decode_record(path / pipeline.PLAN if path.is_dir() else path))
    if len(records) > 1 and any(all(isinstance(r, kind) for r in records) for kind in (Evaluation, ZeroShot)):
        screen.show(*records)
        return ()
    for record in records:
        screen.show(record, **(context if isinstance(record, ActivationStats) else {}))
    return ()


def _show_begun_study(folder: Path, screen: Screen, **context: Any) -> None:
    """What a study has found that has not measured its first arms."""
    found, missing = read_study(folder)
    for record in found.values():
        screen.show(record, **(context if isinstance(record, ActivationStats) else {}))
    screen.note(f"{folder} is a study that is not finished; missing: {', '.join(missing)}")
    screen.note(f"it continues with the same command: {read_command(folder) or 'qarat study spikes'}")


def _note_begun_search(folder: Path, screen: Screen) -> None:
    """What a search, or many, has come to that has no result yet."""
    plans = count_plans(folder)
    screen.note(f"{folder} holds searching that is not finished: {plans:,} plans measured so far")
    screen.note(f"it continues with the same command: {read_command(folder)}")


def _show_run(folder: Path, screen: Screen, low: str) -> None:
    missing = pipeline.show_run(folder, screen.show, low)
    if missing:
        there = [step for step in pipeline.STEPS if step not in missing]
        done = f"done: {', '.join(there) or 'nothing'}"
        screen.note(f"{folder} is not finished; {done}; missing: {', '.join(missing)}")
    elif folder.name.endswith(".partial"):
        screen.note(f"{folder} has every step, but was not put into place")
    else:
        return
    screen.note(f"it continues with the same command: {read_command(folder) or 'qarat run'}")


def models(asked: options.Models, screen: Screen) -> Lines:
    """List the reference models."""
    screen.show(*describe_reference_models())
    return ()

"""Verbs that make and check folders: run, export, verify."""

from __future__ import annotations

import sys
from pathlib import Path

from qarat.ground.disk import check_folder, check_room
from qarat.ground.errors import ArgumentError, NotPassedError, UndecidedError, judging
from qarat.jobs.checks import check_plan_request
from qarat.jobs.estimates import TO_EXPORT, quantized_bytes
from qarat.jobs.exporting import HOLD_WEIGHTS, SERVED, bytes_of, read_to_export
from qarat.jobs.folder import Run
from qarat.jobs.live import Live
from qarat.jobs.open_any import find_native
from qarat.jobs.run_steps import KIND, MODEL
from qarat.jobs.verify import AgainstFloat, AgainstRun
from qarat.jobs.verify import verify as verify_folder
from qarat.jobs.whole_run import Pipeline
from qarat.model.model import Model
from qarat.model.native import read_native
from qarat.model.token_sets import bundled_language
from qarat.stages.export.base import MARK
from qarat.surfaces.commands import Lines, Screen, common
from qarat.surfaces.commands.common import quoted
from qarat.surfaces.options.folders import ExportOptions, RunOptions, VerifyOptions
from qarat.surfaces.page import write_report
from qarat.surfaces.tables.wording import megabytes
from qarat.values.budgets import parse_size
from qarat.values.records.verification import Verification
from qarat.values.schemes import LOW

INT6 = "w=int6/channel a=int6/tensor/static"  # harder than the default: what spikes cost is plain to see


def run(options: RunOptions, screen: Screen) -> Lines:
    """Do everything, in a folder that survives a kill."""
    request = options.planning
    check_plan_request(request)
    out = options.folder
    folder = Run(out, KIND, overwrite=options.overwrite)
    model = common.open_float(options.model, options)
    tokens = common.load_tokens(options, model, screen)
    with common.spreading(options, model) as spread:
        job = Pipeline(
            model,
            tokens,
            request,
            seed=options.general.seed,
            prompt=options.prompt,
            exports=options.export,
            spread=spread,
            progress=screen.progress,
            show=screen.show,
            note=screen.note,
        )
        common.note_request(request, model, screen)
        if options.general.dry_run:
            estimated = job.estimate()
            common.check_weights(model)
            screen.show(estimated)
            return ()
        check_room(out, job.disk_bytes())
        with folder.work(**common.facts_of(options.model, model, screen)):
            job.execute(folder)
    if options.page:
        write_report([out], out, progress=screen.progress)
    return _run_ending(options, out, model)


def _run_ending(options: RunOptions, out: Path, model: Model) -> Lines:
    harder = INT6 if options.planning.low != INT6 else LOW
    name = out.name + ("-int6" if harder == INT6 else "-int8")
    return (
        f"written: {quoted(out)} (the quantized model in {quoted(out / MODEL)}, and every record behind it)",
        *([f"the page to look at: {quoted(out / 'report.html')}"] if options.page else []),
        *(f"exported: {quoted(out / format)}" for format in options.export),
        "try next:",
        *(_serving(out / SERVED, out) if SERVED in options.export else ()),
        f"  qarat show {quoted(out)}",
        f"  qarat evaluate {quoted(out)}",
        f"  {common.command_line('run', options, '--low', harder, '-o', out.with_name(name))}",
        *(["  qarat run YOUR_MODEL --calibration YOUR_TEXT.jsonl"] if bundled_language(model) == "python" else []),
    )


def export(options: ExportOptions, screen: Screen) -> Lines:
    """Write a quantized model, or its plan, in the format of another program."""
    check_folder(options.out, MARK, overwrite=options.overwrite)
    given = read_to_export(options.run, options.format, options.source)
    disk = quantized_bytes(given.model, given.plan) if options.format in HOLD_WEIGHTS else 0
    if options.dry_run:
        return common.show_estimate(screen, given.model, {"export": TO_EXPORT}, disk=disk)
    check_room(options.out, disk)
    notes = given.write(options.out, options.format, overwrite=options.overwrite, progress=screen.progress)
    screen.show(given.plan)
    for note in notes:
        screen.note(note)
    return _export_ending(options, given.model)


def _export_ending(options: ExportOptions, model: Model) -> Lines:
    """What was written, how large it is beside the float model, and what to do with it."""
    out, size = quoted(options.out), bytes_of(options.out)
    sizes = f" ({megabytes(8 * size)} MB of weights, in float {megabytes(8 * model.source_bytes)} MB)" if size else ""
    following = ("try next:", *_serving(options.out, options.run)) if options.format == SERVED else ()
    return (f"written: {out}{sizes}", *following)


def _serving(out: Path, source: Path) -> Lines:
    """What to do with a folder that engines load."""
    return f"  qarat verify {quoted(out)} --against {quoted(source)}", f"  vllm serve {quoted(out)}"


def verify(options: VerifyOptions, screen: Screen) -> Lines:
    """Check a quantized folder, alone or against its run or float model; fails where it has errors."""
    if options.general.dry_run:
        raise ArgumentError("`dry_run`: verify writes nothing but -o; without --against it does little but read")
    with judging(options.model):
        verification = _verify(options, screen)
        screen.show(verification)
        written = common.save(verification, options.out)
    if verification.verdict == "fails":
        raise NotPassedError(f"{options.model} does not pass; its errors are listed first among the findings")
    if verification.verdict == "not judged":
        raise UndecidedError(
            f"{options.model} has no errors, but not all of it was judged; what was not is listed first"
        )
    return written


def _verify(options: VerifyOptions, screen: Screen) -> Verification:
    folder, engines, gpu, live = Path(options.model), options.engine, options.gpu or "", _live(options, screen)
    if options.against is None:
        return verify_folder(folder, engines, gpu, live=live, progress=screen.progress)
    native = find_native(Path(options.against))
    if native is not None:
        run, chosen = read_native(native, common.runtime_of(options.machine))
        report = common.load_report(options, run, screen)
        against = AgainstRun(run, chosen, report)
        return verify_folder(folder, engines, gpu, against=against, live=live, progress=screen.progress)
    model = common.open_float(options.against, options)
    calibration, _, report = common.load_tokens(options, model, screen)
    against = AgainstFloat(model, calibration, report)
    return verify_folder(folder, engines, gpu, against=against, live=live, progress=screen.progress)


def _live(options: VerifyOptions, screen: Screen) -> Live | None:
    if options.live is None:
        return None
    python = options.engine_python or Path(sys.executable)
    runtime, bound = common.runtime_of(options.machine), options.machine.memory
    memory = parse_size("memory", bound) if bound else 0  # the engine is a process of its own
    return Live(
        options.live, lambda m: common.load_report(options, m, screen), runtime, python, options.seconds, memory
    )

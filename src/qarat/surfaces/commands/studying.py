"""Verbs that study a method, not a model alone: study calibration."""

from __future__ import annotations

from qarat.jobs.calibration_study import KIND, RESULT, CalibrationJob, Limits
from qarat.jobs.folder import Run
from qarat.model.token_sets import Cutter
from qarat.surfaces.commands import Lines, Screen, common
from qarat.surfaces.commands.common import quoted
from qarat.surfaces.options.studying import StudyCalibrationOptions
from qarat.surfaces.page import write_report


def study_calibration(options: StudyCalibrationOptions, screen: Screen) -> Lines:
    """Measure every calibration on every test, in a folder that survives a kill."""
    out, text = options.folder, options.text
    folder = Run(out, KIND, overwrite=options.overwrite)
    model = common.open_float(options.model, options)
    draw = common.drawing_of(options, screen)
    cutter = Cutter(model, text.length, text.bos, options.general.seed, draw, screen.progress)
    windows = Limits(text.samples, text.report_samples)
    job = CalibrationJob(options.study, cutter, windows, name=options.model, column=text.column)
    if options.general.dry_run:
        return common.show_estimate(screen, model, job.work(), states=job.tokens.windows.numel())
    with folder.work(**common.facts_of(options.model, model, screen)):
        study = job.execute(folder)
    screen.show(study)
    page = write_report([out], out, progress=screen.progress)
    return (
        f"written: {quoted(out)} (the loss of every window under every calibration in {RESULT})",
        f"the page to look at: {quoted(page)}",
        f"try next: {common.command_line('run', options, '--calibration', 'YOUR_TEXT')}",
    )

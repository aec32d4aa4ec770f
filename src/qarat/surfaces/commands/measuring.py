"""Verbs that measure models as they are: evaluate, compare, bench."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from qarat.ground.errors import ArgumentError
from qarat.jobs.compare import compare_named
from qarat.jobs.engine_process import EngineProcess
from qarat.jobs.engine_speed import time_folders
from qarat.jobs.open_any import Opened, open_for_evaluation, open_low
from qarat.jobs.replicas import Replica
from qarat.jobs.runners import Runner, open_runner
from qarat.jobs.spreading import Spread
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.stages.measure.conventions import load_by_convention
from qarat.stages.measure.divergence import measure_divergence
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.measure.tasks.zero_shot import measure_tasks
from qarat.surfaces.commands import Lines, Screen, common
from qarat.surfaces.commands.common import quoted
from qarat.surfaces.options.groups import Text
from qarat.surfaces.options.measuring import BenchOptions, CompareOptions, EvaluateOptions
from qarat.values.budgets import parse_size
from qarat.values.parsing import is_scheme
from qarat.values.records.comparison import Comparable


def evaluate(options: EvaluateOptions, screen: Screen) -> Lines:
    """Measure perplexity, divergence from float, or zero-shot accuracy."""
    opened = open_for_evaluation(options.model, common.runtime_of(options.machine), revision=options.general.revision)
    if options.general.dry_run:
        return _estimate(options, screen, opened)
    with open_runner(options.runners.workers, options.runners.ray) as runner:
        record = _measure(options, screen, opened, runner)
    screen.show(record)
    if options.out is None:
        return ()
    common.save(record, options.out)
    next_command = f"qarat compare {quoted(options.out)} ANOTHER"
    return common.ending(options.out, next_command, why="another record, run, export or model")


def compare(options: CompareOptions, screen: Screen) -> Lines:
    """Compare models, runs, exports and records with the first."""
    if options.general.dry_run:
        raise ArgumentError("--dry-run: what has to be measured is known once everything is opened; try `evaluate`")
    how = options.measure
    measured_anew = bool(how.tasks or how.against or how.convention) or options.text != Text()

    with open_runner(options.runners.workers, options.runners.ray) as runner:

        def opened(name: str) -> Opened:
            if not is_scheme(name):
                return open_for_evaluation(name, common.runtime_of(options.machine), revision=options.general.revision)
            model = common.open_float(options.names[0], options)
            given = Opened(model, "float", "", options.names[0], options.general.revision)
            spread = Spread.by(runner, given.replica(runner.share))
            calibration = common.load_tokens(options, model, screen)[0]
            return open_low(given, name, calibration, collect=spread and spread.collect, progress=screen.progress)

        comparison = compare_named(
            options.names, lambda one: _measure(options, screen, one, runner), opened, recorded=not measured_anew
        )
    screen.show(comparison)
    return common.save(comparison, options.out)


def bench(options: BenchOptions, screen: Screen) -> Lines:
    """Time folders in an engine."""
    python = options.engine_python or Path(sys.executable)
    memory = parse_size("memory", options.memory) if options.memory else 0
    process = EngineProcess(options.engine, python, options.seconds, memory, options.threads or 0)
    record = time_folders(options.folders, process, options.speed, progress=screen.progress)
    screen.show(record)
    return common.save(record, options.out)


def _measure(options: EvaluateOptions | CompareOptions, screen: Screen, opened: Opened, runner: Runner) -> Comparable:
    """Measure what was asked for, where a runner says."""
    model, label, plan = opened.model, opened.label, opened.plan
    how = options.measure
    spread = Spread.by(runner, opened.replica(runner.share))
    if how.tasks:
        limits: dict[str, Any] = {"limit": how.limit, "data": how.task_folder, "progress": screen.progress}
        return measure_tasks(
            model, how.tasks, label=label, plan=plan, answer=spread and spread.answering(model), **limits
        )
    tokens, model = _report(options, screen, model), model.unkept()  # every block is walked through once
    more: dict[str, Any] = {"label": label, "plan": plan, "progress": screen.progress}
    if how.against is not None:
        base = common.open_float(how.against, options).unkept()
        if spread is not None:
            other = Replica(base, how.against, revision=options.general.revision, share=runner.share)
            more["compare"] = spread.comparing(other)
        return measure_divergence(model, base, tokens, **more)
    return measure_perplexity(model, tokens, losses=spread and spread.losses, **more)


def _report(options: EvaluateOptions | CompareOptions, screen: Screen, model: Model) -> TokenSet:
    text = options.text
    if options.measure.convention is None:
        return common.load_report(options, model, screen)
    if text.report is None:
        screen.note("no --report-text was given, so the convention is put to the text that ships with qarat")
    how = {"column": text.column, "limit": options.measure.limit, "seed": options.general.seed}
    tokens = load_by_convention(model, options.measure.convention, text.report, **how)
    common.note_controls([tokens], model, screen)
    return tokens


def _estimate(options: EvaluateOptions, screen: Screen, opened: Opened) -> Lines:
    if options.measure.tasks:
        raise ArgumentError("--dry-run cannot say what --tasks would take: that depends on the tasks; try --limit 10")
    passes = 2 if options.measure.against else 1
    tokens = passes * _report(options, screen, opened.model).windows.numel()
    return common.show_estimate(screen, opened.model.unkept(), {f"evaluate {opened.label}": tokens}, states=tokens)

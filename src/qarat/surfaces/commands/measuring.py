"""Verbs that measure models as they are: evaluate, compare."""

from __future__ import annotations

import dataclasses

from qarat.ground.disk import check_file, write_whole
from qarat.ground.errors import ArgumentError
from qarat.jobs.compare import compare_named
from qarat.jobs.open_any import Opened, open_for_evaluation
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.stages.measure.conventions import load_by_convention
from qarat.stages.measure.divergence import measure_divergence
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.measure.tasks.zero_shot import measure_tasks
from qarat.surfaces import options
from qarat.surfaces.commands.common import ending, load_tokens, open_float_named, quoted, runtime_of, show_estimate
from qarat.surfaces.screens import Lines, Screen
from qarat.values.records.comparison import Comparable
from qarat.values.records.files import encode_record


def evaluate(asked: options.Evaluate, screen: Screen) -> Lines:
    """Measure perplexity, divergence from float, or zero-shot accuracy."""
    if asked.out is not None:
        check_file(asked.out)
    _check(asked.measure, asked.text)
    opened = open_for_evaluation(asked.model, runtime_of(asked.machine), revision=asked.general.revision)
    if asked.general.dry_run:
        return _estimate(asked, screen, opened)
    record = _measure(asked, screen, opened)
    screen.show(record)
    if asked.out is None:
        return ()
    write_whole(asked.out, encode_record(record))
    return ending(asked.out, f"qarat compare {quoted(asked.out)} ANOTHER", why="another record, run, export or model")


def compare(asked: options.Compare, screen: Screen) -> Lines:
    """Compare models, runs, exports and records with the first."""
    if len(asked.names) < 2:
        raise ArgumentError("give `qarat compare` at least two: files of records, runs, exports or models")
    if asked.out is not None:
        check_file(asked.out)
    _check(asked.measure, asked.text)
    if asked.general.dry_run:
        raise ArgumentError("--dry-run: what has to be measured is known once everything is opened; try `evaluate`")
    how = asked.measure
    measured_anew = bool(how.tasks or how.against or how.convention) or asked.text != options.Text()
    comparison = compare_named(
        asked.names,
        lambda opened: _measure(asked, screen, opened),
        runtime_of(asked.machine),
        revision=asked.general.revision,
        recorded=not measured_anew,
    )
    screen.show(comparison)
    if asked.out is None:
        return ()
    write_whole(asked.out, encode_record(comparison))
    return (f"written: {quoted(asked.out)}",)


def _check(asked: options.Measure, text: options.Text) -> None:
    if asked.limit is not None and asked.limit < 1:
        raise ArgumentError(f"--limit {asked.limit}: give at least 1")
    if asked.limit is not None and not asked.tasks and not asked.convention:
        raise ArgumentError("--limit is of --tasks or a --convention; otherwise --report-samples says how many windows")
    if asked.convention and text != dataclasses.replace(options.Text(), report_text=text.report_text):
        raise ArgumentError("--convention says how text is cut; only --report-text and --limit go with it")
    if asked.tasks and (asked.against or asked.convention):
        raise ArgumentError("--tasks measures accuracy; --against and --convention are about the report text")
    if asked.task_data is not None and not asked.tasks:
        raise ArgumentError("--task-data holds the files of local tasks; name those with --tasks")


def _measure(asked: options.Evaluate | options.Compare, screen: Screen, opened: Opened) -> Comparable:
    model, label, plan = opened
    how = asked.measure
    if how.tasks:
        return measure_tasks(
            model, how.tasks, label=label, plan=plan, limit=how.limit, data=how.task_data, progress=screen.progress
        )
    tokens = _report(asked, screen, model)
    if how.against is not None:
        base = open_float_named(how.against, asked)
        return measure_divergence(model, base, tokens, label=label, plan=plan, progress=screen.progress)
    return measure_perplexity(model, tokens, label=label, plan=plan, progress=screen.progress)


def _report(asked: options.Evaluate | options.Compare, screen: Screen, model: Model) -> TokenSet:
    text = asked.text
    if asked.measure.convention is None:
        return load_tokens(asked, model, screen)[2]
    if text.report_text is None:
        screen.note("no --report-text was given, so the convention is put to the Python source that ships with qarat")
    limit, seed = asked.measure.limit, asked.general.seed
    return load_by_convention(model, asked.measure.convention, text.report_text, limit=limit, seed=seed)


def _estimate(asked: options.Evaluate, screen: Screen, opened: Opened) -> Lines:
    if asked.measure.tasks:
        raise ArgumentError("--dry-run cannot say what --tasks would take: that depends on the tasks; try --limit 10")
    states = _report(asked, screen, opened.model).windows.numel()
    passes = 2 if asked.measure.against else 1
    return show_estimate(screen, opened.model, {f"evaluate {opened.label}": passes * states}, states=passes * states)

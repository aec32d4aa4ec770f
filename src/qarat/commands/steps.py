"""Verbs that do one step each: profile, damage, plan, quantize, evaluate."""

from __future__ import annotations

from pathlib import Path

from qarat import conversion, options
from qarat.commands.common import (
    command_line,
    ending,
    is_static,
    load_stats,
    load_tokens,
    native_folder,
    note_matches,
    open_float,
    quoted,
    request_of,
    runtime_of,
    scheme_of,
    show_estimate,
)
from qarat.damage import fisher
from qarat.errors import ArgumentError
from qarat.estimates import ROUNDING, SWEEP_FORWARDS, price_forwards, quantized_bytes, stats_bytes
from qarat.evaluation.perplexity import measure_perplexity
from qarat.evaluation.zero_shot import measure_tasks
from qarat.exporters.native import check_place, read_native, write_native
from qarat.models import Model
from qarat.observation import observe
from qarat.planning import find_plan, naive_plan, rank_units
from qarat.plans import Plan
from qarat.recordfiles import content_hash, decode_record, encode_record
from qarat.records import ActivationStats, Evaluation, Menu, ZeroShot
from qarat.schemes import LinearScheme
from qarat.screens import Lines, Screen
from qarat.workspace import check_file, write_whole

__all__ = ["damage", "evaluate", "plan", "profile", "quantize"]


def profile(asked: options.Profile, screen: Screen) -> Lines:
    """Measure every stream of a model in one pass."""
    low = scheme_of("--low", asked.low)
    check_file(asked.out)
    model = open_float(asked)
    calibration, _, _ = load_tokens(asked, model, screen)
    if asked.general.dry_run:
        return show_estimate(screen, model, {"profile": calibration.windows.numel()}, disk=stats_bytes(model))
    stats = observe(model, calibration, attention=asked.attention, progress=screen.progress)
    write_whole(asked.out, encode_record(stats))
    screen.show(stats, low=low.input if isinstance(low, LinearScheme) else None)
    return ending(asked.out, command_line("damage", asked, "--stats", asked.out))


def damage(asked: options.Damage, screen: Screen) -> Lines:
    """Price every scheme at every site."""
    schemes = [scheme_of("--schemes", text) for text in asked.schemes]
    check_file(asked.out)
    model = open_float(asked)
    stats = load_stats(asked.stats, model, any(is_static(s) for s in schemes))
    _, selection, _ = load_tokens(asked, model, screen)
    if asked.general.dry_run:
        tokens = selection.windows.numel()
        work = {"damage": price_forwards(len(schemes)) * tokens}
        return show_estimate(screen, model, work, states=tokens * (model.blocks + 1))
    seed = asked.general.seed
    menu = fisher.price(model, selection, schemes, stats, seed=seed, progress=screen.progress)
    write_whole(asked.out, encode_record(menu))
    screen.show(menu)
    return ending(asked.out, command_line("plan", asked, "--stats", asked.stats, "--menu", asked.out))


def plan(asked: options.Plan, screen: Screen) -> Lines:
    """Decide which sites to protect, by measurement."""
    request = request_of(asked.planning)
    check_file(asked.out)
    model = open_float(asked)
    stats, menu = decode_record(asked.stats, ActivationStats), decode_record(asked.menu, Menu)
    rank_units(request, naive_plan(model, request, stats), stats, menu)
    _, selection, _ = load_tokens(asked, model, screen)
    note_matches(request, model, screen)
    if asked.general.dry_run:
        tokens = selection.windows.numel()
        return show_estimate(screen, model, {"plan": SWEEP_FORWARDS * tokens}, states=tokens * (model.blocks + 1))
    chosen, sweep = find_plan(model, request, stats, menu, selection, progress=screen.progress)
    measured = asked.out.with_suffix(".sweep.json")
    write_whole(measured, encode_record(sweep))
    write_whole(asked.out, encode_record(chosen))
    screen.show(chosen, sweep=sweep)
    next_command = command_line("quantize", asked, "--plan", asked.out, "--stats", asked.stats)
    return ending(asked.out, next_command, also=f" and its measurements: {measured}")


def quantize(asked: options.Quantize, screen: Screen) -> Lines:
    """Quantize a model by a plan and write it as a native folder."""
    check_place(asked.out, overwrite=asked.overwrite)
    chosen = decode_record(asked.plan, Plan)
    model = open_float(asked)
    stats = load_stats(asked.stats, model, any(is_static(a.scheme) for a in chosen.assignments))
    quantized = conversion.quantize(model.in_float32(), chosen, stats)
    if asked.general.dry_run:
        return show_estimate(screen, model, {"quantize": ROUNDING}, disk=quantized_bytes(model, chosen))
    write_native(quantized, chosen, asked.out, progress=screen.progress)
    screen.show(chosen)
    return ending(asked.out, f"qarat evaluate {quoted(asked.out)}")


def evaluate(asked: options.Evaluate, screen: Screen) -> Lines:
    """Measure perplexity on the report tokens."""
    if asked.out is not None:
        check_file(asked.out)
    model, label, plan_hash = _open_either(asked)
    if asked.tasks:
        return _evaluate_tasks(asked, screen, model, label, plan_hash)
    _, _, report = load_tokens(asked, model, screen)
    if asked.general.dry_run:
        return show_estimate(
            screen, model, {f"evaluate {label}": report.windows.numel()}, states=report.windows.numel()
        )
    evaluation = measure_perplexity(model, report, label=label, plan=plan_hash, progress=screen.progress)
    return _evaluated(asked, screen, evaluation)


def _evaluate_tasks(asked: options.Evaluate, screen: Screen, model: Model, label: str, plan_hash: str) -> Lines:
    if asked.limit is not None and asked.limit < 1:
        raise ArgumentError(f"--limit {asked.limit}: give at least 1")
    if asked.general.dry_run:
        raise ArgumentError("--dry-run cannot say what --tasks would take: that depends on the tasks; try --limit 10")
    return _evaluated(
        asked,
        screen,
        measure_tasks(model, asked.tasks, label=label, plan=plan_hash, limit=asked.limit, progress=screen.progress),
    )


def _evaluated(asked: options.Evaluate, screen: Screen, evaluation: Evaluation | ZeroShot) -> Lines:
    screen.show(evaluation)
    if asked.out is None:
        return ()
    write_whole(asked.out, encode_record(evaluation))
    return ending(asked.out, f"qarat show {quoted(asked.out)} ANOTHER.json", why="to compare with another evaluation")


def _open_either(asked: options.Evaluate) -> tuple[Model, str, str]:
    """A float model, or the quantized one of a native folder or a run; its label and its plan's hash."""
    folder = native_folder(Path(asked.model))
    if folder is None:
        return open_float(asked), "float", ""
    model, chosen = read_native(folder, runtime_of(asked.machine))
    return model, "plan", content_hash(chosen)

"""Verbs that do one step each: profile, damage, plan, quantize."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from qarat.ground.disk import check_room, write_whole
from qarat.ground.errors import ArgumentError
from qarat.jobs import protecting
from qarat.jobs.bench import plan_meter
from qarat.jobs.checks import check_plan_request
from qarat.jobs.estimates import (
    PROTECTING_FORWARDS,
    TO_QUANTIZE,
    Work,
    measuring,
    observing,
    quantized_bytes,
    stats_bytes,
)
from qarat.jobs.float16 import float16_notes
from qarat.jobs.protecting import find_plan, naive_plan, rank_units
from qarat.model.model import Model
from qarat.model.native import check_place, write_native
from qarat.model.tokens import TokenSet
from qarat.stages import quantize as conversion
from qarat.stages.choose.trials import TrialLog
from qarat.stages.prices import DEFAULT, METRICS
from qarat.stages.prices.checking import check, measure_sites
from qarat.stages.prices.pricing import price
from qarat.stages.rounding import needs_calibration
from qarat.stages.rounding.inputs import Calibration
from qarat.stages.tuning import check_tuning, tune, tuning_forwards
from qarat.surfaces.commands import Lines, Screen, common
from qarat.surfaces.commands.common import quoted
from qarat.surfaces.options.steps import DamageOptions, PlanOptions, ProfileOptions, QuantizeOptions
from qarat.values.parsing import parse_scheme_in
from qarat.values.plans import Plan, assign
from qarat.values.records.files import content_hash, decode_record, encode_record
from qarat.values.records.prices import Menu
from qarat.values.records.scores import Evaluation
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import LOW, LinearScheme, Scheme, is_static


def profile(options: ProfileOptions, screen: Screen) -> Lines:
    """Measure every stream of a model in one pass."""
    low = parse_scheme_in("low", options.low)
    model = common.open_transformed(options)
    calibration, _, _ = common.load_tokens(options, model, screen)
    if options.general.dry_run:
        tokens = calibration.windows.numel()
        work = {"profile": observing(tokens)}
        return common.show_estimate(screen, model, work, states=tokens, disk=stats_bytes(model))
    more: dict[str, Any] = {"attention": options.attention, "progress": screen.progress}
    with common.spreading(options, model, common.transforming(options)) as spread:
        stats = protecting.profile(model, calibration, options.prefix, collect=spread and spread.collect, **more)
    write_whole(options.out, encode_record(stats))
    screen.show(stats, low=low.input if isinstance(low, LinearScheme) else None)
    for line in float16_notes(model, stats):
        screen.note(line)
    return common.ending(options.out, common.command_line("damage", options, "--stats", options.out))


def damage(options: DamageOptions, screen: Screen) -> Lines:
    """Price every scheme at every site, and say how well the prices predict what is measured."""
    schemes = [parse_scheme_in("schemes", text) for text in options.schemes]
    wanted = _metrics_of(options, schemes, screen)
    model = common.open_transformed(options)
    stats = common.load_stats(options.stats, model, any(is_static(s) for s in schemes))
    calibration, selection, _ = common.load_tokens(options, model, screen)
    if options.general.dry_run:
        work = {name: common.pricing_work(name, model, selection, schemes) for name in wanted}
        named = {"damage" if wanted == [DEFAULT] else f"damage {name}": step for name, step in work.items()}
        return common.show_estimate(screen, model, named, states=2 * selection.windows.numel())
    prefix = stats.prefix if stats is not None else ()
    if prefix and (wanted != ["fisher"] or options.alone):
        raise ArgumentError("with a prefix in float, fisher alone prices, and `alone` measures without one")
    menus: list[Menu] = []
    more: dict[str, Any] = {"calibration": calibration, "seed": options.general.seed, "prefix": prefix}
    with common.spreading(options, model, common.transforming(options)) as spread:
        more |= {"windows": spread and spread.prices, "progress": screen.progress}
        for name in wanted:
            menu = price(model, selection, schemes, stats, metric=name, **more)
            write_whole(_menu_file(options.out, name, wanted), encode_record(menu))
            menus.append(menu)
    screen.show(*menus)
    if options.alone:
        _check_metrics(options, screen, model, calibration, selection, stats, menus)
    # A plan's low scheme is one of projections.
    priced = [text for text, scheme in zip(options.schemes, schemes, strict=True) if isinstance(scheme, LinearScheme)]
    low = ["--low", priced[0]] if priced and LOW not in options.schemes else []
    return common.ending(
        options.out, common.command_line("plan", options, "--stats", options.stats, "--menu", options.out, *low)
    )


def _metrics_of(options: DamageOptions, schemes: Sequence[Scheme], screen: Screen) -> list[str]:
    """The metrics that were named; of all there are, those that can price the schemes.

    Raises:
        ArgumentError: A metric that was named has no price of the schemes, or of the first, which is to be checked.
        UserError: An unknown metric.
    """
    every = options.metrics == ("all",)
    named = METRICS.names() if every else list(options.metrics)
    needed = schemes[:1] if options.alone else schemes
    products = not any(isinstance(scheme, LinearScheme) for scheme in needed)
    unable = [name for name in named if METRICS.load(name).weights_only and products]
    if unable and not every:
        what = "the first scheme is checked, and it is" if options.alone else "the schemes are"
        raise ArgumentError(
            f"{', '.join(unable)} has no price of attention products and caches: {what} of no projection (w=…)"
        )
    if unable:
        screen.note(f"{', '.join(unable)} is left out: it has no price of attention products and caches")
    return [name for name in named if name not in unable]


def _menu_file(out: Path, name: str, wanted: Sequence[str]) -> Path:
    """The first metric's menu is the one options for; the others lie beside it."""
    return out if name == wanted[0] else out.with_suffix(f".{name}.json")


def _check_metrics(
    options: DamageOptions,
    screen: Screen,
    model: Model,
    calibration: TokenSet,
    selection: TokenSet,
    stats: ActivationStats | None,
    menus: Sequence[Menu],
) -> None:
    """Measure every site alone under the first scheme, and set each metric beside it."""
    stats_hash = content_hash(stats) if stats else ""
    plan = assign(model.fingerprint, model.source_bits, model.sites(), "float", stats=stats_hash)
    origin = model.provenance(selection.fingerprint, selection.convention)
    scheme = parse_scheme_in("schemes", options.schemes[0])
    belongs_to = {"provenance": msgspec.to_builtins(origin), "stats": stats_hash}
    if needs_calibration([scheme]):
        belongs_to["calibration"] = calibration.fingerprint
    inputs = Calibration(model, calibration)
    meter = plan_meter(model, selection, stats, TrialLog(options.trials, belongs_to), calibration=inputs)

    def measure(plan: Plan, label: str) -> Evaluation:
        return meter.loss(msgspec.structs.replace(plan, note=label))

    measured = measure_sites(plan, scheme, measure, progress=screen.progress)
    write_whole(options.measured, encode_record(measured))
    screen.show(*(check(menu, measured) for menu in menus))


def plan(options: PlanOptions, screen: Screen) -> Lines:
    """Decide which sites to protect, by prices and a few measured plans."""
    request = msgspec.structs.replace(options.planning, transforms=options.transforms.transforms)
    check_plan_request(request)
    model = common.open_transformed(options)
    stats, menu = decode_record(options.stats, ActivationStats), decode_record(options.menu, Menu)
    common.check_transforms(options.stats, stats.provenance.model, model)
    common.check_transforms(options.menu, menu.provenance.model, model)
    rank_units(request, naive_plan(model, request, stats), stats, menu)
    calibration, selection, _ = common.load_tokens(options, model, screen)
    common.note_request(request, model, screen)
    if options.general.dry_run:
        tokens, plans = selection.windows.numel(), 3 if request.sites else PROTECTING_FORWARDS
        return common.show_estimate(
            screen, model, {"plan": measuring(tokens, plans)}, states=tokens * (model.blocks + 1)
        )
    more: dict[str, Any] = {"calibration": calibration, "progress": screen.progress}
    with common.spreading(options, model, common.transforming(options)) as spread:
        chosen, protection = find_plan(model, selection, request, stats, menu, spread=spread, **more)
    measured = options.out.with_suffix(".protection.json")
    write_whole(measured, encode_record(protection))
    write_whole(options.out, encode_record(chosen))
    screen.show(chosen, protection=protection)
    next_command = common.command_line("quantize", options, "--plan", options.out, "--stats", options.stats)
    return common.ending(options.out, next_command, also=f" and its measurements: {measured}")


def quantize(options: QuantizeOptions, screen: Screen) -> Lines:
    """Quantize a model by a plan and write it as a native folder."""
    check_place(options.out, overwrite=options.overwrite)
    chosen = msgspec.structs.replace(decode_record(options.plan, Plan), tuned=options.tune)
    model = common.open_transformed(options)
    common.check_transforms(options.plan, chosen.model, model)
    stats = common.load_stats(options.stats, model, any(is_static(a.scheme) for a in chosen.assignments))
    if options.tune:
        check_tuning(chosen, options.tune)
    looks = needs_calibration(a.scheme for a in chosen.assignments)
    calibration = common.load_tokens(options, model, screen)[0] if looks or options.tune else None
    model = model.in_float32()
    quantized = conversion.quantize(model, chosen, stats, calibration)
    disk = quantized_bytes(model, chosen)
    if options.general.dry_run:
        work: dict[str, float | Work] = {"quantize": TO_QUANTIZE}
        if options.tune and calibration is not None:
            work["tune"] = float(tuning_forwards(calibration, options.tune))
        return common.show_estimate(screen, model, work, disk=disk)
    check_room(options.out, disk)
    if options.tune and calibration is not None:
        quantized = tune(model, quantized, calibration, chosen, options.tune, progress=screen.progress)
    write_native(quantized, chosen, options.out, progress=screen.progress)
    screen.show(chosen)
    out = quoted(options.out)
    return f"written: {out} (read by qarat alone)", "try next:", f"  qarat export {out}", f"  qarat evaluate {out}"

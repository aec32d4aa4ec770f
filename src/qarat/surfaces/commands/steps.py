"""Verbs that do one step each: profile, damage, plan, quantize."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qarat.ground.disk import check_file, write_whole
from qarat.ground.errors import ArgumentError
from qarat.jobs import protecting
from qarat.jobs.bench import make_meter
from qarat.jobs.estimates import CHOOSING_FORWARDS, ROUNDING, quantized_bytes, stats_bytes
from qarat.jobs.protecting import find_plan, naive_plan, rank_units
from qarat.maths.static_scales import is_static
from qarat.model.model import Model
from qarat.model.native import check_place, write_native
from qarat.model.tokens import TokenSet
from qarat.stages import quantize as conversion
from qarat.stages.prices import METRICS, prices_products
from qarat.stages.prices.checking import check, measure_sites
from qarat.surfaces import options
from qarat.surfaces.commands.common import (
    check_transforms,
    command_line,
    ending,
    load_stats,
    load_tokens,
    note_matches,
    open_transformed,
    prefix_of,
    pricing_work,
    quoted,
    request_of,
    scheme_of,
    show_estimate,
)
from qarat.surfaces.screens import Lines, Screen
from qarat.values.plans import Plan, assign
from qarat.values.records.files import content_hash, decode_record, encode_record
from qarat.values.records.prices import Menu
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import LinearScheme, MatmulScheme, Scheme


def profile(asked: options.Profile, screen: Screen) -> Lines:
    """Measure every stream of a model in one pass."""
    low = scheme_of("--low", asked.low)
    check_file(asked.out)
    model = open_transformed(asked)
    calibration, _, _ = load_tokens(asked, model, screen)
    if asked.general.dry_run:
        return show_estimate(screen, model, {"profile": calibration.windows.numel()}, disk=stats_bytes(model))
    stats = protecting.profile(
        model, calibration, prefix_of(asked.prefix), attention=asked.attention, progress=screen.progress
    )
    write_whole(asked.out, encode_record(stats))
    screen.show(stats, low=low.input if isinstance(low, LinearScheme) else None)
    return ending(asked.out, command_line("damage", asked, "--stats", asked.out))


def damage(asked: options.Damage, screen: Screen) -> Lines:
    """Price every scheme at every site, and say how well the prices predict what is measured."""
    schemes = [scheme_of("--schemes", text) for text in asked.schemes]
    wanted = _metrics_of(asked, schemes, screen)
    check_file(asked.out)
    model = open_transformed(asked)
    stats = load_stats(asked.stats, model, any(is_static(s) for s in schemes))
    _, selection, _ = load_tokens(asked, model, screen)
    if asked.general.dry_run:
        work = {f"damage {name}": pricing_work(name, model, selection, schemes) for name in wanted}
        return show_estimate(screen, model, work, states=selection.windows.numel() * (model.blocks + 1))
    prefix = {"prefix": stats.prefix} if stats is not None and stats.prefix else {}
    if prefix and (wanted != ["fisher"] or asked.check):
        raise ArgumentError("with a prefix in float, fisher alone prices, and --check measures without one")
    menus: list[Menu] = []
    for name in wanted:
        price = METRICS.load(name).price
        menu = price(model, selection, schemes, stats, seed=asked.general.seed, progress=screen.progress, **prefix)
        write_whole(_menu_file(asked.out, name, wanted), encode_record(menu))
        menus.append(menu)
    screen.show(*menus)
    if asked.check:
        _check_metrics(asked, screen, model, selection, stats, menus)
    # A plan's low scheme is one of projections.
    priced = [text for text, scheme in zip(asked.schemes, schemes, strict=True) if isinstance(scheme, LinearScheme)]
    low = ["--low", priced[0]] if priced and options.LOW not in asked.schemes else []
    return ending(asked.out, command_line("plan", asked, "--stats", asked.stats, "--menu", asked.out, *low))


def _metrics_of(asked: options.Damage, schemes: Sequence[Scheme], screen: Screen) -> list[str]:
    """The metrics that were asked for; of all there are, those that can price what is asked.

    Raises:
        ArgumentError: A metric that was named has no price of the schemes, or of the first, which is to be checked.
        UserError: An unknown metric.
    """
    every = asked.metrics == ("all",)
    named = METRICS.names() if every else list(asked.metrics)
    needed = schemes[:1] if asked.check else schemes
    products = all(isinstance(scheme, MatmulScheme) for scheme in needed)
    unable = [name for name in named if not prices_products(name) and products]
    if unable and not every:
        what = "the first scheme is checked, and it is" if asked.check else "the schemes are"
        raise ArgumentError(f"{', '.join(unable)} has no price of attention products: {what} of no projection (w=…)")
    if unable:
        screen.note(f"{', '.join(unable)} is left out: it has no price of attention products")
    return [name for name in named if name not in unable]


def _menu_file(out: Path, name: str, wanted: Sequence[str]) -> Path:
    """The first metric's menu is the one asked for; the others lie beside it."""
    return out if name == wanted[0] else out.with_suffix(f".{name}.json")


def _check_metrics(
    asked: options.Damage,
    screen: Screen,
    model: Model,
    selection: TokenSet,
    stats: ActivationStats | None,
    menus: Sequence[Menu],
) -> None:
    """Measure every site alone under the first scheme, and set each metric beside it."""
    stats_hash = content_hash(stats) if stats else ""
    plan = assign(model.fingerprint, model.source_bits, model.sites(), "float", stats=stats_hash)
    meter = make_meter(model, selection, stats)
    measured = measure_sites(plan, scheme_of("--schemes", asked.schemes[0]), meter.measure, progress=screen.progress)
    write_whole(asked.out.with_suffix(".measured.json"), encode_record(measured))
    screen.show(*(check(menu, measured) for menu in menus))


def plan(asked: options.Plan, screen: Screen) -> Lines:
    """Decide which sites to protect, by measurement."""
    request = request_of(asked.planning, "auto", asked.transforms.transform)  # the prefix is as the stats have it
    check_file(asked.out)
    model = open_transformed(asked)
    stats, menu = decode_record(asked.stats, ActivationStats), decode_record(asked.menu, Menu)
    check_transforms(asked.stats, stats.provenance.model, model)
    check_transforms(asked.menu, menu.provenance.model, model)
    rank_units(request, naive_plan(model, request, stats), stats, menu)
    _, selection, _ = load_tokens(asked, model, screen)
    note_matches(request, model, screen)
    if asked.general.dry_run:
        tokens = selection.windows.numel()
        return show_estimate(screen, model, {"plan": CHOOSING_FORWARDS * tokens}, states=tokens * (model.blocks + 1))
    chosen, protection = find_plan(model, selection, request, stats, menu, progress=screen.progress)
    measured = asked.out.with_suffix(".protection.json")
    write_whole(measured, encode_record(protection))
    write_whole(asked.out, encode_record(chosen))
    screen.show(chosen, protection=protection)
    next_command = command_line("quantize", asked, "--plan", asked.out, "--stats", asked.stats)
    return ending(asked.out, next_command, also=f" and its measurements: {measured}")


def quantize(asked: options.Quantize, screen: Screen) -> Lines:
    """Quantize a model by a plan and write it as a native folder."""
    check_place(asked.out, overwrite=asked.overwrite)
    chosen = decode_record(asked.plan, Plan)
    model = open_transformed(asked)
    check_transforms(asked.plan, chosen.model, model)
    stats = load_stats(asked.stats, model, any(is_static(a.scheme) for a in chosen.assignments))
    quantized = conversion.quantize(model.in_float32(), chosen, stats)
    if asked.general.dry_run:
        return show_estimate(screen, model, {"quantize": ROUNDING}, disk=quantized_bytes(model, chosen))
    write_native(quantized, chosen, asked.out, progress=screen.progress)
    screen.show(chosen)
    return ending(asked.out, f"qarat evaluate {quoted(asked.out)}")

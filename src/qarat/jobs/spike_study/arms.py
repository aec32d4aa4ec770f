"""The arms of a spike study: what each protects, and by which scheme. Pure; nothing is measured here."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from qarat.stages.choose.protect import rank_by_damage
from qarat.stages.spikes import snr
from qarat.values.parsing import input_scheme
from qarat.values.records.prices import Menu
from qarat.values.records.spike_study import MAIN
from qarat.values.records.streams import ActivationStats
from qarat.values.requests.protect import PROTECTIONS
from qarat.values.requests.spike_study import Setting
from qarat.values.roles import Role
from qarat.values.schemes import FLOAT
from qarat.values.sites import Site, short_name
from qarat.values.units import make_units

NAIVE, PROTECTED, INPUTS = "naive", "protected", "protected inputs"
PROTECTED_IN = {"fp8": "protected in E4M3", "fp8-e5m2": "protected in E5M2"}
SAME_KIND, ANY_KIND = "random of the same kind", "random sites"
ATTENTION, MLP, ALONE = "attention", "MLP", " alone low"
"""Parts of an ablation, beside the kinds of projection, and what is behind a part in an arm's label."""
_READ_BY_ATTENTION = (Role.ATTENTION_INPUT, Role.ATTENTION_OUTPUT)
EVERY_DOWN, ENDS = "every down_proj", "first and last block"


class PlannedArm(NamedTuple):
    """An arm before it is measured.

    Attributes:
        world: What it is measured in (`qarat.jobs.spike_study.worlds`).
        group: As of `StudyArm`.
        label: As of `StudyArm`.
        setting: As of `StudyArm`.
        scheme: Of the low sites.
        protected: Full names.
        protection: Their scheme.
    """

    world: str
    group: str
    label: str
    setting: str
    scheme: str
    protected: tuple[str, ...] = ()
    protection: str = FLOAT

    @property
    def name(self) -> str:
        """As of `StudyArm`: label and setting."""
        return f"{self.label}, {self.setting}"


def protection_arms(setting: Setting, sites: tuple[str, ...]) -> Iterator[PlannedArm]:
    """Naive; and the sites in float, in FP8, or only their inputs freed.

    Args:
        setting: Of all of them.
        sites: To be protected; without any there is only naive.
    """
    low = setting.low
    yield PlannedArm(MAIN, "naive", NAIVE, low, low)
    # QFeM's code keeps the weight low and frees the activation alone (arXiv 2405.14428).
    formats = {label: PROTECTIONS[name] for name, label in PROTECTED_IN.items()}
    kept = {PROTECTED: FLOAT, **formats, INPUTS: low.partition(" ")[0]}
    for label, protection in kept.items() if sites else ():
        yield PlannedArm(MAIN, "protection", label, low, low, sites, protection)


def control_arms(setting: Setting, sites: tuple[str, ...], every: Sequence[Site], seeds: int) -> Iterator[PlannedArm]:
    """What protects as many parameters, or many more, without having looked; no random choice comes twice.

    Args:
        setting: Of all of them.
        sites: That are protected elsewhere; the random ones are drawn from the others.
        every: Every projection of the model.
        seeds: Draws of the same kind, and of any; fewer where there are not so many different ones.
    """
    if not sites:
        return
    leaves = [s.leaf for name in sites for s in every if s.name == name]
    others = [s for s in every if s.name not in sites]
    least = sum(s.parameters for s in every if s.name in sites)
    # Others of a model that is mostly protected may have fewer parameters together.
    much = "at least as many" if sum(s.parameters for s in others) >= least else "fewer"
    same = _draw_kinds(others, leaves, seeds)
    drawn = {SAME_KIND: same, f"{ANY_KIND} of {much} parameters": _draw_parameters(others, least, seeds, same)}
    controls = {
        f"{kind} {number}: {', '.join(map(short_name, chosen))}": chosen
        for kind, draws in drawn.items()
        for number, chosen in enumerate(draws, 1)
    }
    controls[EVERY_DOWN] = tuple(s.name for s in every if s.leaf == "down_proj")
    controls[ENDS] = tuple(s.name for s in every if s.block in (every[0].block, every[-1].block))
    for label, chosen in controls.items():
        yield PlannedArm(MAIN, "control", label, setting.low, setting.low, chosen)


def _draw_kinds(others: Sequence[Site], leaves: Sequence[str], seeds: int) -> list[tuple[str, ...]]:
    """Different choices of sites of the given kinds (the last part of a name), by seed."""

    def draw(generator: random.Random) -> tuple[str, ...]:
        chosen: list[str] = []
        for leaf in leaves:
            left = [s.name for s in others if s.name not in chosen and s.leaf == leaf]
            chosen += generator.sample(left, min(1, len(left)))
        return tuple(chosen) if len(chosen) == len(leaves) else ()

    return _different(draw, seeds, ())


def _draw_parameters(
    others: Sequence[Site], least: int, seeds: int, known: Sequence[tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Different choices of sites of any kind, by seed: of a random order, the first that have ``least`` parameters.

    All of them where they have fewer together.
    """

    def draw(generator: random.Random) -> tuple[str, ...]:
        chosen, held = list[str](), 0
        for site in generator.sample(others, len(others)):
            if held >= least:
                break
            chosen.append(site.name)
            held += site.parameters
        return tuple(chosen)

    return _different(draw, seeds, known)


def _different(
    draw: Callable[[random.Random], tuple[str, ...]], seeds: int, known: Sequence[tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Draws with other sites than each other and than those known; an empty draw is none."""
    seen, draws = {frozenset(), *map(frozenset, known)}, list[tuple[str, ...]]()
    for seed in range(20 * seeds):  # small models have few different choices, which are drawn again and again
        chosen = draw(random.Random(seed))
        if frozenset(chosen) not in seen:
            seen.add(frozenset(chosen))
            draws.append(chosen)
        if len(draws) == seeds:
            break
    return draws


def ablation_arms(setting: Setting, every: Sequence[Site]) -> Iterator[PlannedArm]:
    """One part of every block low and all else in float: attention, the MLP, and every kind of projection.

    The component study of the emergent abilities of quantized models (arXiv 2307.08072), whose parts are those two.

    Args:
        setting: Of all of them.
        every: Every projection of the model.
    """
    attention = [s for s in every if s.streams[0].rpartition(".")[2] in _READ_BY_ATTENTION]
    parts = {ATTENTION: attention, MLP: [s for s in every if s not in attention]}
    for leaf in dict.fromkeys(s.leaf for s in every):
        parts[leaf] = [s for s in every if s.leaf == leaf]
    for part, low in parts.items():
        kept = tuple(s.name for s in every if s not in low)
        yield PlannedArm(MAIN, "ablation", f"{part}{ALONE}", setting.low, setting.low, kept)


def order_arms(setting: Setting, order: str, ranked: Sequence[str], counts: Sequence[int]) -> Iterator[PlannedArm]:
    """The first k sites of an order in float; k = 0 is naive.

    Args:
        setting: Of all of them.
        order: What ranked them.
        ranked: Full names, the first to be protected first.
        counts: Values of k; those beyond the number of sites are left out.
    """
    for k in counts:
        if 0 < k <= len(ranked):
            yield PlannedArm(MAIN, "order", f"by {order}, k={k}", setting.low, setting.low, tuple(ranked[:k]))


def method_arms(setting: Setting, name: str, scheme: str, world: str, sites: tuple[str, ...]) -> Iterator[PlannedArm]:
    """A method alone, and with protection.

    Args:
        setting: That it is compared in.
        name: Of the method.
        scheme: Of its low sites.
        world: Where it is measured.
        sites: To be protected beside it.
    """
    yield PlannedArm(world, "method", name, setting.low, scheme)
    if sites:
        yield PlannedArm(world, "method", f"{name} + protected", setting.low, scheme, sites)


def world_arms(setting: Setting, group: str, world: str, sites: tuple[str, ...]) -> Iterator[PlannedArm]:
    """Naive and protected under other tokens, or scales from other tokens.

    Args:
        setting: Of both.
        group: As of `StudyArm`.
        world: Where they are measured.
        sites: To be protected.
    """
    yield PlannedArm(world, group, f"{world}: naive", setting.low, setting.low)
    if sites:
        yield PlannedArm(world, group, f"{world}: protected", setting.low, setting.low, sites)


def rank_sites(order: str, setting: Setting, stats: ActivationStats, menu: Menu, every: Sequence[Site]) -> list[str]:
    """Full names of all projections, the first to be protected first.

    Sites that read one stream have one statistic; they stay in model order.

    Args:
        order: ``damage`` (per parameter), or a statistic of the stream: ``snr``, ``ratio`` or ``maximum``.
        setting: Whose low scheme is priced.
        stats: Of the calibration tokens.
        menu: With prices of the setting's low scheme.
        every: Every projection of the model.
    """
    if order == "damage":
        return [name for unit in rank_by_damage(make_units(every), menu.damages(setting.low)) for name in unit.sites]
    scheme = input_scheme(setting.low)
    assert scheme is not None  # every setting has inputs

    def badness(site: Site) -> float:
        stream = stats.stream(site.streams[0])
        return {"snr": -snr(stream, scheme), "ratio": stream.ratio, "maximum": stream.maximum}[order]

    return [s.name for s in sorted(every, key=lambda s: -badness(s))]

"""Which arms a study has: what was asked for, as far as the model can have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from qarat.ground.errors import UserError
from qarat.jobs.rewriting import reaching
from qarat.jobs.spike_study import arms, worlds
from qarat.jobs.spike_study.arms import PlannedArm
from qarat.model.model import Model
from qarat.stages.rounding import check_roundings
from qarat.stages.transforms import parse_transform
from qarat.values.parsing import parse_scheme
from qarat.values.records.spike_study import MAIN, Left
from qarat.values.requests import spike_study as asking
from qarat.values.sites import Site


def fitting_methods(
    model: Model, request: asking.SpikeRequest, rows: int
) -> tuple[dict[str, asking.Method], list[Left]]:
    """The methods that a model can have, and why it cannot have the others.

    Args:
        model: In float.
        request: That names them.
        rows: Calibration tokens, which a rounding may need many of.

    Raises:
        UserError: One that was named and does not fit.
    """
    methods, unfit = dict(request.asked_methods), list[Left]()
    for name, method in request.asked_methods.items():
        try:
            step = parse_transform(method.transform) if method.transform else None
            if step is not None and not step.needs:
                step.apply(model, None)
            elif step is not None and step.outline is not None:
                step.outline(model)
            if method.rounding:
                schemes = [parse_scheme(method.scheme(setting)) for setting in request.asked_extent.compared]
                check_roundings([(s, low) for s in model.sites() for low in schemes if low.fits(s.kind)], rows)
        except UserError as error:
            if name in request.methods:
                raise UserError(f"`methods` {name}: {error}") from None
            del methods[name]
            unfit.append(Left(f"the method {name}", str(error)))
    return methods, unfit


class Asked(NamedTuple):
    """What is compared.

    Attributes:
        request: As it was given.
        methods: Of those asked for, the ones that the model can have.
        every: Every projection of the model.
        bos: BOS rules that there are tokens under.
        other: Whether there are calibration tokens of another kind.
        front: Whether calibration windows begin alike, as a prefix wants it.
    """

    request: asking.SpikeRequest
    methods: dict[str, asking.Method]
    every: Sequence[Site]
    bos: tuple[str, ...]
    other: bool
    front: bool

    @property
    def extent(self) -> asking.Extent:
        """How much is measured."""
        return self.request.asked_extent

    def by(self, needs: str) -> dict[str, asking.Method]:
        """The methods whose transforms are made from that (`ParsedTransform.needs`)."""
        return {n: m for n, m in self.methods.items() if m.transform and parse_transform(m.transform).needs == needs}

    @property
    def priced(self) -> list[str]:
        """Low schemes that sites are priced under: that of the plan, and those with orders."""
        return list(dict.fromkeys([asking.MAIN.low, *(s.low for s in self.extent.rich)]))

    def arms(
        self,
        sites: tuple[str, ...],
        ranked: Callable[[str, asking.Setting], Sequence[str]],
        chosen: Mapping[str, Mapping[str, str]],
    ) -> list[PlannedArm]:
        """Every arm that is asked for.

        Args:
            sites: To be protected.
            ranked: An order in a setting to full names, the first to be protected first.
            chosen: Method to low scheme to its world, where that is not the method's transform.
        """
        planned, fitted = list[PlannedArm](), self.by("rewrites")
        for setting in self.extent.settings:
            rich = setting in self.extent.rich
            planned += arms.protection_arms(setting, sites)
            planned += arms.control_arms(setting, sites, self.every, self.extent.seeds if rich else self.extent.few)
            planned += arms.ablation_arms(setting, self.every) if rich else ()
            for order in self.request.asked_orders if rich and self.request.asks("order") else ():
                planned += arms.order_arms(setting, order, ranked(order, setting), self.extent.counts)
            for name, method in self.methods.items() if setting in self.extent.compared else ():
                if not method.fits(setting) or (method.prefix and not self.front):
                    continue
                world = worlds.PREFIX if method.prefix else chosen.get(name, {}).get(setting.low, method.transform)
                scheme = reaching(method.scheme(setting)) if name in fitted else method.scheme(setting)
                planned += arms.method_arms(setting, name, scheme, world or MAIN, sites)
        for setting in (s for s in (asking.MAIN, asking.TWIN) if s in self.extent.settings):
            there = [worlds.bos_world(rule) for rule in self.bos]
            if not self.front and worlds.EACH in there:
                there.append(worlds.EACH_WITH_PREFIX)  # the study's own windows can have none
            for world in there:
                planned += arms.world_arms(setting, "bos", world, sites)
            if self.other:
                planned += arms.world_arms(setting, "calibration", worlds.OTHER, sites)
        return [arm for arm in planned if self.request.asks(arm.group)]

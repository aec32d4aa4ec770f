"""Units of a search: sites that are decided together, and what each may get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from qarat.values.schemes import LinearScheme, MatmulScheme, Scheme
from qarat.values.sites import Site, short_name


class Unit(msgspec.Struct, frozen=True):
    """Sites that are decided together: one projection, those tied by an engine, or a whole block.

    Attributes:
        sites: Full names.
        parameters: Of all of them.
    """

    sites: tuple[str, ...]
    parameters: int

    @property
    def label(self) -> str:
        """``1.down``, ``1.q+k+v`` for a tie."""
        first, *rest = map(short_name, self.sites)
        return "+".join([first, *(name.partition(".")[2] for name in rest)])


class Option(NamedTuple):
    """What a unit may get: a scheme for its projections, and one for its attention products."""

    projection: LinearScheme
    product: MatmulScheme = MatmulScheme()

    def at(self, site: Site) -> Scheme:
        """The scheme of one of the unit's sites."""
        return self.product if site.kind == "product" else self.projection


def make_units(
    sites: Sequence[Site], *, tied: bool = False, layers: bool = False, products: bool = False
) -> tuple[Unit, ...]:
    """The sites in units, in the order of the sites.

    Args:
        sites: Of a plan.
        tied: Whether sites of one tie make one unit.
        layers: Whether a whole block makes one unit.
        products: Whether the attention products are decided too, instead of being left out.
    """
    groups: dict[tuple[int, str], list[Site]] = {}
    for site in sites:
        if site.kind == "projection" or (products and site.kind == "product"):
            word = "" if layers else site.tie if tied and site.tie else site.name
            groups.setdefault((site.block, word), []).append(site)
    return tuple(Unit(tuple(s.name for s in group), sum(s.parameters for s in group)) for group in groups.values())

"""Units of a search: sites that are decided together, and what each may get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from qarat.values.schemes import CacheScheme, LinearScheme, MatmulScheme, Scheme
from qarat.values.sites import Site, short_name


class Unit(msgspec.Struct, frozen=True):
    """Sites that are decided together: one projection or cache, those tied by an engine, or a whole block's.

    Attributes:
        sites: Full names.
        parameters: Of all of them.
    """

    sites: tuple[str, ...]
    parameters: int

    @property
    def label(self) -> str:
        """``1.down``, ``1.q+k+v`` for a tie, ``*.k_cache+v_cache`` for the caches of all blocks."""
        names = [short_name(site).partition(".") for site in self.sites]
        blocks = {block for block, _, _ in names}
        return f"{blocks.pop() if len(blocks) == 1 else '*'}.{'+'.join(dict.fromkeys(leaf for _, _, leaf in names))}"


class Option(NamedTuple):
    """What a unit may get: a scheme for its projections, one for its attention products, and one for its caches."""

    projection: LinearScheme
    product: MatmulScheme = MatmulScheme()
    cache: CacheScheme = CacheScheme()

    def at(self, site: Site) -> Scheme:
        """The scheme of one of the unit's sites."""
        return {"projection": self.projection, "product": self.product, "cache": self.cache}[site.kind]


def with_caches(options: Sequence[Option], caches: Sequence[CacheScheme]) -> tuple[Option, ...]:
    """Options with schemes of caches: dearest with dearest, and so down; the shorter list repeats its cheapest.

    Args:
        options: Of projections, the cheapest first.
        caches: Schemes of caches, the cheapest first.
    """
    longest = max(len(options), len(caches))
    return tuple(
        options[max(0, i - longest + len(options))]._replace(cache=caches[max(0, i - longest + len(caches))])
        for i in range(longest)
    )


def make_units(
    sites: Sequence[Site], *, tied: bool = False, layers: bool = False, products: bool = False, caches: bool = False
) -> tuple[Unit, ...]:
    """The sites in units, in the order of the sites.

    Args:
        sites: Of a plan.
        tied: Whether sites of one tie make one unit, and all caches of the model, of which engines have one kind.
        layers: Whether a whole block makes one unit; its caches make another.
        products: Whether the attention products are decided too, instead of being left out.
        caches: Whether the caches are.
    """
    groups: dict[tuple[int, str], list[Site]] = {}
    for site in sites:
        if site.kind == "projection" or (products and site.kind == "product"):
            word = "" if layers else site.tie if tied and site.tie else site.name
            groups.setdefault((site.block, word), []).append(site)
        elif caches and site.kind == "cache":
            place = (0 if tied else site.block, "caches" if tied or layers else site.name)
            groups.setdefault(place, []).append(site)
    return tuple(Unit(tuple(s.name for s in group), sum(s.parameters for s in group)) for group in groups.values())

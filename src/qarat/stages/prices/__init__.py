"""Damage: what every scheme would cost at every site; one file per metric, the folder is the registry.

A metric is a module of this folder with `METRIC`, its name (the module's with ``-`` for ``_``), `price`, and
`block_forwards`, what that costs; the first line of its docstring is what help says of it. Prices are in nats per token
where the menu says so, and rank sites otherwise. A metric that has no price of attention products says so with
``PRODUCTS = False``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from qarat.ground.registry import Registry

if TYPE_CHECKING:
    from qarat.ground.runtime import Progress
    from qarat.model.model import Model
    from qarat.model.tokens import TokenSet
    from qarat.values.records.prices import Menu
    from qarat.values.records.streams import ActivationStats
    from qarat.values.schemes import Scheme

__all__ = ["DEFAULT", "METRICS", "BlockForwards", "Metric", "Price", "prices_products"]

DEFAULT = "fisher"


class Price(Protocol):
    """Prices every scheme at every site it fits."""

    def __call__(
        self,
        model: Model,
        tokens: TokenSet,
        schemes: Sequence[Scheme],
        stats: ActivationStats | None = None,
        *,
        seed: int = 0,
        progress: Progress = ...,
    ) -> Menu:
        """Make the menu; arguments and errors as `qarat.stages.prices.fisher.price`."""
        ...


class BlockForwards(Protocol):
    """What pricing costs, in forwards through one block; a recomputation counts one, a backward two.

    Products with the schemes' weights are not forwards, and are not counted.
    """

    def __call__(self, model: Model, tokens: TokenSet, schemes: Sequence[Scheme]) -> int:
        """For every token of the set."""
        ...


class Metric(Protocol):
    """What a file of this folder offers."""

    price: Price
    block_forwards: BlockForwards


METRICS: Registry[Metric] = Registry(__name__, "damage metric", helpers=["capture", "changes", "checking"])


def prices_products(name: str) -> bool:
    """Whether a metric has prices of attention products.

    Raises:
        UserError: Unknown name; names the nearest known ones.
    """
    return getattr(METRICS.load(name), "PRODUCTS", True)

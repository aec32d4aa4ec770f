"""Damage: what every scheme would cost at every site; one file per metric, the folder is the registry.

A metric is a module of this folder with `METRIC`, its name (the module's with ``-`` for ``_``), `price`, and
`block_forwards`, what that costs; the first line of its docstring is what help says of it. Prices are in nats per token
where the menu says so, and rank sites otherwise. A metric that has no price of attention products says so with
``PRODUCTS = False``.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, cast

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names

if TYPE_CHECKING:
    from qarat.ground.runtime import Progress
    from qarat.model.model import Model
    from qarat.model.tokens import TokenSet
    from qarat.values.records.prices import Menu
    from qarat.values.records.streams import ActivationStats
    from qarat.values.schemes import Scheme

__all__ = ["DEFAULT", "BlockForwards", "Price", "block_forwards", "describe", "load", "names", "prices_products"]

DEFAULT = "fisher"
_NOT_METRICS = ("capture", "changes", "checking")  # what metrics share, and what is said of them


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


def names() -> list[str]:
    """The metrics there are."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if m.name not in _NOT_METRICS)


def describe() -> dict[str, str]:
    """Every metric with the first line of its module's docstring, which is read without importing it."""
    return {name: _first_line(name.replace("-", "_")) for name in names()}


def load(name: str) -> Price:
    """The metric's `price`.

    Raises:
        UserError: Unknown name; names the nearest known ones.
    """
    return cast(Price, _module(name).price)


def block_forwards(name: str) -> BlockForwards:
    """The metric's `block_forwards`.

    Raises:
        UserError: As `load`.
    """
    return cast(BlockForwards, _module(name).block_forwards)


def prices_products(name: str) -> bool:
    """Whether a metric has prices of attention products.

    Raises:
        UserError: As `load`.
    """
    return getattr(_module(name), "PRODUCTS", True)


def _module(name: str) -> ModuleType:
    if name not in names():
        raise UserError(f"unknown damage metric {name!r}; {nearest_names(name, names())}")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def _first_line(module: str) -> str:
    text = (Path(__path__[0]) / f"{module}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]

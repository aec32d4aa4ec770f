"""Strategies: one file each; the folder is the registry.

A strategy asks and is told: it yields batches of proposals and is sent what they lose. It knows nothing of models, so
it can be run, killed and run again on a log of earlier answers, and measured wherever.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.stages.choose.strategies.base import Strategy

__all__ = ["make_strategy", "strategy_names"]


@cache
def strategy_names() -> tuple[str, ...]:
    """Names of all strategies."""
    return tuple(sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in ("__init__", "base")))


def make_strategy(name: str, *, trials: int, seed: int) -> Strategy:
    """A strategy by its file's name.

    Args:
        name: One of `strategy_names`.
        trials: Measurements at each point, for those that draw.
        seed: Of their draws.

    Raises:
        UserError: Unknown, with the nearest names; or the extra it needs is not installed.
    """
    if name not in strategy_names():
        raise UserError(f"--strategy {name}: {nearest_names(name, list(strategy_names()))}")
    return importlib.import_module(f"{__name__}.{name}").make(trials=trials, seed=seed)

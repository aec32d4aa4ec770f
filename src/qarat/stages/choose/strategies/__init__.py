"""Strategies: one file each; the folder is the registry.

A strategy asks and is told: it yields batches of proposals and is sent what they lose. It knows nothing of models, so
it can be run, killed and run again on a log of earlier answers, and measured wherever.
"""

from __future__ import annotations

from typing import Protocol

from qarat.ground.registry import Registry
from qarat.stages.choose.strategies.base import Strategy

__all__ = ["STRATEGIES", "make_strategy"]


class StrategyFile(Protocol):
    """What a file of this folder offers."""

    def make(self, *, trials: int, seed: int) -> Strategy:
        """A new strategy; arguments as `make_strategy`."""
        ...


STRATEGIES: Registry[StrategyFile] = Registry(__name__, "strategy", helpers=["base"])


def make_strategy(name: str, *, trials: int, seed: int) -> Strategy:
    """A strategy by its file's name.

    Args:
        name: Key of `STRATEGIES`.
        trials: Measurements at each point, for those that draw.
        seed: Of their draws.

    Raises:
        UserError: Unknown, with the nearest names; or the extra it needs is not installed.
    """
    return STRATEGIES.load(name).make(trials=trials, seed=seed)

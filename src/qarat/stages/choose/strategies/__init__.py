"""Strategies: one file each; the folder is the registry.

A strategy asks and is told: it yields batches of proposals and is sent what they lose. It knows nothing of models, so
it can be run, killed and run again on a log of earlier answers, and measured wherever.
"""

from __future__ import annotations

from qarat.ground.registry import Registry
from qarat.stages.choose.strategies.base import Strategy

__all__ = ["STRATEGIES", "Strategy"]

STRATEGIES: Registry[Strategy] = Registry(__name__, "strategy", helpers=["base"])
"""By name; loading one whose extra is not installed is an error that says so."""

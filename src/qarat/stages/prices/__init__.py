"""Damage: what every scheme would cost at every site; one file per metric, the folder is the registry.

A metric is a module of this folder with a value `METRIC` (`qarat.stages.prices.metric.Metric`) of the module's name,
``-`` for ``_``; the first line of the module's docstring is what help says of it. `qarat.stages.prices.pricing.price`
drives them all. Prices are in nats per token where the menu says so, and rank sites otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qarat.ground.registry import Registry

if TYPE_CHECKING:  # help describes the metrics, and must not wait for torch
    from qarat.stages.prices.metric import Metric

__all__ = ["DEFAULT", "METRICS"]

DEFAULT = "fisher"
_HELPERS = ["capture", "changes", "checking", "metric", "passes", "pricing", "sensitivity", "states"]
METRICS: Registry[Metric] = Registry(__name__, "damage metric", offers="METRIC", helpers=_HELPERS)

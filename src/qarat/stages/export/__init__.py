"""Exporters: a quantized model, or its plan, in another program's format. One file each; the folder is the registry.

A format is a module (or a package) of this folder with what `qarat.stages.export.base.Exporter` names; its key is the
module's name with ``-`` for ``_``, and the first line of its docstring is what help says of it. Nothing here imports an
exporter, or torch, before one is asked for by name: help must not wait for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qarat.ground.registry import Registry

if TYPE_CHECKING:
    from qarat.stages.export.base import Exporter

__all__ = ["EXPORTERS"]

EXPORTERS: Registry[Exporter] = Registry(__name__, "export format", helpers=["base", "card", "recipes"])

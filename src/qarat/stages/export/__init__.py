"""Exporters: a quantized model, or its plan, in another program's format. One file each; the folder is the registry.

A format is a module (or a package) of this folder with what `qarat.stages.export.base.Exporter` names; its key is the
module's name with ``-`` for ``_``, and the first line of its docstring is what ``qarat export --help`` says of it.
Nothing here imports an exporter, or torch, before one is asked for by name: help must not wait for them.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, cast

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names

if TYPE_CHECKING:
    from qarat.stages.export.base import Exporter

__all__ = ["describe", "named", "names"]

_NOT_FORMATS = ("base", "recipes")  # what exporters share


def names() -> list[str]:
    """The formats there are."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if m.name not in _NOT_FORMATS)


def describe() -> dict[str, str]:
    """Every format with the first line of its module's docstring."""
    return {name: _first_line(name.replace("-", "_")) for name in names()}


def named(name: str) -> Exporter:
    """The exporter of that format.

    Raises:
        UserError: Unknown name; names the nearest known ones.
    """
    if name not in names():
        raise UserError(f"unknown export format {name!r}; {nearest_names(name, names())}")
    return cast("Exporter", importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))


def _first_line(module: str) -> str:
    """Read, not imported."""
    home = Path(__path__[0])
    package = home / module / "__init__.py"
    path = package if package.is_file() else home / f"{module}.py"
    words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return words.partition("\n")[0]

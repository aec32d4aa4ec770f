"""Functional forms, one file each; the folder is the registry, the module's name with ``-`` for ``_`` the key.

Each file holds a value ``FORM`` of `qarat.stages.laws.forms.base.Form`: equation, source, units, what it needs, and the
coefficients its authors print.
"""

from __future__ import annotations

import importlib
import pkgutil

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.stages.laws.forms.base import Form

__all__ = ["Catalog", "catalog", "form_named", "form_names"]


class Catalog(msgspec.Struct, frozen=True):
    """Every form, by name."""

    forms: dict[str, Form]


def catalog() -> Catalog:
    """Every form there is."""
    return Catalog({name: form_named(name) for name in form_names()})


def form_names() -> list[str]:
    """The forms there are."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if m.name != "base")


def form_named(name: str) -> Form:
    """The form of that name.

    Raises:
        UserError: Unknown name; names the nearest known ones.
    """
    if name not in form_names():
        raise UserError(f"unknown form {name!r}; {nearest_names(name, form_names())}")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}").FORM

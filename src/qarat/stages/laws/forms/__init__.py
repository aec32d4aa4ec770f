"""Functional forms, one file each; the folder is the registry, the module's name with ``-`` for ``_`` the key.

Each file holds a value ``FORM`` of `qarat.stages.laws.forms.base.Form`: equation, source, units, what it needs, and the
coefficients its authors print.
"""

from __future__ import annotations

import msgspec

from qarat.ground.registry import Registry
from qarat.stages.laws.forms.base import Form

__all__ = ["FORMS", "Catalog", "catalog"]

FORMS: Registry[Form] = Registry(__name__, "form", offers="FORM", helpers=["base"])


class Catalog(msgspec.Struct, frozen=True):
    """Every form, by name."""

    forms: dict[str, Form]


def catalog() -> Catalog:
    """Every form there is."""
    return Catalog({name: FORMS.load(name) for name in FORMS.names()})

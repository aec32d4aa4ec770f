"""Families: the wiring of each architecture, written once.

Which projections read which stream, which of them an engine fuses, and where blocks, embedding and head lie: every
stage needs it, and everywhere else in the field each algorithm carries its own copy. A family is one value in one file;
the folder is the registry.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from qarat.ground.errors import UserError
from qarat.ground.registry import near
from qarat.model.families.base import Family, Gguf, Stream

__all__ = ["Family", "Gguf", "Stream", "family_of", "known_families"]


@cache
def known_families() -> dict[str, Family]:
    """Architecture name (as in ``config.json``) to family."""
    families: dict[str, Family] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name != "base":
            family: Family = importlib.import_module(f"{__name__}.{module.name}").FAMILY
            families |= dict.fromkeys(family.architectures, family)
    return families


def family_of(architectures: list[str]) -> Family:
    """The family of a checkpoint.

    Args:
        architectures: As ``config.json`` lists them.

    Raises:
        UserError: If none is supported; names the supported ones.
    """
    known = known_families()
    for name in architectures:
        if name in known:
            return known[name]
    given = ", ".join(architectures) or "none given"
    meant = (
        f" (did you mean {' or '.join(close)}?)"
        if architectures and (close := near(architectures[0], [*known]))
        else ""
    )
    raise UserError(f"unsupported architecture: {given}; supported: {', '.join(sorted(known))}{meant}")

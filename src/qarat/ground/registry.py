"""The one registry: a folder is its own list, a module's name is the key.

What a page or a doc calls "one file" (a rounding, a kernel, a metric, a form of a law, a format on disk) is a module of
one folder; ``-`` stands for ``_`` in its key. Listing and describing read the folder, importing nothing: help must not
wait for torch.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from qarat.ground.errors import UserError

T = TypeVar("T")


def near(name: str, names: Sequence[str]) -> list[str]:
    """Those of the names that one may have been meant, the nearest first; empty where none is near."""
    return difflib.get_close_matches(name, names, n=3, cutoff=0.5)


def nearest_names(name: str, known: Iterable[str]) -> str:
    """The words of an unknown-name error: the nearest known names, or all of them where none is near."""
    names = list(known)
    close = near(name, names)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"


class Registry(Generic[T]):
    """The modules of one folder, each by its key; ``T`` is what each of them offers.

    Attributes:
        noun: What one entry is, for messages: ``kernel``, ``damage metric``.
    """

    def __init__(self, package: str, noun: str, *, offers: str = "", helpers: Iterable[str] = ()) -> None:
        """Nothing is read yet.

        Args:
            package: Full name of the folder's package.
            noun: What one entry is, for messages.
            offers: The value of a module that is the entry; empty where the module itself is.
            helpers: Modules of the folder that are no entries but what entries share.
        """
        self.noun = noun
        self._package, self._offers, self._helpers = package, offers, frozenset(helpers)

    def names(self) -> list[str]:
        """The keys there are, sorted."""
        modules = pkgutil.iter_modules([str(self._folder)])
        return sorted(m.name.replace("_", "-") for m in modules if m.name not in self._helpers)

    def describe(self) -> dict[str, str]:
        """Every key with the first line of its module's docstring, which is read without importing it."""
        return {name: self._first_line(name) for name in self.names()}

    def check(self, name: str) -> None:
        """Check that a key is known.

        Raises:
            UserError: It is not; names the nearest known ones.
        """
        if name not in self.names():
            raise UserError(f"unknown {self.noun} {name!r}; {nearest_names(name, self.names())}")

    def load(self, name: str) -> T:
        """What the module of that key offers; imported now.

        Raises:
            UserError: Unknown name; names the nearest known ones.
        """
        self.check(name)
        module = importlib.import_module(f"{self._package}.{name.replace('-', '_')}")
        return cast(T, getattr(module, self._offers) if self._offers else module)

    @property
    def _folder(self) -> Path:
        return Path(cast(Any, importlib.import_module(self._package)).__path__[0])

    def _first_line(self, name: str) -> str:
        module = name.replace("-", "_")
        package = self._folder / module / "__init__.py"
        path = package if package.is_file() else self._folder / f"{module}.py"
        return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]

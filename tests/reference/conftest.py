"""The programs of `reference/` are no package: they find each other beside themselves."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "reference"


@pytest.fixture(scope="session")
def program() -> Callable[[str], ModuleType]:
    """Imports one of them by name."""

    def load(name: str) -> ModuleType:
        sys.path.insert(0, str(FOLDER))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.pop(0)

    return load

"""The lm-evaluation-harness, which is an optional extra: imported where it is needed, and only there."""

from __future__ import annotations

import importlib
from typing import Any

from qarat.ground.errors import UserError


def import_harness(name: str) -> Any:
    """A module of the harness, or of what its extra brings.

    Raises:
        UserError: If the extra is not installed; says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"this needs the lm-evaluation-harness ({error}); install it: pip install 'qarat[zero-shot]'"
        ) from error

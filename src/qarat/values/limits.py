"""Bounds on numbers that are asked for: beyond them a number is a slip, or no generator takes it."""

from __future__ import annotations

from qarat.ground.errors import UserError

_WINDOWS = 1_000_000
_SEEDS = 2**32  # what every generator that is seeded takes


def check_windows(name: str, limit: int) -> None:
    """Refuse a token set of no windows, or of more than anybody means.

    Raises:
        UserError: Naming the set.
    """
    if not 1 <= limit <= _WINDOWS:
        raise UserError(f"the {name} set cannot have {limit} windows; ask for at least 1 and at most {_WINDOWS:,}")


def check_seed(seed: int) -> None:
    """Refuse a seed that not every generator takes.

    Raises:
        UserError: Saying which ones are.
    """
    if not 0 <= seed < _SEEDS:
        raise UserError(f"`seed` {seed}: give a whole number from 0 to {_SEEDS - 1}")

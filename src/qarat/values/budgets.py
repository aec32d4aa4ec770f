"""Budgets: what may be lost or spent, as values with a short spelling."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any, Literal

import msgspec

from qarat.ground.errors import UserError


class LossBudget(msgspec.Struct, frozen=True):
    """What may be lost over float: ``ppl+1%`` (perplexity) or ``nats+0.05`` (per token).

    Attributes:
        spelling: As it was asked for.
        nats: The same in nats per token.
    """

    spelling: str
    nats: float


class CostBudget(msgspec.Struct, frozen=True):
    """What all sites' weights may take: ``bits=4.5``, ``bytes=2.1GB``, or ``ratio=0.9`` of them low at least.

    Attributes:
        spelling: As it was asked for.
        kind: What is counted.
        amount: Most bits a weight, scales and zero points included; most bytes in all, those of caches too where these
            are decided; least Q_r by parameters.
    """

    spelling: str
    kind: Literal["bits", "bytes", "ratio"]
    amount: float

    def limit(self, parameters: int) -> int:
        """The most that may be spent: bits of storage (``bits``, ``bytes``), parameters not low (``ratio``).

        Args:
            parameters: Of all sites.
        """
        amount = Fraction(str(self.amount))  # as it was written: 1 - 0.9 in float64 would be a parameter short
        per_kind = {"bits": amount * parameters, "bytes": 8 * amount, "ratio": (1 - amount) * parameters}
        return math.floor(per_kind[self.kind])


class AccuracyBudget(msgspec.Struct, frozen=True):
    """How far a task's accuracy may fall: ``acc(arc_easy)-1%``.

    Attributes:
        spelling: As it was asked for.
        task: Zero-shot task.
        drop: Most that accuracy may fall below float's, as a share of the questions: 0.01 is one percentage point.
    """

    spelling: str
    task: str
    drop: float


Budget = LossBudget | CostBudget | AccuracyBudget

_NUMBER = r"(\d+(?:\.\d+)?)"
_LOSSES = "ppl+1% (perplexity over float's), nats+0.05 (nats per token)"
_OTHERS = (
    "bits=4.5 (a weight, scales included), bytes=2.1GB (of all sites' weights), ratio=0.9 or 90% (Q_r), "
    "acc(TASK)-1% (accuracy of a zero-shot task, percentage points)"
)


def parse_budget(text: str) -> Budget:
    """Read a budget.

    Raises:
        UserError: Malformed, negative or without limit; lists the spellings there are.
    """
    if match := re.fullmatch(rf"ppl\+{_NUMBER}%", text):
        return LossBudget(text, math.log1p(float(match[1]) / 100))
    if match := re.fullmatch(rf"nats\+{_NUMBER}", text):
        return LossBudget(text, float(match[1]))
    if match := re.fullmatch(rf"bits={_NUMBER}", text):
        return CostBudget(text, "bits", float(match[1]))
    if match := re.fullmatch(r"bytes=(.*)", text):
        return CostBudget(text, "bytes", parse_size("budget", match[1]))
    if match := re.fullmatch(rf"ratio=({_NUMBER}%?)", text):
        share = float(parse_share(match[1]))
        if share <= 1:
            return CostBudget(text, "ratio", share)
    if (match := re.fullmatch(rf"acc\(([^\s()]+)\)-{_NUMBER}%", text)) and float(match[2]) <= 100:
        return AccuracyBudget(text, match[1], float(match[2]) / 100)
    raise UserError(f"`budget`: {text!r} is no budget; write {_LOSSES}, {_OTHERS}")


def parse_loss_budget(text: str) -> LossBudget:
    """Read a budget where only a loss can be one.

    Raises:
        UserError: As `parse_budget`; or a budget of another kind.
    """
    budget = parse_budget(text)
    if not isinstance(budget, LossBudget):
        raise UserError(f"`budget`: {text!r} is a budget, but not one of loss, which is needed here; write {_LOSSES}")
    return budget


def parse_share(value: Any) -> Any:
    """A percentage as the share that it is, 0.9 of ``90%``; anything else as it stands."""
    if isinstance(value, str) and re.fullmatch(rf"{_NUMBER}%", value):
        return float(Fraction(value[:-1]) / 100)
    return value


def parse_size(argument: str, text: str) -> int:
    """Bytes of a size such as ``8GB`` or ``512MiB``.

    Args:
        argument: That it is given as, which errors name.
        text: The size.

    Raises:
        UserError: Malformed, negative or infinite.
    """
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = text[len(number) :].strip().lower()
    try:
        size = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        size = -1
    if size < 0:
        raise UserError(f"`{argument}`: {text!r} is no size; write for example 8GB, 512MiB or a number of bytes")
    return size

"""Transforms: a float model becomes an equal one that quantizes better. One file each; the folder is the registry.

Observation, prices, plans and conversion then work on the new model as on any other, so a transform goes together with
whatever a plan can say. Its function is the old one's up to float32 rounding; its fingerprint is the old one's followed
by what was done (`qarat.values.fingerprints`), so that nothing calibrated on one is used on the other.

A file has one function, ``parse``: the words behind its name in the spelling (``smooth/0.5``) to a `ParsedTransform`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

from qarat.ground.errors import UserError
from qarat.ground.registry import Registry
from qarat.model.model import Model
from qarat.values.records.rewrites import Rewrites
from qarat.values.records.streams import ActivationStats

__all__ = ["TRANSFORMS", "MadeFrom", "ParsedTransform", "TransformFile", "parse_transform", "stats_of"]

MadeFrom = ActivationStats | Rewrites | None
"""What a transform is made from, of the model that it is applied to; None where it needs nothing."""


class ParsedTransform(NamedTuple):
    """A transform as it was asked for.

    Attributes:
        apply: The model and what it is made from to the transformed model.
        needs: What that is: the stats of the model, or rewrites fitted to it; empty for nothing.
        choices: Spellings of which one is to be chosen first, by what they lose; ``apply`` then takes the first.
        outline: Where it needs something and changes shapes: the model to one that has the shapes of the transformed
            model, for checks before that is there. Blocks of that one cannot be read.
    """

    apply: Callable[[Model, MadeFrom], Model]
    needs: Literal["", "stats", "rewrites"] = ""
    choices: tuple[str, ...] = ()
    outline: Callable[[Model], Model] | None = None


class TransformFile(Protocol):
    """What a file of this folder offers."""

    def parse(self, parts: Sequence[str]) -> ParsedTransform:
        """Read what follows the name in a spelling.

        Raises:
            UserError: Saying what may stand there.
        """
        ...


TRANSFORMS: Registry[TransformFile] = Registry(__name__, "transform", helpers=["folding"])


def parse_transform(text: str) -> ParsedTransform:
    """Read a spelling: ``hadamard``, ``rewrite/64``, ``smooth/0.5``, ``split/64``.

    Raises:
        UserError: Unknown name (names the nearest), or words that the transform does not take.
    """
    name, *parts = text.split("/")
    transform = TRANSFORMS.load(name)
    try:
        return transform.parse(parts)
    except UserError as error:
        raise UserError(f"transform {text!r}: {error}") from None


def stats_of(made_from: MadeFrom) -> ActivationStats:
    """The stats that a transform is made from.

    Raises:
        UserError: If it was given something else.
    """
    if not isinstance(made_from, ActivationStats):
        raise UserError("it is made from stats, as `qarat profile` writes them, and was given something else")
    return made_from

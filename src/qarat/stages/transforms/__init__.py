"""Transforms: a float model becomes an equal one that quantizes better. One file each; the folder is the registry.

Observation, prices, plans and conversion then work on the new model as on any other, so a transform goes together with
whatever a plan can say. Its function is the old one's up to float32 rounding; its fingerprint is the old one's followed
by what was done (`qarat.values.fingerprints`), so that nothing calibrated on one is used on the other.

A file has one function, ``parse``: the words behind its name in the spelling (``smooth/0.5``) to a `ParsedTransform`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from qarat.ground.errors import UserError
from qarat.ground.registry import Registry
from qarat.model.model import Model
from qarat.values.records.streams import ActivationStats

__all__ = ["TRANSFORMS", "ParsedTransform", "TransformFile", "parse_transform"]


class ParsedTransform(NamedTuple):
    """A transform as it was asked for.

    Attributes:
        apply: The model and its stats to the transformed model; the stats are None unless they are needed.
        needs_stats: Whether it is made from the stats of the model that it is applied to.
        choices: Spellings of which one is to be chosen first, by what they lose; ``apply`` then takes the first.
    """

    apply: Callable[[Model, ActivationStats | None], Model]
    needs_stats: bool
    choices: tuple[str, ...] = ()


class TransformFile(Protocol):
    """What a file of this folder offers."""

    def parse(self, parts: Sequence[str]) -> ParsedTransform:
        """Read what follows the name in a spelling.

        Raises:
            UserError: Saying what may stand there.
        """
        ...


TRANSFORMS: Registry[TransformFile] = Registry(__name__, "transform")


def parse_transform(text: str) -> ParsedTransform:
    """Read a spelling: ``hadamard``, ``smooth/0.5``.

    Raises:
        UserError: Unknown name (names the nearest), or words that the transform does not take.
    """
    name, *parts = text.split("/")
    transform = TRANSFORMS.load(name)
    try:
        return transform.parse(parts)
    except UserError as error:
        raise UserError(f"transform {text!r}: {error}") from None

"""Fingerprints: by what models are told apart.

A float checkpoint goes by a SHA-256. A model that a transform made of it, equal in function but not in its tensors,
goes by the same followed by what was done, in order: ``9f86…+smooth/0.5@1a2b3c4d5e6f+hadamard``. So the stats and plans
of one are refused by the other, while losses may be set beside those of the model both began from.
"""

from __future__ import annotations

from collections.abc import Sequence

LEFT_ALONE = "rewrite/none"
"""The transform that changes nothing: rewrites were fitted, and would have bought too little."""

_JOIN = "+"
_SHOWN = 12  # digits that a person compares


def join(source: str, transforms: Sequence[str]) -> str:
    """The fingerprint of a transformed model.

    Args:
        source: Of the checkpoint.
        transforms: What was done to it, each as `Transform.word` spells it.
    """
    return _JOIN.join([source, *transforms])


def source_of(fingerprint: str) -> str:
    """The fingerprint of the checkpoint that a model was made from."""
    return fingerprint.partition(_JOIN)[0]


def transforms_of(fingerprint: str) -> tuple[str, ...]:
    """What was done to the checkpoint, in order."""
    return tuple(fingerprint.split(_JOIN)[1:])


def spellings_of(fingerprint: str) -> tuple[str, ...]:
    """What was done to the checkpoint, in order, as it was asked for: ``smooth/0.5``, without the stats behind it."""
    return tuple(word.partition("@")[0] for word in transforms_of(fingerprint))


def changes_of(fingerprint: str) -> tuple[str, ...]:
    """`spellings_of` what changed a weight: all but `LEFT_ALONE`."""
    return tuple(word for word in spellings_of(fingerprint) if word != LEFT_ALONE)


def brief(fingerprint: str) -> str:
    """A fingerprint for messages: ``9f86d081884c…``, ``9f86d081884c…+hadamard``."""
    return join(f"{source_of(fingerprint)[:_SHOWN]}…", transforms_of(fingerprint))

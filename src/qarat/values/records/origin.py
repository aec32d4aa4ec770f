"""Where records come from, and differences between them: what every record is made of.

Combining records of different models or tokens is an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from qarat.ground.errors import UserError
from qarat.values.fingerprints import source_of

Z = 1.96
"""Half of a 95 % interval of the normal distribution, in standard errors."""


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a record comes from; part of its identity.

    Attributes:
        model: Fingerprint of the float model, with what transforms did to it (`qarat.values.fingerprints`).
        tokens: Fingerprint of the token set.
        convention: How the tokens were cut, e.g. ``windows-256-bos``.
        versions: Of qarat, torch and transformers; ``kernels`` among them where others than the reference might run.
        seed: Of whatever was drawn at random.
        dtype: Arithmetic of the pass.
        source: What the model was made from and what its tensors were stored in, where that was no float checkpoint.
    """

    model: str
    tokens: str
    convention: str
    versions: dict[str, str]
    seed: int = 0
    dtype: str = "float32"
    source: str = ""


class Difference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A paired difference in nats per token, with its standard error over windows, clustered by source."""

    nats: float
    standard_error: float
    clusters: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval, from the normal distribution."""
        return normal_interval(self.nats, self.standard_error)


def normal_interval(value: float, standard_error: float) -> tuple[float, float]:
    """The 95 % interval about a value, from the normal distribution."""
    return value - Z * standard_error, value + Z * standard_error


def spell_bounds(value: float, standard_error: float, digits: int = 4, *, sign: bool = False) -> str:
    """The 95 % interval behind a value in a sentence, `` (95 %: 0.0020 to 0.0078)``; empty where no error is known.

    Tables say one standard error in a column that is headed so; sentences say this and never ``±``.
    """
    if math.isnan(standard_error):
        return ""
    low, high = (f"{bound:{'+' if sign else ''}.{digits}f}" for bound in normal_interval(value, standard_error))
    return f" (95 %: {low} to {high})"


def clustered_mean(sums: Sequence[float], counts: Sequence[int], sources: Sequence[str]) -> tuple[float, float, int]:
    """Mean over tokens, its standard error clustered by source, and the number of clusters.

    The standard error is that of a ratio estimator with sources as clusters (Cochran, Sampling Techniques, 3rd ed.,
    11.6): windows of one file resemble each other and are not independent. With a single source it is NaN.

    Args:
        sums: Of each window.
        counts: Tokens of each window.
        sources: Of each window.
    """
    total = sum(counts)
    mean = math.fsum(sums) / total
    residuals: dict[str, list[float]] = {}
    for value, count, source in zip(sums, counts, sources, strict=True):
        residuals.setdefault(source, []).append(value - mean * count)
    clusters = len(residuals)
    squares = math.fsum(math.fsum(values) ** 2 for values in residuals.values())
    return mean, math.sqrt(squares * clusters / (clusters - 1)) / total if clusters > 1 else math.nan, clusters


def same_origin(a: Provenance, b: Provenance, pair: str, *, other_models: bool = False) -> None:
    """Refuse to combine strangers.

    A transformed model is none: its function is that of the model it was made from.

    Args:
        a: Of one record.
        b: Of the other.
        pair: The two in words, for the message.
        other_models: Whether they may be of two models.

    Raises:
        UserError: Naming the fields that differ.
    """
    fields = ("tokens", "convention", "dtype") if other_models else ("model", "tokens", "convention", "dtype")
    a, b = (msgspec.structs.replace(p, model=source_of(p.model)) for p in (a, b))
    values = [(f, getattr(a, f), getattr(b, f)) for f in fields]
    different = [f"{field}: {x[:40]} against {y[:40]}" for field, x, y in values if x != y]
    if different:
        raise UserError(f"{pair} do not belong together: " + "; ".join(different))

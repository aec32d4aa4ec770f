"""Rewrites that were fitted to damage: what is done to every stream, and what it is predicted to leave."""

from __future__ import annotations

import math

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.summaries import Summarized
from qarat.values.fingerprints import brief
from qarat.values.records.origin import Provenance


class FittedScales(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One stream's scales and copies, and the damage predicted with them.

    Attributes:
        columns: Inner columns that copies may take.
        inputs: What rounding the stream costs, nats per token.
        weights: What rounding its readers' weights costs, nats per token.
        scales: One of every channel, float32, little-endian: the readers' columns are multiplied by it.
        copies: One of every channel, the base-2 logarithm of its copies, uint8; empty where none is copied.
    """

    columns: int
    inputs: float
    weights: float
    scales: bytes
    copies: bytes = b""

    @property
    def damage(self) -> float:
        """Of inputs and weights, nats per token."""
        return self.inputs + self.weights


class StreamRewrite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be done to one stream.

    Attributes:
        stream: Full name.
        sites: Full names of the projections that read it; they are rounded together.
        naive: Predicted damage if nothing is done, nats per token.
        fitted: One for every number of columns.
    """

    stream: str
    sites: tuple[str, ...]
    naive: float
    fitted: tuple[FittedScales, ...]


class Rewrites(Summarized, msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rewrites of all streams of a model, for one low scheme.

    Attributes:
        provenance: The model that they change, and the tokens they were fitted on.
        stats: Content hash of the stats behind them.
        scheme: The low scheme.
        reach: Scales reach so many times what calibration saw.
        columns: Numbers of inner columns there are scales for, ascending; the first 0.
        streams: In the order of the forward pass.
    """

    provenance: Provenance
    stats: str
    scheme: str
    reach: float
    columns: tuple[int, ...]
    streams: tuple[StreamRewrite, ...]

    def facts(self) -> dict[str, str]:
        """Of which model, and what it predicts."""
        shown = {"model": brief(self.provenance.model), "scheme": self.scheme}
        shown["predicted naive"] = f"{self.naive:.4f} nats"
        return shown | {f"with {n} columns": f"{self.damage(n):.4f} nats" for n in self.columns}

    @property
    def naive(self) -> float:
        """Predicted damage if nothing is done, nats per token."""
        return math.fsum(stream.naive for stream in self.streams)

    def damage(self, columns: int) -> float:
        """Predicted damage with so many inner columns more, nats per token."""
        return math.fsum(fitted.damage for fitted in self.choose(columns).values())

    def choose(self, columns: int) -> dict[str, FittedScales]:
        """By stream, its scales where copies may take so many columns.

        Raises:
            UserError: A number of columns that nothing was fitted for.
        """
        if columns not in self.columns:
            listed = ", ".join(map(str, self.columns))
            raise UserError(f"these rewrites were fitted for {listed} columns, not for {columns}")
        place = self.columns.index(columns)
        return {s.stream: s.fitted[min(place, len(s.fitted) - 1)] for s in self.streams}

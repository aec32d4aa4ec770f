"""How far a model's predictions lie from the float model's, token by token, as a frozen record."""

from __future__ import annotations

import msgspec

from qarat.records import Provenance, clustered_mean

__all__ = ["Divergence", "DivergentToken", "PositionBin"]


class DivergentToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A token before which the two models disagreed most.

    Attributes:
        divergence: Nats.
        window: Index of the window in the token set.
        read: Tokens of the window that had been read.
        source: Of the window.
        context: The last of them, as text.
        token: What came next, as text.
        float_choice: What the float model held likeliest, as text.
        float_probability: Of that.
        choice: What the model held likeliest, as text.
        probability: Of that.
    """

    divergence: float
    window: int
    read: int
    source: str
    context: str
    token: str
    float_choice: str
    float_probability: float
    choice: str
    probability: float


class PositionBin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tokens predicted after so many had been read.

    Attributes:
        first: Fewest tokens read.
        last: Most.
        tokens: Predicted tokens.
        divergence: Their mean, nats.
        agreement: Share on which both models hold the same token likeliest.
    """

    first: int
    last: int
    tokens: int
    divergence: float
    agreement: float


class Divergence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Kullback-Leibler divergence of a model's predictions from the float model's, KL(float ‖ model), in nats.

    Attributes:
        label: What was evaluated.
        provenance: Float model and tokens.
        plan: Content hash of the plan; empty for float.
        nats: Sum over each window's predicted tokens.
        agreeing: Predicted tokens of each window on which both models hold the same one likeliest.
        predicted: Tokens predicted in each window.
        sources: The file or document each window comes from.
        percentile_99: The divergence that 99 % of the tokens do not exceed.
        worst: The tokens that diverge most, descending.
        positions: By how much of the window had been read; ascending.
    """

    label: str
    provenance: Provenance
    plan: str
    nats: tuple[float, ...]
    agreeing: tuple[int, ...]
    predicted: tuple[int, ...]
    sources: tuple[str, ...]
    percentile_99: float
    worst: tuple[DivergentToken, ...]
    positions: tuple[PositionBin, ...]

    @property
    def mean(self) -> tuple[float, float]:
        """Nats per token, and its standard error clustered by source."""
        return clustered_mean(self.nats, self.predicted, self.sources)[:2]

    @property
    def agreement(self) -> tuple[float, float]:
        """Share of tokens on which both models hold the same one likeliest, and its error, clustered by source."""
        return clustered_mean(self.agreeing, self.predicted, self.sources)[:2]

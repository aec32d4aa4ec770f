"""What a model scores on tokens: perplexity, divergence from float, continuations, accuracy."""

from __future__ import annotations

import math

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.summaries import Summarized
from qarat.values.fingerprints import brief
from qarat.values.records.origin import Difference, Provenance, clustered_mean, same_origin


class Evaluation(Summarized, msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Negative log-likelihood of a token set under one model.

    Attributes:
        label: What was evaluated: ``float``, ``naive``, ``plan``, …
        provenance: Model and tokens.
        plan: Content hash of the plan; empty for float.
        nats: Sum over each window's predicted tokens.
        predicted: Tokens predicted in each window; where the unit is a word, the words that its loss is shared out to.
        sources: The file or document each window comes from.
        unit: What the loss is counted by, ``token`` or ``word``.
        kernels: Where others than the reference were asked for: what computed how many of the quantized projections,
            and of those left to the reference, why.
    """

    label: str
    provenance: Provenance
    plan: str
    nats: tuple[float, ...]
    predicted: tuple[int, ...]
    sources: tuple[str, ...]
    unit: str = "token"
    kernels: dict[str, int] = {}

    def facts(self) -> dict[str, str]:
        """What was evaluated, on what, and how it came out."""
        score = {"loss": f"{self.loss:.4f} nats per {self.unit}", "perplexity": f"{self.perplexity:.4g}"}
        counts = {self.unit + "s": f"{sum(self.predicted):,}", "windows": f"{len(self.nats):,}"}
        return {"label": self.label, "model": brief(self.provenance.model)} | score | counts

    @property
    def loss(self) -> float:
        """Mean nats per unit."""
        return math.fsum(self.nats) / sum(self.predicted)

    @property
    def perplexity(self) -> float:
        """Exponential of the loss; infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


class Failure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A plan whose loss is no number.

    Attributes:
        label: Of the measurement.
        error: What is wrong, in words.
    """

    label: str
    error: str


def paired_difference(a: Evaluation, b: Evaluation, *, other_models: bool = False) -> Difference:
    """How much more ``a`` loses than ``b``, in nats per token, on the same windows, with `clustered_mean`'s error.

    Args:
        a: One evaluation.
        b: The other.
        other_models: Whether they may be of two float models, which is then what is compared.

    Raises:
        UserError: If the two were measured on other tokens (or models), or name other sources.
    """
    same_origin(a.provenance, b.provenance, f"{a.label} and {b.label}", other_models=other_models)
    if (a.predicted, a.sources) != (b.predicted, b.sources):
        raise UserError(
            f"{a.label} and {b.label} do not have the same windows or sources; measure both on one token set"
        )
    return Difference(*clustered_mean([x - y for x, y in zip(a.nats, b.nats, strict=True)], a.predicted, a.sources))


class Continuations(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The same prompt continued greedily by several models.

    Attributes:
        provenance: Model and report tokens.
        prompt: As text.
        texts: Label to continuation.
    """

    provenance: Provenance
    prompt: str
    texts: dict[str, str]


class TaskScore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One metric of one zero-shot task.

    Attributes:
        task: Its name.
        version: Of the task's definition.
        metric: ``acc``, ``acc_norm``, …
        value: As the lm-evaluation-harness gives it.
        standard_error: Its error over questions; NaN where it gives none.
        items: Each question's score, in the task's order; empty where the metric has none a question.
        questions: How many it is of; 0 where that is not known.
    """

    task: str
    version: str
    metric: str
    value: float
    standard_error: float
    items: tuple[float, ...]
    questions: int = 0


class ZeroShot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model scores on zero-shot tasks.

    Attributes:
        label: What was evaluated.
        provenance: Model; the tokens are the questions as they were asked.
        plan: Content hash of the plan; empty for float.
        scores: One a task and metric.
    """

    label: str
    provenance: Provenance
    plan: str
    scores: tuple[TaskScore, ...]


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

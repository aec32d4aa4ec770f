"""Records: what stages measured, as frozen values with their provenance.

Combining records of different models or tokens is an error. How they are saved, read back and compared by content is in
`qarat.recordfiles`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from torch import Tensor

from qarat.errors import UserError
from qarat.fingerprints import source_of

__all__ = [
    "NATS",
    "ActivationStats",
    "Continuations",
    "Difference",
    "Evaluation",
    "Menu",
    "MenuEntry",
    "Peak",
    "Provenance",
    "StreamStats",
    "Sweep",
    "TaskScore",
    "Trial",
    "ZeroShot",
    "clustered_mean",
    "paired_difference",
    "same_origin",
]


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a record comes from; part of its identity.

    Attributes:
        model: Fingerprint of the float model, with what transforms did to it (`qarat.fingerprints`).
        tokens: Fingerprint of the token set.
        convention: How the tokens were cut, e.g. ``windows-256-bos``.
        versions: Of qarat, torch and transformers.
        seed: Of whatever was drawn at random.
        dtype: Arithmetic of the pass.
    """

    model: str
    tokens: str
    convention: str
    versions: dict[str, str]
    seed: int = 0
    dtype: str = "float32"


class Peak(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the largest values of a stream.

    Attributes:
        value: Signed.
        window: Index of the window in the token set.
        position: Index of the token in its window; 0 is BOS where windows begin with it.
        token: Id of the token.
        text: The token as text.
        channel: Index along the stream's width.
    """

    value: float
    window: int
    position: int
    token: int
    text: str
    channel: int


class StreamStats(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one observing pass measured of one stream.

    Attributes:
        name: ``model.layers.1.down_in``.
        block: Index of the decoder layer.
        kind: ``attn_in``, ``o_in``, ``mlp_in``, ``down_in``, ``q``, ``k``, ``p``, ``v``, ``down_out`` or ``block_out``.
        width: Channels; for attention operands the length of a row.
        tokens: Rows seen.
        ratio: r, the maximum over the median of token-wise absolute maxima, averaged over windows.
        maximum: Largest magnitude.
        typical_maximum: Median token-wise absolute maximum, averaged over windows.
        median_energy: Mean square of the median token, averaged over windows.
        element_median: Median of all sampled magnitudes, from the histogram.
        peaks: The largest values, one a token at the most, descending.
        arrays: ``channel_min``, ``channel_max``, ``channel_square`` (means of squares), each (width,) float32, absent
            for attention probabilities; ``histogram`` of magnitudes, ``token_maxima`` and ``token_energies``, counts
            per bin of `ActivationStats.edges`, int64; ``position_maxima``, the token-wise absolute maximum at each
            position of a window, averaged over windows, (length,) float32.
    """

    name: str
    block: int
    kind: str
    width: int
    tokens: int
    ratio: float
    maximum: float
    typical_maximum: float
    median_energy: float
    element_median: float
    peaks: tuple[Peak, ...]
    arrays: dict[str, Tensor]


class ActivationStats(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one observing pass measured, per stream.

    Attributes:
        provenance: Model and calibration tokens.
        windows: Windows seen.
        length: Tokens of a window.
        sampled_windows: Windows whose elements went into the histograms of magnitudes, from the first on.
        edges: Bin edges of every histogram, (bins + 1,) float32, ascending, the first 0; `qarat.histograms`.
        streams: By name.
        prefix: Ids of the tokens in front of every window that no statistic counts; a plan computes them in float.
    """

    provenance: Provenance
    windows: int
    length: int
    sampled_windows: int
    edges: Tensor
    streams: dict[str, StreamStats]
    prefix: tuple[int, ...] = ()

    def stream(self, name: str) -> StreamStats:
        """The named stream's stats.

        Raises:
            UserError: If the pass did not observe it.
        """
        if name not in self.streams:
            raise UserError(f"these stats hold no stream {name}; profile the model again (without --no-attention)")
        return self.streams[name]


class Evaluation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Negative log-likelihood of a token set under one model.

    Attributes:
        label: What was evaluated: ``float``, ``naive``, ``plan``, …
        provenance: Model and tokens.
        plan: Content hash of the plan; empty for float.
        nats: Sum over each window's predicted tokens.
        predicted: Tokens predicted in each window; where the unit is a word, the words that its loss is shared out to.
        sources: The file or document each window comes from.
        unit: What the loss is counted by, ``token`` or ``word``.
    """

    label: str
    provenance: Provenance
    plan: str
    nats: tuple[float, ...]
    predicted: tuple[int, ...]
    sources: tuple[str, ...]
    unit: str = "token"

    @property
    def loss(self) -> float:
        """Mean nats per unit."""
        return math.fsum(self.nats) / sum(self.predicted)

    @property
    def perplexity(self) -> float:
        """Exponential of the loss; infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


class Difference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A paired difference in nats per token, with its standard error over windows, clustered by source."""

    nats: float
    standard_error: float
    clusters: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval, from the normal distribution."""
        return self.nats - 1.96 * self.standard_error, self.nats + 1.96 * self.standard_error


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


NATS = "nats per token"
"""The unit of damage, unless a menu names another."""


class MenuEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The predicted price of one scheme at one site.

    Attributes:
        site: Full name.
        scheme: Short spelling.
        damage: In the menu's unit.
        standard_error: Over windows.
    """

    site: str
    scheme: str
    damage: float
    standard_error: float


class Menu(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What every scheme would cost at every site.

    Attributes:
        provenance: Model and selection tokens.
        metric: How it was priced, e.g. ``fisher``.
        stats: Content hash of the stats behind static scales.
        entries: One a site and scheme.
        unit: Of the prices. Where it is not `NATS` they rank sites, and say nothing of the loss.
        prefix: Ids of the tokens in front of every window that are in float whatever a site's scheme.
    """

    provenance: Provenance
    metric: str
    stats: str
    entries: tuple[MenuEntry, ...]
    unit: str = NATS
    prefix: tuple[int, ...] = ()

    @property
    def in_nats(self) -> bool:
        """Whether the prices are losses, which add up and can be held against a budget."""
        return self.unit == NATS

    def damages(self, scheme: str) -> dict[str, float]:
        """Site to damage under one scheme, in the menu's unit."""
        return {e.site: e.damage for e in self.entries if e.scheme == scheme}

    def require_nats(self, what: str) -> None:
        """Refuse a menu that only ranks.

        Args:
            what: Was about to be done with it, for the message.

        Raises:
            UserError: If its unit is not nats per token.
        """
        if not self.in_nats:
            raise UserError(
                f"cannot {what} by {self.metric}: its prices are {self.unit}, which rank sites and are no losses; "
                f"take one in {NATS}, such as fisher"
            )


class Trial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measured plan on the selection tokens.

    Attributes:
        label: ``k=2``, ``only 1.down low``, ``without 1.down``, …
        sites: The sites the label is about: protected ones, the one left low, the one given up.
        damage: What `Sweep` says it is compared with.
    """

    label: str
    sites: tuple[str, ...]
    damage: Difference


class Sweep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The measurements behind a plan: protect the first k candidates, k = 0, 1, 2 and so on.

    Attributes:
        provenance: Model and selection tokens.
        order: What ranked the candidates.
        budget: Spelling of the budget.
        budget_nats: The same in nats per token.
        trials: Trial k protects the first k candidates; loss over float.
        alone: Only this site low, everything else in float; loss over float, to be set beside the prediction.
        recoveries: Of each site the plan protects: the loss that leaving it low would add to the plan's.
        verdict: What was chosen, and why there.
    """

    provenance: Provenance
    order: str
    budget: str
    budget_nats: float
    trials: tuple[Trial, ...]
    alone: tuple[Trial, ...]
    recoveries: tuple[Trial, ...]
    verdict: str

    @property
    def protected(self) -> frozenset[str]:
        """Full names of the sites that the plan protects; what a rule overrides is none of them."""
        return frozenset(site for trial in self.recoveries for site in trial.sites)

    def __post_init__(self) -> None:
        if nameless := [t.label for t in (*self.alone, *self.recoveries) if not t.sites]:
            raise ValueError(f"trials of single sites that name none: {', '.join(nameless)}")


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
        questions: How many it is of; 0 in records from before it was kept.
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


def same_origin(a: Provenance, b: Provenance, what: str, *, other_models: bool = False) -> None:
    """Refuse to combine strangers.

    A transformed model is none: its function is that of the model it was made from.

    Args:
        a: Of one record.
        b: Of the other.
        what: The two in words, for the message.
        other_models: Whether they may be of two models.

    Raises:
        UserError: Naming the fields that differ.
    """
    fields = ("tokens", "convention", "dtype") if other_models else ("model", "tokens", "convention", "dtype")
    a, b = (msgspec.structs.replace(p, model=source_of(p.model)) for p in (a, b))
    values = [(f, getattr(a, f), getattr(b, f)) for f in fields]
    different = [f"{field}: {x[:40]} against {y[:40]}" for field, x, y in values if x != y]
    if different:
        raise UserError(f"{what} do not belong together: " + "; ".join(different))

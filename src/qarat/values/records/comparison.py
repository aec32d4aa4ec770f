"""Records of several models set beside one another: paired differences, with intervals.

The same tokens, or the same questions, were put to all of them; so what is compared is each window's or question's own
difference, whose error is far smaller than that of either number. The first record is the one that the others are
compared with. Other tokens, questions, conventions or arithmetic are refused. Another float model is not, as long as
its tokens are the same: then the two models are compared, not two ways to store one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec

from qarat.ground.errors import UserError
from qarat.values.fingerprints import source_of
from qarat.values.records.origin import clustered_mean, normal_interval, same_origin
from qarat.values.records.scores import Divergence, Evaluation, TaskScore, ZeroShot

Comparable = Evaluation | ZeroShot | Divergence
Verdict = Literal["identical", "equal within error", "higher", "lower", "error unknown"]
_KINDS: dict[type, str] = {Evaluation: "loss", ZeroShot: "accuracy", Divergence: "divergence"}


class Compared(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the models.

    Attributes:
        label: What was evaluated.
        model: Fingerprint of its float model.
        plan: Content hash of its plan; empty for float, or where none is known.
    """

    label: str
    model: str
    plan: str


class Contrast(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measure of one model against the first's.

    Attributes:
        measure: ``loss``, ``KL from float``, ``same likeliest token``, or a task and its metric.
        label: Of the model.
        base: Label of the first.
        value: Its measure.
        base_value: The first's.
        difference: How much higher it is.
        standard_error: Of the difference, paired; NaN where it cannot be known.
        pairs: Windows or questions behind it.
        above: Of those, how many are higher than the first's.
        below: And lower.
    """

    measure: str
    label: str
    base: str
    value: float
    base_value: float
    difference: float
    standard_error: float
    pairs: int
    above: int
    below: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference, from the normal distribution."""
        return normal_interval(self.difference, self.standard_error)

    @property
    def verdict(self) -> Verdict:
        """Whether there is a difference, as far as the interval can tell."""
        if self.pairs and not self.above and not self.below:
            return "identical"
        if math.isnan(self.standard_error):
            return "error unknown"
        low, high = self.interval
        if low <= 0 <= high:
            return "equal within error"
        return "higher" if low > 0 else "lower"


class Comparison(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Several models on the same tokens or questions.

    Attributes:
        kind: ``loss``, ``accuracy`` or ``divergence``.
        unit: Of a loss's count, ``token`` or ``word``; what a divergence is per; ``question`` of an accuracy.
        tokens: Fingerprint of what they were measured on.
        convention: How that was cut.
        dtype: Arithmetic.
        compared: The models, the first the one that the others are compared with.
        contrasts: One a measure and model, the first model left out.
    """

    kind: str
    unit: str
    tokens: str
    convention: str
    dtype: str
    compared: tuple[Compared, ...]
    contrasts: tuple[Contrast, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """Fingerprints of the float models, each once; a transformed one is the model it was made from."""
        return tuple(dict.fromkeys(source_of(c.model) for c in self.compared))

    @property
    def what(self) -> str:
        """In words, what differs between the records."""
        if len(self.models) == 1:
            return f"one model, {self.models[0][:12]}, stored in different ways"
        named = ", ".join(model[:12] for model in self.models)
        return f"different models, {named}: not only how they are stored"


def compare(records: Sequence[Comparable]) -> Comparison:
    """Compare records of one kind with the first of them.

    Raises:
        UserError: Fewer than two, of several kinds, of one label, or measured on other tokens or questions, by another
            convention or in another arithmetic (names what differs).
    """
    if len(records) < 2:
        raise UserError("a comparison needs at least two models or records")
    labels = [record.label for record in records]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise UserError(f"several records are called {', '.join(twice)}; give each a name of its own")
    if len({type(record) for record in records}) > 1:
        kinds = ", ".join(f"{record.label} is of {_KINDS[type(record)]}" for record in records)
        raise UserError(f"only records of one kind can be compared: {kinds}")
    first, *others = records
    for other in others:
        same_origin(first.provenance, other.provenance, f"{first.label} and {other.label}", other_models=True)
    contrasts = [contrast for other in others for contrast in _contrasts(other, first)]
    kind, origin = _KINDS[type(first)], first.provenance
    unit = first.unit if isinstance(first, Evaluation) else "question" if isinstance(first, ZeroShot) else "token"
    compared = tuple(Compared(r.label, r.provenance.model, r.plan) for r in records)
    return Comparison(kind, unit, origin.tokens, origin.convention, origin.dtype, compared, tuple(contrasts))


def score_difference(score: TaskScore, base: TaskScore) -> tuple[float, float]:
    """How much higher a score is than another on the same questions, and the standard error of that.

    The error is that of the mean of paired differences over questions; of answers that are right or wrong it is the
    one behind McNemar's test, which knows the questions that only one of the two got right. NaN where no score is
    known for each question.
    """
    change = score.value - base.value
    if len(score.items) < 2 or len(score.items) != len(base.items):
        return change, math.nan
    changes = [x - y for x, y in zip(score.items, base.items, strict=True)]
    return change, statistics.stdev(changes) / math.sqrt(len(changes))


def _contrasts(a: Comparable, b: Comparable) -> list[Contrast]:
    """Every measure of ``a`` against ``b``'s, which are of one kind and one origin."""
    if isinstance(a, ZeroShot) and isinstance(b, ZeroShot):
        return _scores(a, b)
    assert isinstance(a, Evaluation | Divergence)
    assert isinstance(b, Evaluation | Divergence)
    if (a.predicted, a.sources) != (b.predicted, b.sources):
        raise UserError(
            f"{a.label} and {b.label} do not have the same windows or sources; measure both on one token set"
        )
    contrasts: list[Contrast] = []
    for (measure, value, mine), (_, base, theirs) in zip(_by_window(a), _by_window(b), strict=True):
        changes = [x - y for x, y in zip(mine, theirs, strict=True)]
        difference, error, _ = clustered_mean(changes, a.predicted, a.sources)
        contrasts.append(Contrast(measure, a.label, b.label, value, base, difference, error, *_signs(mine, theirs)))
    return contrasts


def _by_window(record: Evaluation | Divergence) -> list[tuple[str, float, Sequence[float]]]:
    """Each measure: its name, its value, and its sum over each window."""
    if isinstance(record, Evaluation):
        return [("loss", record.loss, record.nats)]
    return [
        ("KL from float", record.mean[0], record.nats),
        ("same likeliest token", record.agreement[0], record.agreeing),
    ]


def _scores(a: ZeroShot, b: ZeroShot) -> list[Contrast]:
    mine = {(s.task, s.metric): s for s in a.scores}
    theirs = {(s.task, s.metric): s for s in b.scores}
    if mine.keys() != theirs.keys():
        differing = ", ".join(" ".join(key) for key in sorted(mine.keys() ^ theirs.keys()))
        raise UserError(f"{b.label} and {a.label} do not have the same scores: {differing}; measure both again")
    return [
        Contrast(
            " ".join(key), a.label, b.label, score.value, theirs[key].value,
            *score_difference(score, theirs[key]), *_signs(score.items, theirs[key].items),
        )
        for key, score in mine.items()
    ]  # fmt: skip


def _signs(a: Sequence[float], b: Sequence[float]) -> tuple[int, int, int]:
    """Pairs, how many of ``a`` are higher, and how many lower; none where the two are not pairs."""
    if len(a) != len(b):
        return 0, 0, 0
    pairs = list(zip(a, b, strict=True))
    return len(pairs), sum(x > y for x, y in pairs), sum(x < y for x, y in pairs)

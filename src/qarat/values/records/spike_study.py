"""Spike studies: what protecting a few sites buys beside its controls and beside general-purpose methods, as a record.

An arm is one way to store the model, measured on the report tokens. The record keeps the loss of every window of every
arm, so that any two can be compared in pairs; `qarat.jobs.spike_study.comparisons` does so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from qarat.values.records.origin import Difference, Provenance, clustered_mean
from qarat.values.records.scores import Evaluation

MAIN = "main"
"""The tokens of arms that are measured as the study was asked to cut them."""
_NAMED = 4  # missing arms that are named


def brief_setting(low: str) -> str:
    """A low scheme for tables: bits, and what weights and inputs share a scale over.

    ``8 channel static``, ``6 tensor token``, ``8 channel static/mse``, ``8 channel token/outliers-6``.
    """
    weight, _, inputs = low.partition(" a=")
    bits, _, rows = weight.removeprefix("w=int").partition("/")
    return f"{bits} {rows} {inputs.partition('/')[2].removeprefix('tensor/')}"


def setting_words(low: str) -> str:
    """A low scheme in a sentence: ``INT8 (weights per channel, inputs per tensor, static)``."""
    weight, _, inputs = low.partition(" a=")
    bits, _, rows = weight.removeprefix("w=int").partition("/")
    _, *parts = inputs.split("/")
    return f"INT{bits} (weights per {rows}, inputs per {', '.join(parts)})"


class SpikeArm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to store the model, measured.

    Attributes:
        group: ``naive``, ``protection``, ``control``, ``order``, ``method``, ``ablation``, ``bos`` or ``calibration``.
        label: What it is, unlike any other of its setting.
        setting: Low scheme that the arm is a variant of, by which arms are compared.
        scheme: What its low sites get; that of the setting, unless the arm is about the scheme.
        protected: Full names of the sites that get another.
        protection: Their scheme.
        transforms: Done to the float model before, choices made.
        prefix: How many tokens in front are computed in float.
        tokens: What it was measured on, a key of `SpikeStudy.floats`.
        share: Of the sites' parameters, those protected.
        bits: Bits per weight, scales included; embeddings, head and norms outside.
        nats: Of every window; empty where it could not be measured.
        failure: Why not.
        note: What else is to be known of it.
    """

    group: str
    label: str
    setting: str
    scheme: str
    protected: tuple[str, ...]
    protection: str
    transforms: tuple[str, ...]
    prefix: int
    tokens: str
    share: float
    bits: float
    nats: tuple[float, ...] = ()
    failure: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        """Unlike any other of the study."""
        return f"{self.label}, {self.setting}"


class RuleSays(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a spike rule says of the model (`qarat.stages.spikes`).

    Attributes:
        rule: Its name.
        flagged: Streams.
        margin: To the next stream, or to the limit where none is flagged.
        statement: The rule in words.
    """

    rule: str
    flagged: tuple[str, ...]
    margin: float
    statement: str


class Left(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arms that were left out.

    Attributes:
        what: In words.
        why: In words.
    """

    what: str
    why: str


class SpikeStudy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every arm of a model's study.

    Attributes:
        provenance: Model and report tokens.
        name: That the model was opened by.
        selection: Fingerprint of the selection tokens, on which everything was chosen.
        budget: Spelling of the loss budget.
        budget_nats: The same in nats per token.
        main: Low scheme of the main setting.
        twin: The same with 6 bits.
        sites: Full names of the protected sites, the dearest first; none where naive is within the budget.
        chosen: How they were chosen, in words.
        rules: What the spike rules say under the main setting.
        floats: Key of a token set to the float model's loss there; that of `MAIN` first.
        arms: In the order in which they were asked for.
        left: Arms that were left out, and why.
        missing: Names of arms that a study cut short has not come to.
    """

    provenance: Provenance
    name: str
    selection: str
    budget: str
    budget_nats: float
    main: str
    twin: str
    sites: tuple[str, ...]
    chosen: str
    rules: tuple[RuleSays, ...]
    floats: dict[str, Evaluation]
    arms: tuple[SpikeArm, ...]
    left: tuple[Left, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def missing_words(self) -> str:
        """How many arms are missing, and the first of them: ``1 arm (naive, w=int8/…)``; empty for a whole study."""
        names = "; ".join(self.missing[:_NAMED]) + ("; …" if len(self.missing) > _NAMED else "")
        arms = "1 arm" if len(self.missing) == 1 else f"{len(self.missing)} arms"
        return f"{arms} ({names})" if self.missing else ""

    @property
    def settings(self) -> tuple[str, ...]:
        """Low schemes that arms are variants of, in their order."""
        return tuple(dict.fromkeys(arm.setting for arm in self.arms))

    def find(self, setting: str, label: str) -> SpikeArm | None:
        """An arm that was measured; None if there is none."""
        matches = (a for a in self.arms if a.setting == setting and a.label == label and not a.failure)
        return next(matches, None)

    def of_group(self, setting: str, *groups: str) -> tuple[SpikeArm, ...]:
        """The measured arms of a setting and some groups."""
        return tuple(a for a in self.arms if a.setting == setting and a.group in groups and not a.failure)

    def over_float(self, arm: SpikeArm) -> Difference:
        """What an arm loses over float on the same tokens."""
        return self._difference(arm.nats, self.floats[arm.tokens].nats, arm.tokens)

    def over(self, arm: SpikeArm, other: SpikeArm) -> Difference:
        """What an arm loses over another one that was measured on the same tokens.

        Raises:
            ValueError: Of other tokens.
        """
        if arm.tokens != other.tokens:
            raise ValueError(f"{arm.name} and {other.name} were measured on other tokens")
        return self._difference(arm.nats, other.nats, arm.tokens)

    def evaluation(self, arm: SpikeArm, label: str) -> Evaluation:
        """An arm's loss as a record beside the float model's on the same tokens; the hash of its plan is not kept."""
        return msgspec.structs.replace(self.floats[arm.tokens], label=label, nats=arm.nats)

    def perplexity(self, arm: SpikeArm) -> float:
        """Exponential of an arm's loss; infinite where that overflows."""
        loss = math.fsum(arm.nats) / sum(self.floats[arm.tokens].predicted)
        return math.exp(loss) if loss < 700 else math.inf

    def _difference(self, a: Sequence[float], b: Sequence[float], tokens: str) -> Difference:
        base = self.floats[tokens]
        return Difference(*clustered_mean([x - y for x, y in zip(a, b, strict=True)], base.predicted, base.sources))

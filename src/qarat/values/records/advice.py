"""Advice: what every scheme would cost on a model, with the best recipe for a budget, before any is decided on."""

from __future__ import annotations

import msgspec

from qarat.ground.summaries import Summarized
from qarat.values.fingerprints import brief
from qarat.values.records.origin import Difference, Provenance

NOT_KNOWN = "not known"


class EngineAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of an engine that is asked to run a scheme.

    Attributes:
        engine: Its name.
        versions: That the answer is about.
        runs: What it computes, in words; empty where it does not run the scheme, or that is not known.
        where: On which hardware; where it does not run, why, or that it is not known.
        doubt: What of it was not read in a source.
    """

    engine: str
    versions: str
    runs: str
    where: str
    doubt: str = ""


class AdvisedScheme(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One scheme, and the recipe that keeps the budget with it.

    Attributes:
        name: Short.
        scheme: Spelling.
        naive: Predicted for everything low, nothing done, nats per token.
        transform: What is done to the float model first; empty for nothing.
        low: Predicted for everything low behind that, nats per token.
        predicted: With the kept sites in float as well, nats per token.
        kept: Full names of the sites that stay in float.
        share: Of the parameters of all sites, those of the kept ones; of caches, which have none, of their number.
        bits: Of a weight, scales included, kept sites too.
        size: Bytes of the quantized folder.
        engines: One answer each.
        request: What `qarat run`, or of caches `qarat search`, has to be told to do so, by argument.
        cache: Bytes of a token's keys and values.
    """

    name: str
    scheme: str
    naive: float
    transform: str
    low: float
    predicted: float
    kept: tuple[str, ...]
    share: float
    bits: float
    size: int
    engines: tuple[EngineAnswer, ...]
    request: dict[str, str]
    cache: int = 0

    @property
    def is_of_caches(self) -> bool:
        """Whether it is one of caches, which leaves all weights in float."""
        return self.scheme.startswith("c=")

    @property
    def spent(self) -> int:
        """Bytes that it is to make few: of the folder, or of a token's keys and values."""
        return self.cache if self.is_of_caches else self.size

    @property
    def is_low(self) -> bool:
        """Whether the recipe leaves anything low."""
        return self.share < 1


class LeftOut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A scheme that was not looked at, and why, in words."""

    name: str
    scheme: str
    why: str


class Advice(Summarized, msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The landscape of a model.

    Attributes:
        provenance: Model and selection tokens.
        budget: Spelling.
        budget_nats: The same in nats per token.
        caution: So many times what is predicted must be within the budget.
        engines: Those that must run it; empty for any.
        schemes: By bytes, the smallest first.
        measured: By name, what the recipe loses over float on the selection tokens; the others are predictions alone.
        left_out: Not looked at.
        priced: Tokens behind the predictions.
        forwards: That it took to find out, of the whole model over the selection tokens; a backward counts two, a
            product with the shape of every weight one.
    """

    provenance: Provenance
    budget: str
    budget_nats: float
    caution: float
    engines: tuple[str, ...]
    schemes: tuple[AdvisedScheme, ...]
    measured: dict[str, Difference]
    left_out: tuple[LeftOut, ...]
    priced: int
    forwards: float

    def facts(self) -> dict[str, str]:
        """Of which model and budget, and the smallest recipe."""
        shown = {"model": brief(self.provenance.model), "budget": self.budget, "schemes": str(len(self.schemes))}
        meeting = self.meeting
        return shown | ({"smallest": f"{meeting[0].name}, {meeting[0].size:,} bytes"} if meeting else {})

    @property
    def meeting(self) -> tuple[AdvisedScheme, ...]:
        """Recipes predicted to keep the budget that leave something low, the smallest first."""
        return tuple(s for s in self.schemes if s.is_low)

    @property
    def nearest(self) -> AdvisedScheme:
        """The scheme that loses least where nothing stays in float."""
        return min(self.schemes, key=lambda s: (s.low, s.size))

    @property
    def would_take(self) -> float:
        """The loss budget, nats per token, that the nearest would be predicted to keep with nothing in float."""
        return self.caution * self.nearest.low

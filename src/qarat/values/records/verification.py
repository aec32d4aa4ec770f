"""What `qarat verify` found of a folder that engines load, as a frozen record."""

from __future__ import annotations

from typing import Literal

import msgspec

from qarat.ground.summaries import Summarized
from qarat.values.records.origin import Difference, Provenance

Severity = Literal["error", "not judged", "warning", "note"]
Verdict = Literal["passes", "fails", "not judged"]


class Finding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing that is wrong, or worth knowing.

    Attributes:
        severity: ``error`` makes the folder fail; with ``not judged``, what qarat does not follow or could not do here,
            it does not pass either.
        what: What is wrong, with numbers.
        remedy: What to do about it.
        modules: The modules it is about, by full name; none if it is about the whole folder.
        engines: The engines it is about; none if about any.
    """

    severity: Severity
    what: str
    remedy: str
    modules: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()


class Running(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one engine makes of a module.

    Attributes:
        engine: Its name.
        scheme: What it will run, in the short spelling; ``float``; or in words where no spelling fits.
        because: The target or the ignore entry that decides, or that there is none.
    """

    engine: str
    scheme: str
    because: str


class ModuleReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A module as it lies on disk and as engines will run it.

    Attributes:
        name: Full name.
        stored: Leaf of each of its tensors to kind and shape, as in ``I8 [64, 32]``.
        runs: One for each engine asked about.
    """

    name: str
    stored: dict[str, str]
    runs: tuple[Running, ...]


class WeightComparison(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The folder's weights and scales against those of the run.

    Attributes:
        sites: Projections compared.
        equal: Those whose weight, weight scales and input scales are equal to the last bit.
        largest: Largest relative difference of a weight over all sites, of the largest magnitude in the site.
    """

    sites: int
    equal: int
    largest: float


class LogitsComparison(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Logits of two ways to run the folder, on the first windows of the report tokens.

    Attributes:
        what: The two, in words.
        relative: Largest difference over largest magnitude.
        limit: What it must not exceed; 0 if it is only reported.
        windows: Windows compared.
    """

    what: str
    relative: float
    limit: float
    windows: int


class LiveModule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A module as an engine ran it.

    Attributes:
        name: In the engine, which may have merged several.
        scheme: What ran, in the engine's own words; ``float``.
        kernel: The class that computed it.
        resolved: What its row says: a kind of kernel or a scheme; ``float``.
        expected: That in the engine's own words; empty where they are not known.
    """

    name: str
    scheme: str
    kernel: str
    resolved: str
    expected: str

    @property
    def agrees(self) -> bool:
        """Whether what ran is what was resolved, as far as that can be told."""
        return not self.expected or self.scheme == self.expected


class LiveLoss(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Mean loss of an engine beside our own run of the folder, on the same tokens.

    Attributes:
        nats: The engine's, per token.
        ours: Our simulation's.
        standard_error: Of their difference, paired, clustered by source; NaN with a single source.
        windows: Windows compared.
        predicted: Tokens predicted.
        tokens: Fingerprint of the token set.
        convention: How the tokens were cut.
    """

    nats: float
    ours: float
    standard_error: float
    windows: int
    predicted: int
    tokens: str
    convention: str


class LiveRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an installed engine really ran of a folder.

    Attributes:
        engine: Its name.
        version: Of the package that is installed.
        modules: Every module with a weight.
        losses: Its loss beside ours; at most one.
    """

    engine: str
    version: str
    modules: tuple[LiveModule, ...]
    losses: tuple[LiveLoss, ...] = ()


class Verification(Summarized, msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was found of one folder.

    Attributes:
        provenance: The folder's own fingerprint (config and weights); tokens are empty where none were needed.
        folder: Its name.
        format: As the config has it on top.
        engines: Name to versions of the engines whose rules were followed.
        generation: GPU generation asked about; empty for none.
        against: ``run``, ``float`` or nothing.
        modules: Every linear module.
        findings: The gravest first.
        weights: The weights against the run's; at most one.
        logits: Logits compared.
        damage: Loss of the folder over the float model's, on the report tokens; at most one.
        live: What an installed engine really ran; at most one.
    """

    provenance: Provenance
    folder: str
    format: str
    engines: dict[str, str]
    generation: str
    against: str
    modules: tuple[ModuleReport, ...]
    findings: tuple[Finding, ...]
    weights: tuple[WeightComparison, ...] = ()
    logits: tuple[LogitsComparison, ...] = ()
    damage: tuple[Difference, ...] = ()
    live: tuple[LiveRun, ...] = ()

    def facts(self) -> dict[str, str]:
        """What tells it from another."""
        return {
            "folder": self.folder,
            "verdict": self.verdict,
            "errors": str(len(self.errors)),
            "against": self.against or "nothing",
        }

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that make the folder fail."""
        return self._findings("error")

    @property
    def unjudged(self) -> tuple[Finding, ...]:
        """The findings of which nothing can be said."""
        return self._findings("not judged")

    @property
    def verdict(self) -> Verdict:
        """Whether it fails; if not, whether everything in it was judged."""
        return "fails" if self.errors else "not judged" if self.unjudged else "passes"

    @property
    def passed(self) -> bool:
        """Whether everything was judged, and there is no error."""
        return self.verdict == "passes"

    def _findings(self, severity: Severity) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == severity)

"""Calibration studies: what a scheme loses on every text, calibrated on every other, as a record.

The record keeps the loss of every window under every calibration, so that any two can be compared in pairs.
"""

from __future__ import annotations

import math

import msgspec

from qarat.values.records.origin import Difference, Provenance, clustered_mean
from qarat.values.records.scores import Evaluation


class TestText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text that is measured on.

    Attributes:
        name: As it was asked for, without the places of one machine.
        tokens: Fingerprint of its token set.
        windows: Its share of the windows of every evaluation, which stand in the order of the texts.
    """

    __test__ = False  # pytest takes it for a test

    name: str
    tokens: str
    windows: int


class CalibrationArm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model calibrated on one text, measured on all.

    Attributes:
        name: Of the text, as of `TestText`; a text of both is split by documents.
        tokens: Fingerprint of the calibration tokens.
        convention: How they were cut, drawn or mixed.
        windows: How many.
        nats: Of every window of every test; empty where it could not be measured.
        failure: Why not.
    """

    name: str
    tokens: str
    convention: str
    windows: int
    nats: tuple[float, ...] = ()
    failure: str = ""


class CalibrationStudy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one scheme loses over float, for every text that it is calibrated on and every text that it is measured on.

    Attributes:
        provenance: Model, and the tokens of all tests.
        name: That the model was opened by.
        low: Spelling of the scheme.
        base: The float model on the tests, one behind the other.
        tests: In the order of the windows.
        arms: One for each calibration that was measured, in the order in which they were asked for.
        missing: Names of calibrations that a study cut short has not come to.
    """

    provenance: Provenance
    name: str
    low: str
    base: Evaluation
    tests: tuple[TestText, ...]
    arms: tuple[CalibrationArm, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def measured(self) -> tuple[CalibrationArm, ...]:
        """The arms that have losses."""
        return tuple(arm for arm in self.arms if not arm.failure)

    def over_float(self, arm: CalibrationArm, test: TestText) -> Difference:
        """What an arm loses over float on a test."""
        return self._difference(arm.nats, self.base.nats, test)

    def over(self, arm: CalibrationArm, other: CalibrationArm, test: TestText) -> Difference:
        """What an arm loses over another one on a test, paired by window."""
        return self._difference(arm.nats, other.nats, test)

    def reference(self, test: TestText) -> CalibrationArm | None:
        """What arms are compared with on a test: the one calibrated on the same text, else the one that loses least.

        None where none was measured.
        """
        own = next((arm for arm in self.measured if arm.name == test.name), None)
        least = min(self.measured, key=lambda arm: self.over_float(arm, test).nats, default=None)
        return own or least

    def perplexity(self, test: TestText) -> float:
        """Of the float model on a test."""
        here = self._windows(test)
        return math.exp(math.fsum(self.base.nats[here]) / sum(self.base.predicted[here]))

    def _windows(self, test: TestText) -> slice:
        before = sum(t.windows for t in self.tests[: self.tests.index(test)])
        return slice(before, before + test.windows)

    def _difference(self, a: tuple[float, ...], b: tuple[float, ...], test: TestText) -> Difference:
        here, base = self._windows(test), self.base
        more = [x - y for x, y in zip(a[here], b[here], strict=True)]
        return Difference(*clustered_mean(more, base.predicted[here], base.sources[here]))

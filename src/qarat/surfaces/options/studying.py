"""Options of the verbs that study a method, not a model alone."""

from __future__ import annotations

from typing import ClassVar

from qarat.model.mixtures import LANGUAGES, check_texts
from qarat.surfaces.options.groups import IntoFolder, Text
from qarat.values.requests.calibration_study import CalibrationRequest


class StudyCalibrationOptions(IntoFolder, frozen=True, kw_only=True):
    """Measure what it matters which text a model is calibrated on: every calibration against every test.

    Attributes:
        out: Folder to write. Work goes on in FOLDER.partial; after a kill the same command continues it, text by text.
            (default: MODEL-calibration)
    """

    SUFFIX = "calibration"
    HIDDEN: ClassVar[tuple[str, ...]] = ("Text.calibration", "Text.selection", "Text.report")  # the request has them

    study: CalibrationRequest = CalibrationRequest()
    text: Text = Text(report_samples=64)

    def check(self) -> None:
        """Refuse texts that are not there."""
        super().check()
        check_texts(self.study.calibrations, self.study.tests, known=LANGUAGES)

"""What a calibration study is asked: which texts to calibrate on, which to measure on, and under which scheme."""

from __future__ import annotations

import msgspec

from qarat.ground.errors import UserError
from qarat.values.parsing import parse_scheme
from qarat.values.schemes import LinearScheme


class CalibrationRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which texts are set against each other.

    Attributes:
        calibrations: Texts to calibrate on, files, hub:OWNER/NAME, self or mix:3=one.txt,1=another.txt; python and
            english are those that ship with qarat. A text that is measured on, too, is split by documents.
        tests: Texts to measure on.
        low: Scheme of every projection: with static inputs, or a rounding that looks at what a projection reads, such
            as w=int4/g128/round-gptq.
    """

    calibrations: tuple[str, ...] = ("python", "english", "mix:1=python,1=english", "self")
    tests: tuple[str, ...] = ("python", "english")
    low: str = "w=int8/channel a=int8/tensor/static"

    def check(self) -> None:
        """Check everything that can be checked without a model.

        Raises:
            UserError: No text, one that is there twice, or a scheme that is none of projections.
        """
        for field, names in (("calibrations", self.calibrations), ("tests", self.tests)):
            if not names or len(set(names)) < len(names):
                raise UserError(f"`{field}`: give at least one text, and each once")
        if not isinstance(parse_scheme(self.low), LinearScheme):
            raise UserError(f"`low` {self.low}: give a scheme of projections (w=… a=…)")

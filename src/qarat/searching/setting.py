"""What searches, studies and sweeps are given beside a request: models with their tokens, how plans are measured."""

from __future__ import annotations

from typing import NamedTuple

from qarat.data import TokenSet
from qarat.models import Model
from qarat.runners import Runner
from qarat.workspace import Progress, no_progress

__all__ = ["Member", "Setting"]


class Member(NamedTuple):
    """A model to be searched.

    Attributes:
        name: That it was opened by, for workers that open it anew.
        model: In float.
        tokens: Calibration, selection and report.
    """

    name: str
    model: Model
    tokens: tuple[TokenSet, TokenSet, TokenSet]


class Setting(NamedTuple):
    """How plans are measured, whatever is searched.

    Attributes:
        runner: Where.
        seed: Of draws and labels.
        progress: Told of every stage.
        revision: Of hub ids.
        keep_bytes: Bound on hidden states kept between measurements.
    """

    runner: Runner
    seed: int = 0
    progress: Progress = no_progress
    revision: str | None = None
    keep_bytes: int | None = None

    def within(self, place: str) -> Setting:
        """The same, with progress that says where in a larger run it is."""
        return self._replace(progress=lambda stage, done, total: self.progress(f"{place} {stage}", done, total))

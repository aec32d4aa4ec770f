"""How fast an engine runs folders, and how much memory their weights take, as a frozen record."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple

import msgspec

from qarat.ground.summaries import Summarized
from qarat.values.requests.speed import SpeedRequest


class MedianRange(NamedTuple):
    """Median, least and largest of some values, of one turn each."""

    median: float
    least: float
    most: float


class FolderMeasure(NamedTuple):
    """One thing that was measured of a folder.

    Attributes:
        name: With its unit.
        values: Of the turns.
        ratios: To the first folder's, turn by turn.
    """

    name: str
    values: MedianRange
    ratios: MedianRange


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A folder loaded and timed once.

    Attributes:
        load: Seconds until the engine takes the first prompt.
        weights: Bytes by which loading them makes the engine's memory grow, the GPU's where there is one.
        prefill: Prompt tokens a second until the first new one, for each batch.
        decode: New tokens a second behind the first, for each batch.
    """

    load: float
    weights: int
    prefill: tuple[float, ...]
    decode: tuple[float, ...]


class FolderSpeed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A folder's turns.

    Attributes:
        folder: Its name.
        fingerprint: Of its config and weights.
        format: Of its quantization; empty for a float model.
        stored: Bytes of its tensors on disk.
        turns: In their order.
    """

    folder: str
    fingerprint: str
    format: str
    stored: int
    turns: tuple[Turn, ...]


class EngineSpeed(Summarized, msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Folders timed in one engine, in turns.

    Attributes:
        engine: Its name.
        version: Of the package that is installed.
        device: What computed.
        threads: CPU threads.
        request: What was timed.
        folders: The first is what the others are set against.
        notes: What should be known beside the figures, a line each.
    """

    engine: str
    version: str
    device: str
    threads: int
    request: SpeedRequest
    folders: tuple[FolderSpeed, ...]
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, str]:
        """What tells it from another."""
        return {
            "engine": f"{self.engine} {self.version}",
            "folders": ", ".join(folder.folder for folder in self.folders),
            "turns": str(self.request.turns),
        }

    def measures(self, folder: FolderSpeed) -> Iterator[FolderMeasure]:
        """What was measured of a folder, beside the first's."""
        first = self._values(self.folders[0])
        for name, values in self._values(folder).items():
            pairs = zip(values, first[name], strict=True)
            yield FolderMeasure(
                name, _median_range(values), _median_range([a / b if b > 0 else math.nan for a, b in pairs])
            )

    def _values(self, folder: FolderSpeed) -> dict[str, list[float]]:
        """Each measure by its name, a value for every turn."""
        values = {
            "load [s]": [turn.load for turn in folder.turns],
            "weights [MB]": [turn.weights / 1e6 for turn in folder.turns],
        }
        for phase in ("prefill", "decode"):
            for place, batch in enumerate(self.request.batches):
                values[f"{phase}, {batch} at once [tokens/s]"] = [getattr(t, phase)[place] for t in folder.turns]
        return values


def _median_range(values: Sequence[float]) -> MedianRange:
    return MedianRange(median(values), min(values), max(values))

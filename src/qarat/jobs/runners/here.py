"""The runner that is this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from qarat.ground.runtime import Progress, no_progress
from qarat.jobs.runners.base import STAGE, Work, WorkGroups

T = TypeVar("T")
R = TypeVar("R")


class Here:
    """Works in this process; nothing is pickled.

    Attributes:
        share: 1.
    """

    def __init__(self) -> None:
        self.share = 1
        self._make: Callable[[], Any] | None = None
        self._work: Work[Any, Any] | None = None

    def map(
        self, make: Callable[[], Work[T, R]], items: Sequence[T], *, progress: Progress = no_progress
    ) -> Iterator[tuple[int, R]]:
        """As `qarat.jobs.runners.base.Runner.map`; what ``make`` or its work raises comes as it is."""
        if make is not self._make or self._work is None:
            self._work = None
            self._work, self._make = make(), make
        groups = WorkGroups(len(items), workers=1)
        progress(STAGE, 0, len(items))
        while groups:
            indices = groups.take().indices
            results = self._work([items[i] for i in indices])
            progress(STAGE, indices.stop, len(items))
            yield from zip(indices, results, strict=True)

"""What every runner agrees on: `map`, what a worker does, how items are handed out; and the runner of this process."""

from __future__ import annotations

import importlib.metadata
import math
import pickle
import platform
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch

from qarat import __version__
from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress

T = TypeVar("T")
R = TypeVar("R")
Work = Callable[[Sequence[T]], Sequence[R]]
"""What a worker does with a group of items: one result each, in their order."""

GROUP = 16  # items handed out at once at the most, so that results come while a long list is worked on
STAGE = "measure"  # what progress is reported under


class Runner(Protocol):
    """Works through lists of items, with workers that stay from one list to the next.

    Attributes:
        workers: How many.
        share: Those of them that share one machine's memory and processors.
        sees_files: Whether files of this machine are surely at hand where they work.
    """

    workers: int
    share: int
    sees_files: bool

    def map(
        self, make: Callable[[], Work[T, R]], items: Sequence[T], *, progress: Progress = no_progress
    ) -> Iterator[tuple[int, R]]:
        """Work through items; neighbours tend to come to one worker, so items alike should be neighbours.

        Args:
            make: Called once in every worker; what it returns stays there with all that it keeps, for this list and
                for the next with the same object. Where workers are other processes, it and the items are pickled.
            items: Any number.
            progress: Called with the items done.

        Yields:
            Index and result, as they come, in any order.

        Raises:
            UserError: That ``make`` or its work raised, in the worker's words; or that the same items lost their worker
                time and again.
            RuntimeError: Any other error of theirs.
        """
        ...


class WorkGroup(NamedTuple):
    """Neighbouring items that are handed out together.

    Attributes:
        indices: Of the items.
        losses: Workers that were lost over them.
    """

    indices: range
    losses: int = 0


class WorkGroups:
    """Items as groups: large ones first, small ones at the end, so that no worker is the last for long."""

    def __init__(self, count: int, workers: int) -> None:
        self._next, self._count, self._workers = 0, count, workers
        self._lost: deque[WorkGroup] = deque()

    def __len__(self) -> int:
        """Items that are still to be handed out."""
        return self._count - self._next + sum(len(group.indices) for group in self._lost)

    def take(self) -> WorkGroup:
        """The next group; what was lost comes first."""
        if self._lost:
            return self._lost.popleft()
        size = min(GROUP, math.ceil((self._count - self._next) / (2 * self._workers)))
        group = WorkGroup(range(self._next, self._next + size))
        self._next += size
        return group

    def give_back(self, group: WorkGroup) -> None:
        """Take back a group whose worker was lost."""
        self._lost.append(group._replace(losses=group.losses + 1))


class ThisProcess:
    """Works in this process; nothing is pickled.

    Attributes:
        workers: 1.
        share: 1.
        sees_files: True.
    """

    def __init__(self) -> None:
        self.workers = self.share = 1
        self.sees_files = True
        self._make: Callable[[], Any] | None = None
        self._work: Work[Any, Any] | None = None

    def map(
        self, make: Callable[[], Work[T, R]], items: Sequence[T], *, progress: Progress = no_progress
    ) -> Iterator[tuple[int, R]]:
        """As `Runner.map`; what ``make`` or its work raises comes as it is."""
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


def versions() -> dict[str, str]:
    """Of what decides numbers, in this process."""
    return {"qarat": __version__, **{name: importlib.metadata.version(name) for name in ("torch", "transformers")}}


class Order(NamedTuple):
    """What a worker is to make; calling it does so.

    Attributes:
        versions: Those it has to be made with.
        make: Pickled by itself: read in another version, it might be anything.
    """

    versions: dict[str, str]
    make: bytes

    def __call__(self) -> Work[Any, Any]:
        """Make it.

        Raises:
            UserError: Other versions here.
        """
        here = versions()
        if other := {name: version for name, version in self.versions.items() if here[name] != version}:
            theirs, ours = (", ".join(f"{name} {v[name]}" for name in other) for v in (here, self.versions))
            wanted = " ".join(f"{name}=={version}" for name, version in other.items())
            raise UserError(
                f"the worker on {platform.node()} has {theirs}, the process that asks it {ours}, and numbers would be "
                f"of neither; there: pip install {wanted}"
            )
        return pickle.loads(self.make)()


class Done(NamedTuple):
    """A worker's results, one an item."""

    results: Sequence[Any]


class Failed(NamedTuple):
    """What a worker raised.

    Attributes:
        message: Of a `UserError`; of anything else the traceback.
        mendable: Whether it was a `UserError`.
    """

    message: str
    mendable: bool

    def error(self) -> Exception:
        """The error to be raised here."""
        return UserError(self.message) if self.mendable else RuntimeError(f"a worker failed:\n{self.message}")


Answer = Done | Failed


class Resident:
    """What lives in a worker: the work last made, with all that it keeps."""

    def __init__(self, threads: int = 1) -> None:
        """Empty.

        Args:
            threads: Of torch in this process; several workers on one machine would only be in each other's way.
        """
        torch.set_num_threads(threads)
        self._number = -1
        self._make: bytes | None = None
        self._work: Work[Any, Any] | None = None

    def ready(self) -> Literal["ready"]:
        """Says so, once the worker can."""
        return "ready"

    def run(self, number: int, make: bytes | None, items: Sequence[Any]) -> Answer:
        """Work on a group of items.

        Args:
            number: Of ``make``; what was made under the same number is used again.
            make: Pickled; may be None where the number is the last one's.
            items: Of the group.
        """
        try:
            if number != self._number:
                self._number, self._make, self._work = number, make, None
            if self._work is None:
                assert self._make is not None
                self._work = pickle.loads(self._make)()
            assert self._work is not None
            results = tuple(self._work(items))
            if len(results) != len(items):
                raise RuntimeError(f"{len(results)} results of {len(items)} items")
            return Done(results)
        except UserError as error:
            return Failed(str(error), mendable=True)
        except Exception:
            return Failed(traceback.format_exc(), mendable=False)

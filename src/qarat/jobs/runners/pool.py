"""Handing items to workers that may be lost: the same for local processes and for Ray.

A crew knows how to hire, feed and dismiss a worker, and to wait for whichever speaks next. The pool does the rest: a
group goes only to a worker that has said it is ready, so one that never starts holds up nobody; a lost worker's group
goes to the next that is free, and another worker is hired. Work is taken to be pure, so running it twice is no harm.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.jobs.runners.base import STAGE, Answer, Done, Failed, Order, Work, WorkGroup, WorkGroups, versions

T = TypeVar("T")
R = TypeVar("R")
LOSSES = 3  # workers that may be lost over the same items, or before they are ready, one after the other


class Job(NamedTuple):
    """What workers are to make.

    Attributes:
        number: Tells it from others.
        make: An `Order`, pickled.
    """

    number: int
    make: bytes


class Lost(NamedTuple):
    """A worker is gone.

    Attributes:
        reason: What is known of why.
    """

    reason: str


class Crew(Protocol):
    """Workers of one kind; a worker is whatever `hire` returns."""

    def hire(self) -> Any:
        """Start a worker; it will say ``"ready"``, or be lost."""
        ...

    def give(self, worker: Any, job: Job, items: Sequence[Any]) -> None:
        """Hand items to a worker that is ready; it will answer, or be lost."""
        ...

    def wait(self) -> tuple[Any, Literal["ready"] | Answer | Lost]:
        """Wait for the next worker that speaks, or is found to be lost."""
        ...

    def dismiss(self, worker: Any) -> None:
        """Stop a worker, whatever it is doing, lost ones too."""
        ...


class Pool:
    """A runner over a crew.

    Attributes:
        workers: How many, once all are there.
        share: Those of them that share one machine.
        sees_files: As of a `Runner`.
    """

    def __init__(self, crew: Crew, workers: int, share: int, *, sees_files: bool = False) -> None:
        """No worker is started yet."""
        self.workers, self.share, self.sees_files = workers, share, sees_files
        self._crew = crew
        self._job: Job | None = None
        self._made: Callable[[], Any] | None = None
        self._awaited: set[Any] = set()  # free with their next word: new ones, and those whose list was left early
        self._idle: list[Any] = []
        self._busy: dict[Any, WorkGroup] = {}
        self._stillborn = 0  # workers lost before they were ready, since the last that was

    def map(
        self, make: Callable[[], Work[T, R]], items: Sequence[T], *, progress: Progress = no_progress
    ) -> Iterator[tuple[int, R]]:
        """As `qarat.jobs.runners.base.Runner.map`."""
        job = self._job_of(make)
        groups = WorkGroups(len(items), self.workers)
        done = 0
        progress(STAGE, 0, len(items))
        try:
            self._feed(job, items, groups)
            while done < len(items):
                finished = list(self._listen(groups))
                self._feed(job, items, groups)
                for index, result in finished:
                    done += 1
                    progress(STAGE, done, len(items))
                    yield index, result
        finally:
            # Left early: what the busy ones still answer must not be taken for the next list's.
            self._awaited |= self._busy.keys()
            self._busy.clear()

    def close(self) -> None:
        """Stop all workers, whatever they are doing."""
        for worker in (*self._awaited, *self._idle, *self._busy):
            self._crew.dismiss(worker)

    def _job_of(self, make: Callable[[], Any]) -> Job:
        """The job with a number of its own, unless it is the last one again."""
        if self._job is None or make is not self._made:
            order = Order(versions(), pickle.dumps(make))
            self._job = Job(0 if self._job is None else self._job.number + 1, pickle.dumps(order))
            self._made = make
        return self._job

    def _feed(self, job: Job, items: Sequence[Any], groups: WorkGroups) -> None:
        """Give every idle worker a group, and hire where more are of use."""
        while self._idle and groups:
            worker, group = self._idle.pop(), groups.take()
            self._busy[worker] = group
            self._crew.give(worker, job, [items[i] for i in group.indices])
        while len(self._awaited) < len(groups) and len(self._awaited) + len(self._busy) < self.workers:
            self._awaited.add(self._crew.hire())

    def _listen(self, groups: WorkGroups) -> Iterator[tuple[int, Any]]:
        """Wait for one worker, and give what it has finished."""
        worker, answer = self._crew.wait()
        if isinstance(answer, Lost):
            self._lose(worker, answer, groups)
            return
        self._idle.append(worker)
        if worker in self._awaited:
            self._stillborn = 0
            self._awaited.remove(worker)
            return
        group = self._busy.pop(worker)
        if isinstance(answer, Failed):
            raise answer.error()
        assert isinstance(answer, Done)
        yield from zip(group.indices, answer.results, strict=True)

    def _lose(self, worker: Any, lost: Lost, groups: WorkGroups) -> None:
        self._crew.dismiss(worker)
        if worker in self._busy:
            group = self._busy.pop(worker)
            if group.losses + 1 == LOSSES:
                raise UserError(
                    f"{LOSSES} workers were lost over the same {len(group.indices)} items, the last one so: "
                    f"{lost.reason}. Too little memory is the usual reason: take fewer workers, or bound their memory"
                )
            groups.give_back(group)
        elif worker in self._awaited:
            self._awaited.remove(worker)
            self._stillborn += 1
            if self._stillborn == LOSSES:
                raise UserError(
                    f"{LOSSES} workers in a row were lost before they were ready, the last one so: {lost.reason}. A "
                    "script that asks for workers must do so below `if __name__ == '__main__':`, since they import it"
                )
        else:
            self._idle.remove(worker)

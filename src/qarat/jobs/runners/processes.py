"""Workers that are processes of this machine.

They are spawned, not forked: torch's threads and an opened device do not survive a fork. Each has a pipe of its own, so
that a killed one is told from the others and only its work is lost; `concurrent.futures` gives up the whole pool.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Literal, cast

from qarat.jobs.runners.base import Answer, Resident
from qarat.jobs.runners.pool import Job, Lost

PATIENCE = 2.0  # seconds that a process has to end before it is killed


class Processes:
    """A crew (`qarat.jobs.runners.pool.Crew`) of local processes; a worker is the pipe to its process."""

    def __init__(self) -> None:
        """No process is started yet."""
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[Connection, SpawnProcess] = {}
        self._holds: dict[Connection, int] = {}  # number of the job that it has

    def hire(self) -> Connection:
        """Start a process, which does not see Ctrl-C: this one ends it."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
        resource_tracker.ensure_running()  # what the first process would start on its way, which lifts the mask
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a new process inherits it
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()  # so that its end shows here as the end of the pipe
        self._processes[ours] = process
        return ours

    def give(self, worker: Connection, job: Job, items: Sequence[Any]) -> None:
        """Hand items to a process; what it makes is sent along the first time."""
        make = None if self._holds.get(worker) == job.number else job.make
        self._holds[worker] = job.number
        with suppress(OSError):  # it is gone, as `wait` will find
            _send(worker, (job.number, make, items))

    def wait(self) -> tuple[Connection, Literal["ready"] | Answer | Lost]:
        """The next answer, or the end of a process."""
        worker = cast(Connection, wait(list(self._processes))[0])
        try:
            return worker, _receive(worker)
        except (EOFError, OSError):
            process = self._processes[worker]
            process.join(PATIENCE)
            return worker, Lost(f"process {process.pid} ended with exit code {process.exitcode}")

    def dismiss(self, worker: Connection) -> None:
        """End a process."""
        process = self._processes.pop(worker)
        self._holds.pop(worker, None)
        worker.close()
        process.terminate()
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
            process.join()


def _serve(pipe: Connection) -> None:
    """The life of a process: answer until nobody asks any more."""
    resident = Resident()
    with suppress(EOFError, ConnectionError):
        _send(pipe, resident.ready())
        while True:
            _send(pipe, resident.run(*_receive(pipe)))


def _send(pipe: Connection, message: Any) -> None:
    """Send a copy. What a pipe does by itself would be undone by torch: a file of shared memory for every tensor."""
    pipe.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def _receive(pipe: Connection) -> Any:
    return pickle.loads(pipe.recv_bytes())

"""Workers that are actors of a Ray cluster, one processor each."""

from __future__ import annotations

import importlib.util
import math
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from qarat.ground.errors import UserError
from qarat.jobs.runners.base import Answer, Resident
from qarat.jobs.runners.pool import Job, Lost

LOCAL = "local"
PATIENCE = 10.0  # seconds that the head has to answer
MOST_SHOWN = 400  # characters that are shown of what Ray says


@contextmanager
def connected(address: str, workers: int) -> Iterator[int]:
    """A connection to a Ray cluster for a while; one that there is already is used, and left as it is.

    Args:
        address: Of the cluster's head, as Ray takes it, or ``local`` for one on this machine, for as long.
        workers: That it must have room for.

    Yields:
        Workers that will share one machine.

    Raises:
        UserError: Ray is not installed, nothing answers, or the cluster is too small.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("`ray` needs Ray: pip install 'qarat[ray]'")
    import ray

    _check_reachable(address)
    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody, unless asked for
        size = {"num_cpus": workers, "include_dashboard": False} if address == LOCAL else {}
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False, **size)
        except Exception as error:  # Ray raises many kinds, plain ones too; all mean that there is no cluster
            raise UserError(f"`ray` {address}: no cluster to be had there: {_shorten(error)}") from error
    try:
        room = int(ray.cluster_resources().get("CPU", 0))
        if room < workers:
            raise UserError(f"the Ray cluster at {address} has {room} processors; ask for no more workers than that")
        # A head is often a machine on which nothing may run.
        homes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        yield math.ceil(workers / max(1, len(homes)))
    finally:
        if ours:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Try to connect, where there is a host to connect to: Ray itself goes on trying for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"`ray` {address}: nothing answers there ({error}); `ray status` on its head says where it listens"
        ) from None


class Actors:
    """A crew (`qarat.jobs.runners.pool.Crew`) of Ray actors; made within `connected`."""

    def __init__(self) -> None:
        """No actor is started yet."""
        import ray
        from ray.exceptions import RayError

        self._ray, self._loss = ray, RayError
        # Spread over the machines, each of which has a memory of its own.
        self._actor = ray.remote(Resident).options(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")
        self._asked: dict[Any, Any] = {}  # reference to an answer → the actor asked
        self._make: tuple[int, Any] = (-1, None)

    def hire(self) -> Any:
        """Ask for an actor, which comes when there is room for it."""
        actor = self._actor.remote()
        self._asked[actor.ready.remote()] = actor
        return actor

    def give(self, worker: Any, job: Job, items: Sequence[Any]) -> None:
        """Hand items to an actor; what it makes lies in Ray's store, once for all of a machine."""
        if self._make[0] != job.number:
            self._make = (job.number, self._ray.put(job.make))
        self._asked[worker.run.remote(job.number, self._make[1], items)] = worker

    def wait(self) -> tuple[Any, Literal["ready"] | Answer | Lost]:
        """The next answer, or the loss of an actor."""
        references, _ = self._ray.wait(list(self._asked), num_returns=1)
        actor = self._asked.pop(references[0])
        try:
            return actor, self._ray.get(references[0])
        except self._loss as error:
            return actor, Lost(_shorten(error))

    def dismiss(self, worker: Any) -> None:
        """Kill an actor."""
        self._asked = {reference: actor for reference, actor in self._asked.items() if actor is not worker}
        self._ray.kill(worker)


def _shorten(error: Exception) -> str:
    """What an error of Ray's says, on one line."""
    line = " ".join(str(error).split())
    return line if len(line) <= MOST_SHOWN else f"{line[:MOST_SHOWN]}…"

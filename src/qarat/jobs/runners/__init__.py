"""Runners: one `map` over this process, local processes or a Ray cluster.

A search measures many plans, each on its own. All that it asks for is `map`: items in, results out as they come, from
workers that are made once and stay, so that each opens the model one time and keeps its hidden states and quantized
weights. Items go out in groups of neighbours, since plans that are alike share work; large groups first and small ones
at the end, so that all workers end together. What a lost worker had in hand is done again by another.

The results do not depend on the runner beyond what the number of threads does to a float sum; the cost does, since what
one worker keeps another does not have. What is given up: workers that help each other, and lists without an end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from qarat.ground.errors import UserError
from qarat.jobs.runners.base import Runner, ThisProcess
from qarat.jobs.runners.cluster import Actors, connected
from qarat.jobs.runners.pool import Pool
from qarat.jobs.runners.processes import Processes

__all__ = ["Runner", "open_runner"]


@contextmanager
def open_runner(workers: int = 1, ray: str | None = None) -> Iterator[Runner]:
    """A runner, whose workers stay until the context ends.

    Args:
        workers: How many; without Ray, one is this process itself and more are processes of this machine.
        ray: Address of a Ray cluster, or ``local`` for one on this machine; None does without.

    Raises:
        UserError: No workers asked for; Ray not installed, not reachable or too small.
    """
    if workers < 1:
        raise UserError(f"`workers` {workers}: at least one is needed")
    if ray is not None:
        with connected(ray, workers) as share, closing(Pool(Actors(), workers, share)) as pool:
            yield pool
    elif workers == 1:
        yield ThisProcess()
    else:
        with closing(Pool(Processes(), workers, share=workers, sees_files=True)) as pool:
            yield pool

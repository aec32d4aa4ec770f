"""Replicas: a model that is open here, described so that workers on this or another machine open it too.

A worker keeps what it opened last, since one pass follows another, and opening a model hashes all its weights.
"""

from __future__ import annotations

import copy
import functools
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.model.model import Model
from qarat.model.opening import open_model

Remake = Callable[[Model], Model]


def reopen_float(name: str, runtime: Runtime, revision: str | None) -> Model:
    """Open a float model; errors as `open_model`."""
    return open_model(name, runtime, revision=revision)


class Opening(NamedTuple):
    """How a worker opens a model, before anything is done to it.

    Attributes:
        name: Of a local folder or file its full path, else a reference model's name or a hub id.
        runtime: Of the whole machine.
        revision: Of the hub id.
        share: Workers of one machine, each of which takes its part of the memory and of the threads.
        opener: Name, runtime and revision to a model; it can be pickled.
    """

    name: str
    runtime: Runtime
    revision: str | None
    share: int
    opener: Callable[[str, Runtime, str | None], Model]

    def open(self) -> Model:
        """Open it.

        Raises:
            UserError: As the opener, saying on which machine.
        """
        memory = max(1, self.runtime.memory_bytes() // self.share)
        threads = max(1, (self.runtime.threads or _threads_here()) // self.share)
        runtime = msgspec.structs.replace(self.runtime, memory=memory, threads=threads)
        try:
            return self.opener(self.name, runtime, self.revision)
        except UserError as error:
            raise UserError(
                f"the worker on {platform.node()} cannot open the model: {error}; workers open {self.name} by that "
                "name, so put the same files there"
            ) from None


class Replica:
    """From what a worker makes its model; calling it does so.

    Attributes:
        model: Never pickled, other processes open their own; None there.
        fingerprint: What the model opened there has to have.
        remake: From the model that is opened there to the one that is open here; None where they are the same.
    """

    def __init__(
        self,
        model: Model,
        name: str,
        *,
        remake: Remake | None = None,
        revision: str | None = None,
        share: int = 1,
        opener: Callable[[str, Runtime, str | None], Model] = reopen_float,
    ) -> None:
        """Describe a model.

        Args:
            model: That is open here.
            name: That it was opened by.
            remake: As the attribute; it can be pickled.
            revision: Of the hub id.
            share: As of `Opening`.
            opener: As of `Opening`.
        """
        self.model: Model | None = model
        self.fingerprint, self.remake = model.fingerprint, remake
        full = str(Path(name).absolute()) if Path(name).exists() else name
        self.opening = Opening(full, model.runtime, revision, share, opener)

    def remade(self, model: Model, remake: Remake) -> Replica:
        """Of the model that is made of this one; ``remake`` can be pickled."""
        other = copy.copy(self)
        other.model, other.fingerprint = model, model.fingerprint
        other.remake = remake if self.remake is None else _Both(self.remake, remake)
        return other

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"model": None}

    def __call__(self) -> Model:
        """Open the model, unless it is open.

        Raises:
            UserError: No such model here, or another one by that name.
        """
        if self.model is not None:
            return self.model
        model = _opened(self.opening)
        if self.remake is not None:
            model.forget_blocks()  # the memory is for those of the one that is made of it
            model = self.remake(model)
        if model.fingerprint != self.fingerprint:
            raise UserError(
                f"{self.opening.name} on {platform.node()} is another model ({model.fingerprint[:12]}…) than the one "
                f"open here ({self.fingerprint[:12]}…); put the same files there"
            )
        return model


class _Both(NamedTuple):
    """One after the other."""

    first: Remake
    then: Remake

    def __call__(self, model: Model) -> Model:
        return self.then(self.first(model))


@functools.lru_cache(maxsize=2)  # a quantized model is compared with its float model
def _opened(opening: Opening) -> Model:
    return opening.open()


def _threads_here() -> int:
    """Threads that torch would take in this process alone: as the environment says (Ray does), or one a processor."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return int(threads) if threads.isdecimal() else os.cpu_count() or 1

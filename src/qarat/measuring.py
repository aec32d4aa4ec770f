"""Measuring plans: the evaluation and conversion stages put together, here or on workers elsewhere.

Wherever a plan is measured, the model is opened there and stays. What travels is small: a `MeterSpec` once for every
worker, plans one way, losses the other.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from qarat.conversion import WeightCache, build_block
from qarat.data import TokenSet
from qarat.errors import UserError
from qarat.evaluation.incremental import Failure, Meter
from qarat.models import Model, open_model
from qarat.plans import Plan
from qarat.prefixes import FloatPrefix
from qarat.records import ActivationStats, Evaluation
from qarat.workspace import Runtime

__all__ = ["Measured", "MeterSpec", "Question", "make_meter", "measure_with", "specify"]


class Question(NamedTuple):
    """What a worker is asked: the loss of a plan.

    Attributes:
        plan: For the model of the `MeterSpec`.
        label: Of the evaluation.
    """

    plan: Plan
    label: str


class Measured(NamedTuple):
    """What a worker answers.

    Attributes:
        outcome: The losses, or why there are none.
        forwards: Block × token forwards spent: an equal share of what the plans measured together cost.
    """

    outcome: Evaluation | Failure
    forwards: int


Measuring = Callable[[Sequence[Question]], list[Measured]]


@dataclass(frozen=True, eq=False)
class MeterSpec:
    """From what a worker makes its meter; calling it does so (a ``make`` for `qarat.runners.Runner.map`).

    Attributes:
        model: A folder, a reference model's name or a hub id, to be found on the worker's machine.
        revision: Of the hub id.
        fingerprint: What the model opened there has to have.
        runtime: Of one machine.
        tokens: The selection set.
        stats: Behind static scales; None where no plan has any.
        keep_bytes: Bound on the hidden states held on one machine; None is a quarter of the runtime's memory.
        share: Workers of one machine, each of which takes its part of the memory and of the threads.
        opened: The model where it is open already; never pickled, other processes open their own.
    """

    model: str
    revision: str | None
    fingerprint: str
    runtime: Runtime
    tokens: TokenSet
    stats: ActivationStats | None
    keep_bytes: int | None
    share: int
    opened: Model | None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"opened": None}

    def __call__(self) -> Measuring:
        """Open the model, unless it is open.

        Raises:
            UserError: No such model here, or another one by that name.
        """
        keep_bytes = None if self.keep_bytes is None else self.keep_bytes // self.share
        return measure_with(make_meter(self.opened or self._open(), self.tokens, self.stats, keep_bytes=keep_bytes))

    def _open(self) -> Model:
        memory = max(1, self.runtime.memory_bytes() // self.share)
        threads = max(1, (self.runtime.threads or _threads_here()) // self.share)
        runtime = msgspec.structs.replace(self.runtime, memory=memory, threads=threads)
        model = open_model(self.model, runtime, revision=self.revision)
        if model.fingerprint != self.fingerprint:
            raise UserError(
                f"{self.model} on {platform.node()} is another model ({model.fingerprint[:12]}…) than the one searched "
                f"({self.fingerprint[:12]}…); put the same files there"
            )
        return model


def _threads_here() -> int:
    """Threads that torch would take in this process alone: as the environment says (Ray does), or one a processor."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() else os.cpu_count() or 1


def specify(
    model: Model,
    name: str,
    tokens: TokenSet,
    stats: ActivationStats | None,
    *,
    revision: str | None = None,
    keep_bytes: int | None = None,
    share: int = 1,
) -> MeterSpec:
    """What workers need to measure plans of a model that is open here.

    Args:
        model: In float.
        name: That it was opened by; of a local folder its full path is sent.
        tokens: The selection set.
        stats: Behind static scales; None where no plan has any.
        revision: Of the hub id.
        keep_bytes: Bound on the hidden states held on one machine; default a quarter of the runtime's memory.
        share: Workers of one machine, `qarat.runners.Runner.share`.
    """
    model.require_float("measure plans of")
    folder = Path(name)
    place = str(folder.absolute()) if folder.is_dir() else name
    return MeterSpec(place, revision, model.fingerprint, model.runtime, tokens, stats, keep_bytes, share, model)


def measure_with(meter: Meter) -> Measuring:
    """A meter as what a worker does.

    Args:
        meter: Of `make_meter`.
    """

    def measure(questions: Sequence[Question]) -> list[Measured]:
        before = meter.forwards
        plans, labels = zip(*questions, strict=True)
        outcomes = meter.measure_many(plans, labels)
        each, rest = divmod(meter.forwards - before, len(outcomes))
        return [Measured(outcome, each + (number < rest)) for number, outcome in enumerate(outcomes)]

    return measure


def make_meter(
    model: Model,
    tokens: TokenSet,
    stats: ActivationStats | None,
    *,
    prefix: FloatPrefix | None = None,
    keep_bytes: int | None = None,
) -> Meter:
    """What measures plans of a model.

    Weights rounded once are kept as far as the runtime's bound on weights has room beside the float ones.

    Args:
        model: In float.
        tokens: The selection set.
        stats: Behind static scales; None where no plan has any.
        prefix: Of all the plans that will be measured.
        keep_bytes: Bound on hidden states held, as of `qarat.evaluation.incremental.Meter`.
    """
    kept = model.block_bytes() * (model.blocks if model.keeps_blocks else 1)
    cache = WeightCache(model.runtime.memory_bytes() - kept)
    return Meter(
        model,
        tokens,
        lambda index, schemes: build_block(model, index, schemes, stats, cache, prefix),
        keep_bytes=keep_bytes,
    )

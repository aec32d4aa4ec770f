"""An export of a folder: what the run behind it measured goes along, and what its numbers mean to engines is said."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.jobs.engine_answers import answers
from qarat.jobs.float16 import float16_notes
from qarat.jobs.folder import PROFILE, kind_of, read_manifest
from qarat.jobs.open_any import open_to_export
from qarat.jobs.run_steps import EVALUATE, KIND
from qarat.model.model import Model
from qarat.stages.export.base import check_export, export_model
from qarat.values.plans import Plan
from qarat.values.records.scores import Evaluation
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import LinearScheme

SERVED = "compressed-tensors"
HOLD_WEIGHTS = (SERVED, "gguf")
"""Formats whose folders are about as large as the quantized one."""
"""The format that engines serve."""


class ToExport(NamedTuple):
    """A quantized model that can be exported, and what is known of it.

    Attributes:
        model: Quantized.
        plan: Of the model.
        measured: By the run it is of; empty without one.
        stats: Of the run; None without one.
    """

    model: Model
    plan: Plan
    measured: tuple[Evaluation, ...]
    stats: ActivationStats | None

    def write(
        self, out: Path, format: str, *, overwrite: bool = False, progress: Progress = no_progress
    ) -> Sequence[str]:
        """Write it; arguments, errors and result as of `export_model`."""
        notes = export_model(
            self.model, self.plan, out, format, measured=self.measured, overwrite=overwrite, progress=progress
        )
        return [*notes, *float16_notes(self.model, self.stats)]


def read_to_export(folder: Path, format: str, source: str | None = None) -> ToExport:
    """Open what is to be exported, and check that it can be.

    Args:
        folder: Of a run, or of a quantized model.
        format: Name of an exporter.
        source: The float model that it was made from; some formats round its weights anew.

    Raises:
        UserError: As `open_to_export` and `check_export`.
    """
    model, plan = open_to_export(folder, source)
    check_export(model, plan, format)
    stats = PROFILE.read(folder) if PROFILE.name in _steps(folder) else None
    return ToExport(model, plan, measured_in(folder), stats)


def measured_in(folder: Path) -> tuple[Evaluation, ...]:
    """The losses that a run measured, finished or not; none in any other folder."""
    done = _steps(folder)
    return tuple(step.read(folder) for step in EVALUATE if step.name in done)


def _steps(folder: Path) -> set[str]:
    return set(read_manifest(folder).steps) if kind_of(folder) == KIND else set()


def serving_lines(folder: Path) -> tuple[str, ...]:
    """What to type, beside a finished run's folder, for vLLM to serve its model; nothing where vLLM does not run it."""
    name, ready = folder.name, folder / SERVED
    if not ready.is_dir():
        try:
            model, plan, *_ = read_to_export(folder, SERVED)
            plan.check_ties()
        except UserError:
            return ()
        low = {s for s in plan.projections.values() if s != LinearScheme()}
        if not all(answer.runs for s in low for answer in answers(model, s, ["vllm"])):
            return ()
        out = f"{name}-vllm"
        return shlex.join(["qarat", "export", name, "-o", out]), shlex.join(["vllm", "serve", out])
    return (shlex.join(["vllm", "serve", f"{name}/{SERVED}"]),)


def bytes_of(folder: Path) -> int:
    """What the weights of an export weigh; 0 where it has none, but only a plan."""
    weights = (".safetensors", ".gguf", ".onnx", ".data")
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in weights)

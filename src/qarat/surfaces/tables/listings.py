"""Lists that are no records: the reference models, and what a run would take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qarat.surfaces.progress import duration
from qarat.surfaces.tables.data import Parts, numbers, table, texts
from qarat.surfaces.tables.wording import fixed

if TYPE_CHECKING:
    from qarat.ground.runtime import Estimate
    from qarat.model.reference_models import ReferenceModel


def show_models(models: Sequence[ReferenceModel]) -> Parts:
    """The reference models, smallest first."""
    counts = numbers("parameters\noutside embedding", "tokens", "training loss\nnats")
    ordered = sorted(models, key=lambda m: (m.parameters, m.tokens))
    yield table(
        (*texts("name"), *counts, *texts("folder")),
        (
            (m.name, f"{m.parameters:,}", f"{m.tokens / 1e6:,.1f} M", fixed(m.training_loss, 3), m.folder)
            for m in ordered
        ),
    )


def show_estimate(record: Estimate) -> Parts:
    """What a run would take."""
    steps = ((name, duration(seconds)) for name, seconds in record.steps.items())
    yield table((*texts("step"), *numbers("estimated time")), steps)
    total = duration(sum(record.steps.values()))
    yield f"in all {total} at the matrix rate measured now ({record.rate / 1e9:.0f} GFLOP/s); passes reach a part of it"
    yield f"memory {record.memory_bytes / 1e6:,.0f} MB at its peak, libraries included"
    yield f"disk {record.disk_bytes / 1e6:,.1f} MB"
    yield "everything was checked; nothing was computed or written"

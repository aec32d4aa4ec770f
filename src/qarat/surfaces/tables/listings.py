"""Lists that are no records: the reference models, and what a run would take."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType

from qarat.ground.runtime import Estimate
from qarat.model.checkpoints import ReferenceModel
from qarat.surfaces.progress import duration
from qarat.surfaces.tables.layout import cells, fixed, label, number, table, words


def show_models(models: Sequence[ReferenceModel]) -> RenderableType:
    """The reference models, smallest first."""
    out = table(
        label("name"),
        number("parameters\noutside embedding"),
        number("tokens"),
        number("training loss\nnats"),
        label("folder"),
    )
    for m in sorted(models, key=lambda m: (m.parameters, m.tokens)):
        cells(out, m.name, f"{m.parameters:,}", f"{m.tokens / 1e6:.1f} M", fixed(m.training_loss, 3), m.folder)
    return out


def show_estimate(record: Estimate) -> RenderableType:
    """What a run would take."""
    out = table(label("step"), number("estimated time"))
    for name, seconds in record.steps.items():
        cells(out, name, duration(seconds))
    total = duration(sum(record.steps.values()))
    lines = (
        f"in all {total} at the matrix rate measured now ({record.rate / 1e9:.0f} GFLOP/s); passes reach a part of it",
        f"memory {record.memory_bytes / 1e6:,.0f} MB for weights and hidden states",
        f"disk {record.disk_bytes / 1e6:,.1f} MB",
        "everything was checked; nothing was computed or written",
    )
    return Group(out, *(words(line) for line in lines))

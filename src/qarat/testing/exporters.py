"""An exporter keeps its promises: it checks before it writes, leaves the plan alone, writes the same bytes again."""

from __future__ import annotations

import hashlib
from pathlib import Path

from qarat.ground.errors import UserError
from qarat.model.model import Model
from qarat.model.native import MARK
from qarat.stages.export.base import Exporter
from qarat.values.plan_files import encode_plan
from qarat.values.plans import Plan


def check_exporter(exporter: Exporter, model: Model, plan: Plan, folder: Path, refused: Plan | None = None) -> None:
    """Check an exporter on a plan that its format can hold.

    Args:
        exporter: The module, or whatever offers the same.
        model: Quantized by the plan.
        plan: That the format holds.
        folder: Empty; two exports are left in it.
        refused: A plan of the same model that the format cannot hold, if there is one.

    Raises:
        AssertionError: Nothing written, the plan's own file changed, other bytes the second time, progress that goes
            back, notes that are no lines, or the plan that cannot be held not refused.
    """
    exporter.check(model, plan)
    if refused is not None:
        try:
            exporter.check(model, refused)
        except UserError:
            pass
        else:
            raise AssertionError("a plan that the format cannot hold is refused by `check`, before any work")
    first, second = (_written(exporter, model, plan, folder / name) for name in ("first", "second"))
    assert set(first) - {MARK}, "nothing is written"
    assert first == second, f"other bytes the second time: {[n for n in first if first[n] != second.get(n)]}"


def _written(exporter: Exporter, model: Model, plan: Plan, folder: Path) -> dict[str, str]:
    """Name to hash of every file that an export consists of."""
    folder.mkdir()
    (folder / MARK).write_text(encode_plan(plan))
    told: list[int] = []
    notes = exporter.write(model, plan, folder, progress=lambda stage, done, total: told.append(done))
    assert not isinstance(notes, str), "notes are a sequence of lines"
    assert all(isinstance(note, str) for note in notes), "notes are a sequence of lines"
    assert not told or told == sorted(told), "progress goes forward"
    assert (folder / MARK).read_text() == encode_plan(plan), "the plan's own file is not the exporter's to change"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

"""What every exporter offers, and the one way in which exports reach their place on disk.

An exporter fills a folder that exists already and is empty but for the plan; making it, renaming it into place and
cleaning up after an error is done here, once, so that a kill or a full disk loses nothing whatever the format.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from qarat.ground.disk import check_folder, new_folder
from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.model.folders import MARK, require_exact
from qarat.model.model import ROTATION, Model
from qarat.stages.export import EXPORTERS
from qarat.stages.export.card import write_card
from qarat.values.plan_files import encode_plan
from qarat.values.plans import Plan
from qarat.values.records.scores import Evaluation


class Exporter(Protocol):
    """What a module of this folder offers.

    Attributes:
        EXTRA: The pip extra that brings what it needs; empty if nothing beyond qarat's own dependencies.
        NEEDS: The packages, as they are imported, that the extra brings. The module imports them inside functions only.
    """

    EXTRA: str
    NEEDS: tuple[str, ...]

    def check(self, model: Model, plan: Plan) -> None:
        """Refuse what the format cannot hold, from shapes alone, before any work.

        Args:
            model: Whose plan it is; float, or quantized already.
            plan: For every site of this model.

        Raises:
            UserError: Listing every site the format cannot hold, and the alternatives.
        """
        ...

    def write(self, model: Model, plan: Plan, folder: Path, *, progress: Progress) -> Sequence[str]:
        """Write the files of the format.

        Args:
            model: Quantized by the plan (`qarat.stages.quantize.quantize`, `qarat.model.native.read_native`); walk it.
            plan: Checked already.
            folder: Exists, and holds nothing but the plan under `MARK`.
            progress: Called after every block.

        Returns:
            What a person should know of the result, a line each; most have nothing to say.
        """
        ...


def check_export(model: Model, plan: Plan, format: str) -> None:
    """Check, before any work, that a plan can be exported.

    Args:
        model: Whose plan it is.
        plan: Of the model.
        format: Name of an exporter.

    Raises:
        UserError: Unknown format, packages missing (with the line that installs them), or a model or plan it cannot
            hold.
    """
    exporter = EXPORTERS.load(format)
    if missing := [package for package in exporter.NEEDS if importlib.util.find_spec(package) is None]:
        install = f'pip install "qarat[{exporter.EXTRA}]"'
        raise UserError(f"`format` {format} needs {', '.join(missing)}, which is not installed; {install}")
    if plan.prefix:
        raise UserError(
            f"`format` {format} cannot hold this plan: the first {len(plan.prefix)} tokens of a sequence are in float, "
            "and engines compute them like all others, under scales that were calibrated without them. The native "
            "folder holds their keys and values; to export, plan without `prefix`"
        )
    _check_standard(model, plan, format)
    exporter.check(model, plan)


def _check_standard(model: Model, plan: Plan, format: str) -> None:
    """Refuse what no format but qarat's own folder has a place for.

    Raises:
        UserError: A rotation in the blocks, or listing every site with columns in float.
    """
    if model.is_rotated:
        raise UserError(
            f"`format` {format} cannot hold this model: it rotates the input of every down_proj while it runs "
            f"(transform {ROTATION}); qarat's own folder holds it, or plan again without the transform"
        )
    inputs = {name: scheme.input for name, scheme in plan.projections.items()}
    if split := [f"{name}: a={i.spell('a')}" for name, i in inputs.items() if i and i.outliers is not None]:
        raise UserError(
            f"`format` {format} cannot hold this plan: outlier columns of an input are no part of it:\n  "
            + "\n  ".join(split)
            + "\nqarat's own folder holds them; or plan again without outliers-…"
        )


def export_model(
    model: Model,
    plan: Plan,
    out: Path,
    format: str,
    *,
    measured: Sequence[Evaluation] = (),
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Sequence[str]:
    """Write a quantized model, or its plan, in another program's format.

    Args:
        model: Quantized by the plan; computed in float32, or in the dtype of its checkpoint.
        plan: Of the model.
        out: Folder to be made.
        format: Name of an exporter.
        measured: Losses of the float model and of the plan, for the card of a folder that has one.
        overwrite: Whether an earlier export may be replaced; nothing else ever is.
        progress: Called after every block.

    Returns:
        What a person should know of the result, a line each.

    Raises:
        UserError: As `check_export` and `require_exact`; something else is in its place; it cannot be written.
    """
    require_exact(model)
    check_folder(out, MARK, overwrite=overwrite)
    check_export(model, plan, format)
    with new_folder(out, MARK) as partial:
        (partial / MARK).write_text(encode_plan(plan))  # first, as the mark of what is ours
        notes = EXPORTERS.load(format).write(model, plan, partial, progress=progress)
        if (partial / "config.json").is_file():
            write_card(model, plan, partial, format, measured)
        return notes

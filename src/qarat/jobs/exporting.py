"""Opening what is to be exported: a quantized folder, and the float model it was made from where that is at hand."""

from __future__ import annotations

from pathlib import Path

from qarat.ground.errors import UserError
from qarat.jobs.open_any import find_native
from qarat.jobs.whole_run import EXPORTING
from qarat.model.model import Model, open_model
from qarat.model.native import read_native
from qarat.values.fingerprints import brief
from qarat.values.plans import Plan


def open_to_export(folder: Path, source: str | None = None) -> tuple[Model, Plan]:
    """A quantized model and its plan.

    Args:
        folder: Of a run, or of a quantized model.
        source: The float model that it was made from, as `open_model` takes it: some formats round its weights anew.

    Raises:
        UserError: No quantized model; another source; or as `read_native` and `open_model`.
    """
    native = find_native(folder)
    if native is None:
        raise UserError(f"{folder} is no quantized model of qarat; make one with `qarat run` or `qarat quantize`")
    quantized, plan = read_native(native, EXPORTING)
    if source is None:
        return quantized, plan
    origin = open_model(source, EXPORTING)
    if origin.fingerprint != plan.model:
        theirs, ours = brief(plan.model), brief(origin.fingerprint)
        raise UserError(f"{folder} was made from the model {theirs}, `source` {source} is {ours}")
    return origin.with_blocks(quantized.block), plan

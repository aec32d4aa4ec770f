"""Any model that can be measured, opened: float, quantized by qarat, a run's, or a folder that engines load.

What lies in a folder in the compressed-tensors format is computed as its codes, scales and config say, by the reader
that `qarat verify` uses, not as the plan beside it says; so what is measured is what was exported. The plan is believed
in one thing, which float model the folder was made from: it puts the folder's numbers beside that model's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, Runtime, no_progress
from qarat.jobs.folder import Run
from qarat.jobs.protecting import profile
from qarat.jobs.replicas import Remake, Replica, reopen_float
from qarat.model.folders import MARK
from qarat.model.model import Model
from qarat.model.native import is_native, read_native
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.observe import Collect
from qarat.stages.quantize import quantize
from qarat.stages.read_back.folders import Findings, open_folder
from qarat.stages.read_back.resolution import resolve
from qarat.stages.read_back.simulation import open_stored
from qarat.values.engines import engine_named
from qarat.values.fingerprints import brief
from qarat.values.parsing import parse_scheme
from qarat.values.plans import Plan, assign
from qarat.values.records.files import content_hash, decode_record
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import is_static

EXPORTING = Runtime("cpu", memory=1)
"""How a quantized model is opened to be exported: it is gone through once, so no block is kept."""
RUN_MODEL = "model"  # where a run's folder keeps its quantized model
_REFERENCE = "transformers"  # the engine whose reading of a config is computed


class Opened(NamedTuple):
    """A model to be measured.

    Attributes:
        model: It goes by the fingerprint of the float model it was made from, where that is known.
        label: ``float``, ``plan`` or ``export``; or a scheme.
        plan: Content hash of its plan; empty for float, and for a folder that somebody else quantized.
        name: That it, or the float model it was made from, was opened by.
        revision: Of a hub id.
        remake: From that float model to this one; None where it was opened as it is.
    """

    model: Model
    label: str
    plan: str
    name: str
    revision: str | None = None
    remake: Remake | None = None

    def replica(self, share: int) -> Replica:
        """What workers open it by, ``share`` of them on one machine."""
        opener = reopen_float if self.remake is not None else Reopening(self.plan)
        return Replica(self.model, self.name, remake=self.remake, revision=self.revision, share=share, opener=opener)


class Reopening(NamedTuple):
    """Opens a model elsewhere by whatever it was given as, if it is the same there.

    Attributes:
        plan: Content hash of the plan that it has to have.
    """

    plan: str

    def __call__(self, name: str, runtime: Runtime, revision: str | None) -> Model:
        """Open it; errors as `open_for_evaluation`, or another plan."""
        opened = open_for_evaluation(name, runtime, revision=revision)
        if opened.plan != self.plan:
            theirs, ours = (digest[:12] or "none" for digest in (opened.plan, self.plan))
            raise UserError(f"{name} was quantized by another plan ({theirs}) than the one open here ({ours})")
        return opened.model


class Quantizing(NamedTuple):
    """From a float model to what a plan makes of it, wherever that is done.

    Attributes:
        plan: Of the model.
        stats: Behind static scales.
        calibration: Tokens behind roundings that look at inputs.
    """

    plan: Plan
    stats: ActivationStats | None
    calibration: TokenSet | None

    def __call__(self, model: Model) -> Model:
        """Quantize it; errors as `qarat.stages.quantize.quantize`."""
        return quantize(model, self.plan, self.stats, self.calibration)


def open_for_evaluation(name: str, runtime: Runtime | None = None, *, revision: str | None = None) -> Opened:
    """Open a model by whatever it is given as.

    Args:
        name: A float model as `open_model` takes it; a folder of `qarat quantize` or `qarat run`; or a folder in the
            compressed-tensors format, from `qarat export` or anybody else.
        runtime: Device, dtype and limits.
        revision: Of a hub id.

    Raises:
        UserError: As `open_model`; a run without its quantized model; an export in a format that cannot be read back;
            a folder with errors (all of them).
    """
    path = Path(name)
    native = find_native(path)
    if native is not None:
        model, plan = read_native(native, runtime)
        return Opened(model, "plan", content_hash(plan), name)
    if _is_quantized(path):
        return _open_export(path, runtime or Runtime())
    if (path / MARK).is_file():
        raise UserError(f"{path} is an export that is not read back here; compressed-tensors is, as is the run itself")
    return Opened(open_model(name, runtime, revision=revision), "float", "", name, revision)


def open_low(
    float_: Opened,
    scheme: str,
    calibration: TokenSet,
    *,
    collect: Collect | None = None,
    progress: Progress = no_progress,
) -> Opened:
    """A float model with every projection under one scheme, which is also its label; arguments as `plan_low`."""
    remake = plan_low(float_.model, scheme, calibration, collect=collect, progress=progress)
    digest = content_hash(remake.plan)
    return Opened(remake(float_.model), scheme, digest, float_.name, float_.revision, remake)


def plan_low(
    model: Model,
    scheme: str,
    calibration: TokenSet,
    *,
    collect: Collect | None = None,
    progress: Progress = no_progress,
) -> Quantizing:
    """What puts every projection under one scheme.

    Args:
        model: In float.
        scheme: Spelling.
        calibration: Tokens behind static scales, and behind roundings that look at inputs.
        collect: As of `qarat.stages.observe.observe`.
        progress: Called after every block.

    Raises:
        UserError: A scheme that is none of projections, or does not fit the model.
    """
    needed = is_static(parse_scheme(scheme))
    more: dict[str, Any] = {"attention": False, "collect": collect, "progress": progress}
    stats = profile(model, calibration, **more) if needed else None
    digest = content_hash(stats) if stats else ""
    plan = assign(model.fingerprint, model.source_bits, model.sites(), scheme, stats=digest)
    return Quantizing(plan, stats, calibration)


def find_native(given: Path) -> Path | None:
    """The quantized model of a run or a folder; None if it is neither.

    Raises:
        UserError: A run that has not come that far.
    """
    for folder in (given / RUN_MODEL, given):
        if is_native(folder):
            return folder
    if (given / Run.MANIFEST).is_file():
        raise UserError(f"{given} is a run that has not come to its quantized model; run its command again first")
    return None


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
    if plan.tuned:
        raise UserError(f"{folder} has tuned weights that `source` {source} does not hold; export without `source`")
    origin = open_model(source, EXPORTING)
    if origin.fingerprint != plan.model:
        theirs, ours = brief(plan.model), brief(origin.fingerprint)
        raise UserError(f"{folder} was made from the model {theirs}, `source` {source} is {ours}")
    return origin.with_blocks(quantized.unkept().block), plan


def _is_quantized(folder: Path) -> bool:
    """Whether a folder's config says that another format describes its weights."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # whoever opens it says what is wrong
    return isinstance(config, dict) and bool(config.get("quantization_config"))


def _open_export(path: Path, runtime: Runtime) -> Opened:
    plan = decode_record(path / MARK, Plan) if (path / MARK).is_file() else None
    folder = open_folder(path, source=plan.model if plan else "")
    findings = Findings()
    _, matches = resolve(folder, [engine_named(_REFERENCE)], "", findings, lenient=False)
    if findings.block(_REFERENCE):
        errors = [f"{', '.join(f.modules) or path}: {f.what}" for f in findings.listed() if f.severity == "error"]
        listed = "\n  ".join(errors)
        raise UserError(f"{path} cannot be computed as it lies there:\n  {listed}\n`qarat verify {path}` says more")
    model = open_stored(folder, matches[_REFERENCE], runtime)
    return Opened(model, "export", content_hash(plan) if plan else "", str(path))

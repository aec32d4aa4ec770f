"""Live verification of an export that is one file: the engine that takes it runs it, beside the plan it was made by.

In such a file every tensor says what it is, so nothing is resolved and no tensors are judged: what ran is set beside
the plan that lies in the folder, and losses beside those of the run that it was exported from, where that is given.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress
from qarat.jobs.live import WINDOWS, Live, LiveAnswer, ask_live, compare_losses, grave_here, judge_modules
from qarat.model.folders import MARK
from qarat.model.tokens import TokenSet
from qarat.stages.export.gguf.types import nearest_type, tensor_name
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.read_back.folders import Findings
from qarat.values.engines import FILE_ENGINES, FileEngine
from qarat.values.plans import Plan
from qarat.values.records.files import decode_record
from qarat.values.records.origin import Provenance
from qarat.values.records.verification import LiveLoss, LiveModule, LiveRun, Verification
from qarat.values.schemes import LinearScheme

if TYPE_CHECKING:
    from qarat.jobs.verify import AgainstRun


def verify_file(folder: Path, live: Live, run: AgainstRun | None, progress: Progress) -> Verification:
    """Run an export in the engine that takes it, and compare.

    Args:
        folder: Of the export, with its plan.
        live: The engine, one of `FILE_ENGINES`.
        run: What it was exported from, for its losses on `WINDOWS` windows; None compares none.
        progress: Called as the work goes on.

    Raises:
        UserError: Not such an export, or of another run.
    """
    engine = FILE_ENGINES[live.engine]
    if not (folder / f"model.{engine.format}").is_file():
        raise UserError(
            f"{folder} holds no model.{engine.format}, which {engine.name} takes; export with `format` {engine.format}"
        )
    plan = decode_record(folder / MARK, Plan)
    if run is not None and run.plan != plan:
        raise UserError(f"{folder} was not exported from {run.model.path}: their plans differ; give the run it is of")
    findings = Findings()
    progress(live.engine, 0, 1)
    answer = ask_live(live, folder, _request(engine, plan, run), findings)
    progress(live.engine, 1, 1)
    ran: tuple[LiveRun, ...] = ()
    if answer is not None:
        losses = () if run is None else (_loss(engine, run, answer, findings, progress),)
        ran = (LiveRun(engine.name, answer.version, _beside_plan(engine, plan, answer, findings), losses),)
    tokens = ("", "") if run is None else (run.report.fingerprint, run.report.convention)
    return Verification(
        provenance=Provenance(plan.model, *tokens, versions={}),
        folder=folder.resolve().name,
        format=engine.format,
        engines={engine.name: engine.versions},
        generation="",
        against="" if run is None else "run",
        modules=(),
        findings=findings.listed(),
        live=ran,
    )


def _request(engine: FileEngine, plan: Plan, run: AgainstRun | None) -> dict[str, Any]:
    """What `bundled/run_file_engine.py` is asked."""
    windows = [list(range(8))] if run is None else _judged(run).windows.tolist()
    names = list(plan.projections)
    tensors = [tensor_name(f"{name}.weight") for name in names] if engine.format == "gguf" else []
    return {"windows": windows, "projections": names, "tensors": tensors}


def _judged(run: AgainstRun) -> TokenSet:
    """What losses are measured on, by the engine and here."""
    return run.report.subset(min(WINDOWS, len(run.report)))


def _loss(engine: FileEngine, run: AgainstRun, answer: LiveAnswer, findings: Findings, progress: Progress) -> LiveLoss:
    """The engine's mean loss beside the run's."""
    tokens = _judged(run)
    ours = measure_perplexity(run.model, tokens, label="run", progress=progress)
    return compare_losses(engine.name, ours, tokens, answer.losses, findings)


def _beside_plan(engine: FileEngine, plan: Plan, answer: LiveAnswer, findings: Findings) -> tuple[LiveModule, ...]:
    """What ran beside what was planned."""
    sites = {site.name: site for site in plan.sites}
    modules = tuple(
        LiveModule(
            module.name,
            module.scheme,
            module.kernel,
            str(plan.projections[module.name]),
            _expected(engine, plan.projections[module.name], sites[module.name].shape[1]),
        )
        for module in answer.modules
    )
    judge_modules(engine.name, answer.version, modules, list(plan.projections), findings)
    schemes = plan.projections.values()
    if engine.on_cpu and any(s.weight and s.input and s.weight.format == "int8" for s in schemes):
        findings.add(grave_here(), engine.on_cpu, "compare losses", engines=(engine.name,))
    for note in engine.notes:
        findings.add("note", note, "docs/engines.md has more of it", engines=(engine.name,))
    return modules


def _expected(engine: FileEngine, scheme: LinearScheme, cols: int) -> str:
    """What the engine's script calls a scheme.

    Args:
        engine: Which.
        scheme: Of the plan.
        cols: Input channels of the projection.
    """
    if scheme.weight is None:
        return "float"
    if engine.format == "gguf":
        return nearest_type(scheme.weight, cols, superblocks=False)
    return "int8" if scheme.input is not None else "int8 weights"

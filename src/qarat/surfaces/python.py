"""The verbs that people ask for whole, as functions: `qarat run`, `advise`, `export`, `verify`, `report` from Python.

Nothing is printed on stdout, and what the command line writes beside its result is returned; progress is drawn on
stderr as there, unless a callback is given (`qarat.no_progress` for none). The steps in between are functions
of their own (`qarat.observe`, `qarat.price`, `qarat.find_plan`, `qarat.quantize`, …). Arguments come in one order
everywhere: the model, its tokens or its plan, what was measured, where to; options by keyword.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, Runtime
from qarat.jobs.advising import Advisor
from qarat.jobs.checks import check_plan_request
from qarat.jobs.exporting import read_to_export
from qarat.jobs.folder import Run
from qarat.jobs.live import Live
from qarat.jobs.open_any import find_native, open_for_evaluation
from qarat.jobs.replicas import Replica
from qarat.jobs.run_steps import KIND
from qarat.jobs.runners import open_runner
from qarat.jobs.spreading import Spread
from qarat.jobs.verify import AgainstFloat, AgainstRun
from qarat.jobs.verify import verify as verify_folder
from qarat.jobs.whole_run import Pipeline
from qarat.model.in_memory import wrap_model
from qarat.model.model import Model
from qarat.model.native import read_native
from qarat.model.token_sets import load_report_set, load_token_sets
from qarat.model.tokens import TokenSet
from qarat.stages.export.base import export_model
from qarat.surfaces.page import write_report
from qarat.surfaces.progress import StageProgress
from qarat.values.plans import Plan
from qarat.values.records.advice import Advice
from qarat.values.records.verification import Verification
from qarat.values.requests.advise import AdviseRequest
from qarat.values.requests.protect import ProtectRequest

Tokens = tuple[TokenSet, TokenSet, TokenSet]
"""Calibration, selection and report (`qarat.load_token_sets`)."""


def open_model(
    source: str | Path | PreTrainedModel,
    runtime: Runtime | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
) -> Model:
    """Open a model, float or quantized, without loading its blocks.

    Args:
        source: A Hugging Face folder; a reference model's name; a hub id; a folder of `qarat run`, of `qarat quantize`
            or in the compressed-tensors format, which is computed as it lies there; or a transformers model in memory,
            which is copied into a temporary folder.
        runtime: Device, dtype and limits; default a GPU if there is one, float32.
        tokenizer: Of a model in memory; the others bring theirs.
        revision: Of a hub id.

    Raises:
        UserError: No such model, unsupported architecture, damaged or contradictory files; a model in memory without a
            tokenizer, or another one with it.
    """
    if not isinstance(source, PreTrainedModel):
        if tokenizer is not None:
            raise UserError(f"{source} has a tokenizer of its own; give one only with a model in memory")
        return open_for_evaluation(str(source), runtime, revision=revision).model
    if tokenizer is None:
        raise UserError("a model in memory has no tokenizer; give it as tokenizer=…")
    return wrap_model(source, tokenizer, runtime)


def advise(
    model: Model,
    tokens: Tokens,
    request: AdviseRequest | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Advice:
    """What a dozen schemes would cost on a model, each with the best recipe for a budget, before one is decided on.

    Args:
        model: In float.
        tokens: Calibration, selection and report, of which the last stays untouched.
        request: Which schemes, for which budget and engines, and how many recipes are measured; default ppl+1%, any
            engine, three measured.
        seed: Of draws and labels.
        progress: Told of every stage; None draws it on stderr.

    Raises:
        UserError: As `Advisor`.
    """
    with _shown(progress) as told:
        advisor = Advisor(model, tokens, request or AdviseRequest(), seed=seed, progress=told)
        return advisor.advise(advisor.profile())


def run(
    model: Model,
    tokens: Tokens,
    request: ProtectRequest,
    out: Path,
    *,
    prompt: str | None = None,
    exports: Sequence[str] = (),
    seed: int = 0,
    overwrite: bool = False,
    workers: int = 1,
    ray: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Profile, price, plan, quantize, evaluate and continue a prompt; a folder that was begun is gone on with.

    Args:
        model: In float.
        tokens: Calibration, selection and report.
        request: What the plan should be.
        out: Folder of the run: every record (`qarat.decode_record`), the plan, and the quantized model.
        prompt: To be continued; None takes the beginning of the report text.
        exports: Formats to write as well, each into a folder of its name.
        seed: Of draws and labels.
        overwrite: Whether an earlier run may be replaced.
        workers: Processes that go through windows side by side; a script asks for them below
            ``if __name__ == "__main__":``.
        ray: Address of a Ray cluster whose workers do, or ``local``.
        progress: Told of every stage; None draws it on stderr.

    Returns:
        The folder, which `qarat.open_model`, `export`, `verify` and `report` take.

    Raises:
        UserError: As `Pipeline`; something else is in the folder's place.
    """
    check_plan_request(request)
    folder = Run(out, KIND, overwrite=overwrite)
    with _shown(progress) as told, open_runner(workers, ray) as runner:
        job = Pipeline(
            model,
            tokens,
            request,
            seed=seed,
            prompt=prompt,
            exports=exports,
            spread=Spread.by(runner, Replica(model, str(model.path), share=runner.share)),
            progress=told,
            show=_show_nothing,
            note=_show_nothing,
        )
        with folder.work():
            job.execute(folder)
    return out


def export(
    model: Model | str | Path,
    plan: Plan | None,
    out: Path,
    format: str,
    *,
    source: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Sequence[str]:
    """Write a quantized model, or its plan, in the format of another program.

    Args:
        model: Quantized by the plan, in float32 or the dtype of its checkpoint; or the folder of a run or of a
            quantized model.
        plan: Of the model; None with a folder, which holds its own.
        out: Folder to be made.
        format: Name of an exporter: ``compressed-tensors``, ``gguf``, …
        source: The float model that a folder was made from; some formats round its weights anew.
        overwrite: Whether an earlier export may be replaced; nothing else ever is.
        progress: Told of every block; None draws it on stderr.

    Returns:
        What a person should know of the result, a line each.

    Raises:
        UserError: As `export_model`; a model without its plan, or a folder with one.
    """
    if isinstance(model, Model):
        if plan is None or source is not None:
            raise UserError("a model in memory is exported with its plan, and without a source")
        with _shown(progress) as told:
            return export_model(model, plan, out, format, overwrite=overwrite, progress=told)
    if plan is not None:
        raise UserError(f"{model} holds its own plan; give None in its place")
    with _shown(progress) as told:
        return read_to_export(Path(model), format, source).write(out, format, overwrite=overwrite, progress=told)


def verify(
    folder: str | Path,
    against: Model | str | Path | None = None,
    tokens: Tokens | None = None,
    *,
    engines: Sequence[str] = (),
    generation: str = "",
    live: str = "",
    engine_python: Path | None = None,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Check a quantized folder, alone, against the run it was exported from, or against its float model.

    Args:
        folder: In the compressed-tensors format, ours or anybody's.
        against: A run or quantized model of qarat, or a float model; None reads what lies there and computes nothing.
        tokens: To compare on; None cuts them from the bundled text.
        engines: Names of engines; none stands for all, of which older versions only warn.
        generation: GPU generation (or ``cpu``) that it must run on; empty for none in particular.
        live: An installed engine that is to run it, ``vllm`` or ``transformers``; empty for none. Or ``onnxruntime``,
            ``openvino`` or ``llama.cpp``, with ``folder`` an export in the format that it takes.
        engine_python: The interpreter of the environment that holds that engine; None for this one.
        runtime: For what ``against`` names; default a GPU if there is one, float32.
        progress: Called as the work goes on; None draws it on stderr.

    Raises:
        UserError: As `qarat.jobs.verify.verify`.
    """
    path = Path(folder)
    engine = None
    if live:
        python = engine_python or Path(sys.executable)
        engine = Live(live, lambda m: tokens[2] if tokens else load_report_set(m), runtime or Runtime(), python)
    if against is None:
        with _shown(progress) as told:
            return verify_folder(path, engines, generation, live=engine, progress=told)
    native = None if isinstance(against, Model) else find_native(Path(against))
    if native is not None:
        quantized, plan = read_native(native, runtime)
        report = tokens[2] if tokens else load_report_set(quantized)
        run = AgainstRun(quantized, plan, report)
        with _shown(progress) as told:
            return verify_folder(path, engines, generation, against=run, live=engine, progress=told)
    model = against if isinstance(against, Model) else open_model(against, runtime)
    calibration, _, report = tokens or load_token_sets(model)
    source = AgainstFloat(model, calibration, report)
    with _shown(progress) as told:
        return verify_folder(path, engines, generation, against=source, live=engine, progress=told)


def report(sources: str | Path | Sequence[str | Path], out: Path, *, progress: Progress | None = None) -> Path:
    """Write a page that people want to look at, and each of its figures as a file.

    Args:
        sources: The folder of a run, finished or not; files of records; or several of either.
        out: The folder to write into; made if need be. What else is in it stays.
        progress: Called after every figure; None draws it on stderr.

    Returns:
        The page.

    Raises:
        UserError: As `write_report`.
    """
    paths = [sources] if isinstance(sources, str | Path) else sources
    with _shown(progress) as told:
        return write_report([Path(path) for path in paths], out, progress=told)


def _shown(progress: Progress | None) -> AbstractContextManager[Progress]:
    """The callback that was given, or bars on stderr that go away with the work."""
    return StageProgress() if progress is None else nullcontext(progress)


def _show_nothing(*records: object, **how: object) -> None:
    """The command line shows each record as it is made; here they lie in the folder."""

"""Commands: one function per verb, paths in, paths out; each puts stages together and holds no logic of its own.

A command takes the options of its verb and a screen, and returns the last lines to be said: what was written, and what
to try next.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qarat import conversion, options, pipeline
from qarat.budgets import parse_size
from qarat.checkpoints import describe_reference_models, reference_models
from qarat.damage import fisher
from qarat.data import TokenSet, load_token_sets
from qarat.errors import ArgumentError, NotPassedError, UserError
from qarat.estimates import ROUNDING, SWEEP_FORWARDS, estimate, price_forwards, quantized_bytes, stats_bytes
from qarat.evaluation.perplexity import measure_perplexity
from qarat.evaluation.zero_shot import measure_tasks
from qarat.exporters.base import MARK, check_export, export_model
from qarat.exporters.native import check_place, is_native, read_native, write_native
from qarat.law_commands import law_data, law_fit, law_forms, law_predict
from qarat.models import Model, open_model
from qarat.observation import observe
from qarat.planning import Request, describe_matches, find_plan, naive_plan, rank_units
from qarat.plans import Plan
from qarat.recordfiles import Record, content_hash, decode_record, encode_record
from qarat.records import ActivationStats, Evaluation, Menu, ZeroShot
from qarat.schemes import LinearScheme, Scheme, SchemeError, parse_scheme
from qarat.screens import Lines, Screen
from qarat.verifications import Verification
from qarat.verifying import verify_against_float, verify_against_run, verify_alone
from qarat.workspace import Run, Runtime, check_file, check_folder, read_command, write_whole

__all__ = [
    "Screen",
    "damage",
    "evaluate",
    "export",
    "law_data",
    "law_fit",
    "law_forms",
    "law_predict",
    "models",
    "plan",
    "profile",
    "quantize",
    "run",
    "show",
    "verify",
]

INT6 = "w=int6/channel a=int6/tensor/static"  # harder than the default: what spikes cost is plain to see


def profile(asked: options.Profile, screen: Screen) -> Lines:
    """Measure every stream of a model in one pass."""
    low = _scheme("--low", asked.low)
    check_file(asked.out)
    model = _open(asked)
    calibration, _, _ = _tokens(asked, model, screen)
    if asked.general.dry_run:
        return _estimate(screen, model, {"profile": calibration.windows.numel()}, disk=stats_bytes(model))
    stats = observe(model, calibration, attention=asked.attention, progress=screen.progress)
    write_whole(asked.out, encode_record(stats))
    screen.show(stats, low=low.input if isinstance(low, LinearScheme) else None)
    return _ending(asked.out, _command("damage", asked, "--stats", asked.out))


def damage(asked: options.Damage, screen: Screen) -> Lines:
    """Price every scheme at every site."""
    schemes = [_scheme("--schemes", text) for text in asked.schemes]
    check_file(asked.out)
    model = _open(asked)
    stats = _stats(asked.stats, model, any(_is_static(s) for s in schemes))
    _, selection, _ = _tokens(asked, model, screen)
    if asked.general.dry_run:
        tokens = selection.windows.numel()
        work = {"damage": price_forwards(len(schemes)) * tokens}
        return _estimate(screen, model, work, states=tokens * (model.blocks + 1))
    seed = asked.general.seed
    menu = fisher.price(model, selection, schemes, stats, seed=seed, progress=screen.progress)
    write_whole(asked.out, encode_record(menu))
    screen.show(menu)
    return _ending(asked.out, _command("plan", asked, "--stats", asked.stats, "--menu", asked.out))


def plan(asked: options.Plan, screen: Screen) -> Lines:
    """Decide which sites to protect, by measurement."""
    request = _request(asked.planning)
    check_file(asked.out)
    model = _open(asked)
    stats, menu = decode_record(asked.stats, ActivationStats), decode_record(asked.menu, Menu)
    rank_units(request, naive_plan(model, request, stats), stats, menu)
    _, selection, _ = _tokens(asked, model, screen)
    _note_matches(request, model, screen)
    if asked.general.dry_run:
        tokens = selection.windows.numel()
        return _estimate(screen, model, {"plan": SWEEP_FORWARDS * tokens}, states=tokens * (model.blocks + 1))
    chosen, sweep = find_plan(model, request, stats, menu, selection, progress=screen.progress)
    measured = asked.out.with_suffix(".sweep.json")
    write_whole(measured, encode_record(sweep))
    write_whole(asked.out, encode_record(chosen))
    screen.show(chosen, sweep=sweep)
    next_command = _command("quantize", asked, "--plan", asked.out, "--stats", asked.stats)
    return _ending(asked.out, next_command, also=f" and its measurements: {measured}")


def quantize(asked: options.Quantize, screen: Screen) -> Lines:
    """Quantize a model by a plan and write it as a native folder."""
    check_place(asked.out, overwrite=asked.overwrite)
    chosen = decode_record(asked.plan, Plan)
    model = _open(asked)
    stats = _stats(asked.stats, model, any(_is_static(a.scheme) for a in chosen.assignments))
    quantized = conversion.quantize(model.in_float32(), chosen, stats)
    if asked.general.dry_run:
        return _estimate(screen, model, {"quantize": ROUNDING}, disk=quantized_bytes(model, chosen))
    write_native(quantized, chosen, asked.out, progress=screen.progress)
    screen.show(chosen)
    return _ending(asked.out, f"qarat evaluate {_quoted(asked.out)}")


def evaluate(asked: options.Evaluate, screen: Screen) -> Lines:
    """Measure perplexity on the report tokens."""
    if asked.out is not None:
        check_file(asked.out)
    model, label, plan_hash = _open_either(asked)
    if asked.tasks:
        return _evaluate_tasks(asked, screen, model, label, plan_hash)
    _, _, report = _tokens(asked, model, screen)
    if asked.general.dry_run:
        return _estimate(screen, model, {f"evaluate {label}": report.windows.numel()}, states=report.windows.numel())
    evaluation = measure_perplexity(model, report, label=label, plan=plan_hash, progress=screen.progress)
    return _evaluated(asked, screen, evaluation)


def _evaluate_tasks(asked: options.Evaluate, screen: Screen, model: Model, label: str, plan_hash: str) -> Lines:
    if asked.limit is not None and asked.limit < 1:
        raise ArgumentError(f"--limit {asked.limit}: give at least 1")
    if asked.general.dry_run:
        raise ArgumentError("--dry-run cannot say what --tasks would take: that depends on the tasks; try --limit 10")
    return _evaluated(
        asked,
        screen,
        measure_tasks(model, asked.tasks, label=label, plan=plan_hash, limit=asked.limit, progress=screen.progress),
    )


def _evaluated(asked: options.Evaluate, screen: Screen, evaluation: Evaluation | ZeroShot) -> Lines:
    screen.show(evaluation)
    if asked.out is None:
        return ()
    write_whole(asked.out, encode_record(evaluation))
    return _ending(asked.out, f"qarat show {_quoted(asked.out)} ANOTHER.json", why="to compare with another evaluation")


def export(asked: options.Export, screen: Screen) -> Lines:
    """Write a quantized model, or its plan, in the format of another program."""
    check_folder(asked.out, MARK, overwrite=asked.overwrite)
    folder = _native_folder(asked.run)
    if folder is None:
        raise UserError(f"{asked.run} is no quantized model of qarat; make one with `qarat run` or `qarat quantize`")
    model, chosen = read_native(folder, pipeline.EXPORTING)
    if asked.source is not None:
        source = open_model(asked.source, pipeline.EXPORTING)
        if source.fingerprint != chosen.model:
            theirs, ours = chosen.model[:12], source.fingerprint[:12]
            raise UserError(f"{asked.run} was made from the model {theirs}…, --source {asked.source} is {ours}…")
        model = source.with_blocks(model.block)
    check_export(model, chosen, asked.format)
    if asked.dry_run:
        return _estimate(screen, model, {"export": ROUNDING}, disk=quantized_bytes(model, chosen))
    notes = export_model(model, chosen, asked.out, asked.format, overwrite=asked.overwrite, progress=screen.progress)
    screen.show(chosen)
    for note in notes:
        screen.note(note)
    return (f"written: {_quoted(asked.out)}",)


def verify(asked: options.Verify, screen: Screen) -> Lines:
    """Check a quantized folder, alone or against its run or float model; fails where it has errors."""
    if asked.general.dry_run:
        raise ArgumentError("--dry-run: verify writes nothing but -o; without --against it does little but read")
    if asked.out is not None:
        check_file(asked.out)
    verification = _verify(asked, screen)
    screen.show(verification)
    if asked.out is not None:
        write_whole(asked.out, encode_record(verification))
    if not verification.passed:
        raise NotPassedError(f"{asked.model} does not pass; its errors are listed first among the findings")
    return () if asked.out is None else (f"written: {_quoted(asked.out)}",)


def _verify(asked: options.Verify, screen: Screen) -> Verification:
    folder, engines, gpu = Path(asked.model), asked.engine, asked.gpu or ""
    if asked.against is None:
        return verify_alone(folder, engines, gpu)
    native = _native_folder(Path(asked.against))
    if native is not None:
        run, chosen = read_native(native, _machine(asked.machine))
        _, _, report = _tokens(asked, run, screen)
        return verify_against_run(folder, run, chosen, report, engines, gpu, progress=screen.progress)
    model = _open(dataclasses.replace(asked, model=asked.against))
    calibration, _, report = _tokens(asked, model, screen)
    return verify_against_float(folder, model, calibration, report, engines, gpu, progress=screen.progress)


def show(asked: options.Show, screen: Screen) -> Lines:
    """Print records, or a run's folder."""
    if not asked.paths:
        raise ArgumentError("give `qarat show` files, or the folder of a run")
    low = _scheme("--low", asked.low)
    context: dict[str, Any] = {"low": low.input if isinstance(low, LinearScheme) else None}
    records: list[Record] = []
    for path in asked.paths:
        folder = path if path.exists() else path.with_name(path.name + ".partial")
        if folder.is_dir() and not is_native(folder):
            _show_run(folder, screen, asked.low)
        else:
            records.append(decode_record(path / pipeline.PLAN if path.is_dir() else path))
    if len(records) > 1 and any(all(isinstance(r, kind) for r in records) for kind in (Evaluation, ZeroShot)):
        screen.show(*records)
        return ()
    for record in records:
        screen.show(record, **(context if isinstance(record, ActivationStats) else {}))
    return ()


def models(asked: options.Models, screen: Screen) -> Lines:
    """List the reference models."""
    screen.show(*describe_reference_models())
    return ()


def run(asked: options.Run, screen: Screen) -> Lines:
    """Do everything, in a folder that survives a kill."""
    request = _request(asked.planning)
    out = asked.out or Path(f"{Path(asked.model).resolve().name}-qarat")
    folder = Run(out, overwrite=asked.overwrite)
    model = _open(asked)
    tokens = _tokens(asked, model, screen)
    job = pipeline.Pipeline(
        model,
        tokens,
        request,
        seed=asked.general.seed,
        prompt=asked.prompt,
        exports=asked.export,
        progress=screen.progress,
        show=screen.show,
        note=screen.note,
    )
    _note_matches(request, model, screen)
    if asked.general.dry_run:
        _check_weights(model)
        screen.show(job.estimate())
        return ()
    try:
        folder.begin(command=screen.command)
        job.execute(folder)
    except BaseException:
        folder.leave()
        raise
    harder = ["--low", INT6] if request.low != INT6 else ["--low", options.LOW]
    name = out.name + ("-int6" if request.low != INT6 else "-int8")
    return (
        f"written: {_quoted(out)} (the quantized model in {_quoted(out / pipeline.MODEL)}, and every record behind it)",
        *(f"exported: {_quoted(out / format)}" for format in asked.export),
        "try next:",
        f"  qarat show {_quoted(out)}",
        f"  qarat evaluate {_quoted(out)}",
        f"  {_command('run', asked, *harder, '-o', out.with_name(name))}",
        *(["  qarat run YOUR_MODEL --calibration YOUR_TEXT.jsonl"] if _is_reference(model) else []),
    )


def _request(asked: options.Planning) -> Request:
    """The planning options as a request, checked as far as that needs no model."""
    request = Request(
        asked.low, asked.protect, asked.budget, asked.by, asked.sites, rules=asked.set, runtime=asked.runtime
    )
    request.check()
    return request


def _scheme(option: str, text: str) -> Scheme:
    try:
        return parse_scheme(text)
    except SchemeError as error:
        raise SchemeError(f"{option}: {error}") from None


def _is_static(scheme: Scheme) -> bool:
    parts = (scheme.input,) if isinstance(scheme, LinearScheme) else (scheme.left, scheme.right)
    return any(part is not None and part.static for part in parts)


def _machine(asked: options.Machine) -> Runtime:
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device; use --device cpu")
    if asked.threads is not None and asked.threads < 1:
        raise ArgumentError(f"--threads {asked.threads}: give at least 1")
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = auto if asked.device == "auto" else asked.device
    memory = parse_size(asked.memory) if asked.memory else 0
    return Runtime(device, asked.dtype, asked.threads or 0, memory)


def _open(asked: options.Computing) -> Model:
    given = Path(asked.model)
    if is_native(given) or (given / Run.MANIFEST).is_file():
        raise UserError(f"{given} is quantized already, by qarat; give the float model it was made from")
    return open_model(asked.model, _machine(asked.machine), revision=asked.general.revision)


def _open_either(asked: options.Evaluate) -> tuple[Model, str, str]:
    """A float model, or the quantized one of a native folder or a run; its label and its plan's hash."""
    folder = _native_folder(Path(asked.model))
    if folder is None:
        return _open(asked), "float", ""
    model, chosen = read_native(folder, _machine(asked.machine))
    return model, "plan", content_hash(chosen)


def _native_folder(given: Path) -> Path | None:
    """The quantized model of a run or a folder; None if it is neither."""
    for folder in (given / pipeline.MODEL, given):
        if is_native(folder):
            return folder
    if (given / Run.MANIFEST).is_file():
        raise UserError(f"{given} is a run that has not come to its quantized model; run its command again first")
    return None


def _tokens(asked: Any, model: Model, screen: Screen) -> tuple[TokenSet, TokenSet, TokenSet]:
    """Calibration, selection and report sets."""
    text: options.Text = asked.text
    if (text.calibration, text.selection, text.report_text) == (None, None, None) and not _is_reference(model):
        screen.note(
            "no text was given, so Python source is used, which suits the reference models. "
            "For what your model is used for, give --calibration YOUR_TEXT"
        )
    return load_token_sets(
        model,
        calibration=text.calibration,
        selection=text.selection,
        report=text.report_text,
        length=text.length,
        bos=text.bos,
        samples=text.samples,
        report_samples=text.report_samples,
        seed=asked.general.seed,
    )


def _is_reference(model: Model) -> bool:
    """Whether a model was trained by this project: those share a tokenizer, and so do their quantized folders."""
    mine = model.folder / "tokenizer.json"
    theirs = [folder / mine.name for folder in reference_models().values()]
    return mine.is_file() and any(f.is_file() and f.read_bytes() == mine.read_bytes() for f in theirs)


def _stats(path: Path, model: Model, needed: bool) -> ActivationStats | None:
    """Stats of this model; None where no scheme is static and there are none."""
    if not needed and not path.is_file():
        return None
    stats = decode_record(path, ActivationStats)
    if stats.provenance.model != model.fingerprint:
        theirs, ours = stats.provenance.model[:12], model.fingerprint[:12]
        raise UserError(f"{path} is of the model {theirs}…, this is {ours}…; run `qarat profile` on it")
    return stats


def _note_matches(request: Request, model: Model, screen: Screen) -> None:
    for line in describe_matches(request, model.sites()):
        screen.note(line)


def _check_weights(model: Model) -> None:
    """Read every block once, so that a weight that cannot be used is found now."""
    for _ in model.walk():
        pass


def _estimate(screen: Screen, model: Model, work: Mapping[str, float], *, states: int = 0, disk: int = 0) -> Lines:
    """Show what a command would take, after all checks."""
    _check_weights(model)
    screen.show(estimate(model, work, states=states, disk=disk))
    return ()


def _show_run(folder: Path, screen: Screen, low: str) -> None:
    missing = pipeline.show_run(folder, screen.show, low)
    if missing:
        there = [step for step in pipeline.STEPS if step not in missing]
        done = f"done: {', '.join(there) or 'nothing'}"
        screen.note(f"{folder} is not finished; {done}; missing: {', '.join(missing)}")
    elif folder.name.endswith(".partial"):
        screen.note(f"{folder} has every step, but was not put into place")
    else:
        return
    screen.note(f"it continues with the same command: {read_command(folder) or 'qarat run'}")


def _ending(out: Path, next_command: str, *, also: str = "", why: str = "") -> Lines:
    return f"written: {_quoted(out)}{also}", f"try next{f' ({why})' if why else ''}: {next_command}"


def _command(verb: str, asked: options.Computing, *words: object) -> str:
    """A command line on the same model, with the same text, machine and seed."""
    carried: list[str] = []
    for group in (getattr(asked, "text", options.Text()), asked.machine, asked.general):
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if field.name not in ("json", "config", "dry_run") and value != field.default:
                carried += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join(["qarat", verb, asked.model, *map(str, words), *carried])


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))

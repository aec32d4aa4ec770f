"""`qarat verify`: the steps of the verification put together, and what they need from other stages.

First names and headers, then numbers, then whole models: each only where the one before it left something to look at.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from qarat.ground.errors import NotJudgedError, UserError, judging, local_cause
from qarat.ground.runtime import Progress, Runtime, no_progress
from qarat.jobs.float16 import beyond_float16
from qarat.jobs.live import Live, run_live
from qarat.jobs.live_files import verify_file
from qarat.model.folders import MARK
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.observe import observe
from qarat.stages.read_back.contents import check_contents
from qarat.stages.read_back.folders import Findings, StoredFolder, open_folder
from qarat.stages.read_back.readback import compare_weights, logits_of, relative_difference, transformers_logits
from qarat.stages.read_back.resolution import Matches, resolve
from qarat.stages.read_back.simulation import cache_of, open_stored
from qarat.stages.spikes import find_spikes
from qarat.values.engines import DEFAULT_ENGINES, FILE_ENGINES, Engine, engine_named, generation_named
from qarat.values.fingerprints import source_of
from qarat.values.formats import IN_BFLOAT16
from qarat.values.plans import Plan
from qarat.values.records.files import decode_record
from qarat.values.records.origin import Difference, Provenance
from qarat.values.records.scores import Evaluation, paired_difference
from qarat.values.records.streams import ActivationStats
from qarat.values.records.verification import LogitsComparison, Severity, Verification

LOGITS_LIMIT = 1e-5
"""Relative, in float32, between our simulation of the folder and of the run: the same sums in the same order."""
LOGITS_WINDOWS = 4
_REFERENCE = "transformers"
_PACKAGES = ("qarat", "torch", "transformers", "compressed-tensors")


class _Resolved(NamedTuple):
    """A folder, what engines make of it, and what was found so far."""

    folder: StoredFolder
    record: Verification
    matches: Matches
    findings: Findings

    @property
    def reference(self) -> str:
        """The engine whose model is computed: transformers if asked about, else the first."""
        return _REFERENCE if _REFERENCE in self.matches else next(iter(self.matches))


class AgainstRun(NamedTuple):
    """The run that a folder was exported from: its weights and logits are compared with the folder's.

    Attributes:
        model: Quantized by the plan, in float32.
        plan: Of the run.
        report: The report tokens; logits are compared on the first windows.
    """

    model: Model
    plan: Plan
    report: TokenSet

    def check(self) -> None:
        """Check that the two can be compared at all."""
        if self.model.runtime.dtype != "float32":
            raise UserError("verify compares in float32; leave `dtype` at float32")
        if self.plan.prefix:
            raise UserError("the run has a prefix in float, which no exported folder has; compare with a run without")

    def compare(self, resolved: _Resolved, stored: Model, progress: Progress) -> dict[str, object]:
        """What goes into the record."""
        weights = compare_weights(stored, self.model, self.plan, resolved.findings, progress=progress)
        windows = self.report.windows[:LOGITS_WINDOWS]
        mine, theirs = logits_of(stored, windows), logits_of(self.model, windows)
        return {"weights": (weights,), "logits": _compared(resolved, mine, theirs, windows, self.model.runtime)}


class AgainstFloat(NamedTuple):
    """The float model that a folder was made from: what the folder lost is measured, and spikes behind static scales.

    Attributes:
        model: In float.
        calibration: Tokens on which streams are observed.
        report: Tokens on which losses are measured.
    """

    model: Model
    calibration: TokenSet
    report: TokenSet

    def check(self) -> None:
        """Check that the two can be compared at all."""
        self.model.require_float("compare with")

    def compare(self, resolved: _Resolved, stored: Model, progress: Progress) -> dict[str, object]:
        """What goes into the record."""
        model = self.model
        wider = _wider(stored, model)
        if wider is None or (wider and not _is_of(resolved.folder.path, model)):
            raise UserError(
                f"{resolved.folder.path} and {model.path} are models of different shapes; give the one it was made from"
            )
        if wider:
            what = "its MLPs are wider than the float model's, as channels that were split make them"
            resolved.findings.add("note", what, "losses are compared; its split inputs are not searched for spikes")
        damage = _measure_damage(stored, model, self.report, progress)
        stats = observe(model, self.calibration, attention=False, progress=progress)
        _measure_spikes(resolved, model, stats, wider)
        for problem in beyond_float16(resolved.folder.checkpoint, stats):
            resolved.findings.add("warning", problem, IN_BFLOAT16)
        return {"damage": (damage,)}


def verify(
    folder: Path,
    engines: Sequence[str] = (),
    generation: str = "",
    *,
    against: AgainstRun | AgainstFloat | None = None,
    live: Live | None = None,
    progress: Progress = no_progress,
) -> Verification:
    """Verify a folder: what each engine will run, whether the numbers in it can be meant, and how it compares.

    Args:
        folder: In the compressed-tensors format.
        engines: Names of engines; none stands for all, of which older versions only warn.
        generation: GPU generation (or ``cpu``) that it must run on; empty for none in particular.
        against: What it is compared with; None verifies it by itself.
        live: An installed engine that is to run it; None reads what is known of engines. One that takes a file of its
            own runs that, and nothing else is judged.
        progress: Called as the work goes on.

    Raises:
        NotJudgedError: This machine lacks what it takes: memory, threads, disk.
        UserError: Not such a folder, or damaged beyond reading; or the two are models of different shapes, or cannot be
            compared at all.
    """
    for given in filter(None, (against, live)):
        given.check()
    if live is not None and live.engine in FILE_ENGINES:
        if isinstance(against, AgainstFloat) or engines or generation:
            raise UserError(
                f"{live.engine} takes a file of its own, which is compared with the run that it was exported from, and "
                "with nothing else; give that as `against`, and no `engine` and `gpu`"
            )
        with judging(folder):
            return verify_file(folder, live, against, progress)
    with judging(folder):
        return _verify(folder, engines, generation, against, live, progress)


def _verify(
    folder: Path,
    engines: Sequence[str],
    generation: str,
    against: AgainstRun | AgainstFloat | None,
    live: Live | None,
    progress: Progress,
) -> Verification:
    if live is not None and engines and live.engine not in engines:
        engines = (*engines, live.engine)
    resolved = _resolve(folder, engines, generation)
    fields: dict[str, object] = {}
    runtime = against.model.runtime if against is not None else live.runtime if live is not None else None
    stored = None if runtime is None else _simulated(resolved, runtime)
    if live is not None:
        matches = resolved.matches[live.engine]
        fields["live"] = run_live(live, resolved.folder, matches, stored, resolved.findings, progress)
    if against is not None:
        runtime, report, made = against.model.runtime, against.report, resolved.record.provenance
        fields |= {} if stored is None else against.compare(resolved, stored, progress)
        fields["against"] = "run" if isinstance(against, AgainstRun) else "float"
        fields["provenance"] = msgspec.structs.replace(
            made,
            tokens=report.fingerprint,
            convention=report.convention,
            dtype=runtime.dtype,
            source=against.model.checkpoint.source,
        )
    return msgspec.structs.replace(resolved.record, findings=resolved.findings.listed(), **fields)


def _resolve(path: Path, names: Sequence[str], generation: str) -> _Resolved:
    """Names, headers and numbers."""
    engines: list[Engine] = [engine_named(name) for name in names or DEFAULT_ENGINES]
    if generation:
        generation_named(generation)
    folder, findings = open_folder(path), Findings()
    modules, matches = resolve(folder, engines, generation, findings, lenient=not names)
    reference = matches.get(_REFERENCE) or next(iter(matches.values()))
    check_contents(folder, reference, engines, findings, lenient=not names)
    packages = {package: metadata.version(package) for package in _PACKAGES}
    provenance = Provenance(folder.checkpoint.fingerprint, "", "", packages)
    versions = {engine.name: engine.versions for engine in engines}
    record = Verification(
        provenance, path.resolve().name, folder.config.format, versions, generation, "", modules, findings.listed()
    )
    return _Resolved(folder, record, matches, findings)


def _simulated(resolved: _Resolved, runtime: Runtime) -> Model | None:
    """The folder's model; None, and a finding, where it cannot be made."""
    if resolved.findings.block(resolved.reference):
        reason = f"nothing was computed: with the errors above, {resolved.reference} would not run what is stored"
        resolved.findings.add("note", reason, "correct them and verify again")
        return None
    if resolved.folder.config.kv_cache is not None and cache_of(resolved.folder) is None:
        what = "what rounding keys and values costs: computed here with the KV cache in float, all else as it is stored"
        resolved.findings.add("not judged", what, "compare it in an engine")
    try:
        return open_stored(resolved.folder, resolved.matches[resolved.reference], runtime)
    except NotJudgedError as error:
        resolved.findings.add("not judged", str(error), "compare it in an engine instead")
    except UserError as error:
        resolved.findings.add("error", str(error), "compare it in an engine instead")
    return None


def _compared(
    resolved: _Resolved, mine: torch.Tensor, theirs: torch.Tensor, windows: torch.Tensor, runtime: Runtime
) -> tuple[LogitsComparison, ...]:
    """Our simulation of the folder against the run's, and against transformers' own, in float32 and in bfloat16."""
    count = windows.shape[0]
    first = relative_difference(mine, theirs)
    comparisons = [LogitsComparison("simulation of the folder, and of the run, float32", first, LOGITS_LIMIT, count)]
    if not first <= LOGITS_LIMIT:
        problem = f"logits differ from the run's by {first:.2g} of their largest, beyond {LOGITS_LIMIT:g}"
        resolved.findings.add("error", problem, "export the run again")
    if not _fits(resolved.folder, runtime):
        problem = "not run in transformers: it would not fit in memory"
        resolved.findings.add("note", problem, "free some, or give more with `memory`")
        return tuple(comparisons)
    halves = (torch.float16,) if resolved.folder.checkpoint.declared == torch.float16 else ()
    for dtype in (torch.float32, torch.bfloat16, *halves):
        try:
            engine = transformers_logits(resolved.folder.path, dtype, windows)
        except UserError as error:
            resolved.findings.add(*_why_not_run(error, dtype), engines=(_REFERENCE,))
            continue
        if dtype == torch.float16 and not engine.isfinite().all():
            problem = "in float16, which the folder declares, transformers gives NaN or Inf: engines will too"
            resolved.findings.add("warning", problem, IN_BFLOAT16)
        caption = f"transformers in {str(dtype).removeprefix('torch.')}, and simulation of the run"
        comparisons.append(LogitsComparison(caption, relative_difference(engine, theirs), 0.0, count))
    return tuple(comparisons)


def _why_not_run(error: UserError, dtype: torch.dtype) -> tuple[Severity, str, str]:
    """How grave it is that transformers did not run the folder, why that was, and what to do."""
    if cause := local_cause(error):
        return (
            "not judged",
            f"not run in transformers: {cause}",
            "mend that and verify again; it is no fault of the folder",
        )
    # The library gives FP4 and MX weights in bfloat16 alone, which float32 inputs do not go with.
    return "note" if dtype == torch.float32 else "error", str(error), f"{dtype}: see what it says"


def _fits(folder: StoredFolder, runtime: Runtime) -> bool:
    """Whether the whole model fits twice into the memory bound: compressed and in float32, 8 bytes a weight at most."""
    elements = sum(m.shape[0] * m.shape[1] for m in folder.modules.values())
    return 8 * elements <= runtime.memory_bytes()


def _measure_damage(stored: Model, model: Model, report: TokenSet, progress: Progress) -> Difference:
    """Loss of the folder over the float model's, paired."""
    before = measure_perplexity(model, report, label="float", progress=progress)
    after = measure_perplexity(stored, report, label="folder", progress=progress)
    # The tokens are one set; that the model is another is what is measured.
    same = Evaluation(after.label, before.provenance, "", after.nats, after.predicted, after.sources)
    return paired_difference(same, before)


def _wider(stored: Model, model: Model) -> frozenset[str] | None:
    """The sites that a folder has with more inner channels than its float model; None for another model's shapes."""
    pairs = list(zip(stored.sites(), model.sites(), strict=False))
    if len(stored.sites()) != len(model.sites()) or any(a.name != b.name for a, b in pairs):
        return None
    grown = ((a.name, [x - y for x, y in zip(a.shape, b.shape, strict=True)]) for a, b in pairs)
    other = {name: sorted(more) for name, more in grown if any(more)}
    return frozenset(other) if all(least == 0 for least, _ in other.values()) else None


def _is_of(folder: Path, model: Model) -> bool:
    """Whether the plan in a folder says that it was made from a model."""
    mark = folder / MARK
    return mark.is_file() and source_of(decode_record(mark, Plan).model) == model.fingerprint


def _measure_spikes(resolved: _Resolved, model: Model, stats: ActivationStats, left: Collection[str]) -> None:
    """Streams under one static scale per tensor that a spike starves, by the snr rule; but for the inputs of some."""
    readers = {s.name: s.streams[0] for s in model.sites() if s.kind == "projection" and s.name not in left}
    for name, match in resolved.matches[resolved.reference].items():
        inputs = match.group.scheme.input if match.group is not None else None
        if inputs is None or not inputs.static or inputs.granularity.cols is not None or name not in readers:
            continue
        if readers[name] in find_spikes(stats, "snr", inputs).flagged:
            seen = stats.stream(readers[name])
            problem = (
                f"a spike starves this static input: maximum {seen.maximum:.4g}, median of tokens "
                f"{seen.typical_maximum:.4g} (r {seen.ratio:.1f}), measured on {stats.windows} windows"
            )
            remedy = "keep this input in higher precision, or make it dynamic per token"
            resolved.findings.add("warning", problem, remedy, (name,))

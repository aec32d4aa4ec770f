"""Live verification: the installed engine runs the folder, and what really ran is set beside the resolution.

The engine runs in a process of its own (`qarat.jobs.engine_process`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from qarat.ground.errors import local_cause
from qarat.ground.runtime import Progress, Runtime
from qarat.jobs.engine_process import RUN, SECONDS, DiedError, EngineProcess, Reply, cpu_says, row_of
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.read_back.folders import Findings, StoredFolder, StoredModule
from qarat.stages.read_back.matching import Match
from qarat.stages.read_back.stored import StoredConfig, read_group
from qarat.values.engines import ENGINES, FILE_ENGINES, Engine, fusion_of, kernel_for, kernel_kind
from qarat.values.records.origin import clustered_mean
from qarat.values.records.scores import Evaluation
from qarat.values.records.verification import LiveLoss, LiveModule, LiveRun, Severity

WINDOWS = 4
LIMIT = 3.0
"""Standard errors: a mean loss further from ours is worth a warning."""


class Live(NamedTuple):
    """An engine that is to run the folder.

    Attributes:
        engine: One of `RUN` or `FILE_ENGINES`.
        tokens: What losses are measured on, from the folder's model; of more windows than `WINDOWS` so many are taken.
        runtime: For our own run of the folder.
        python: The interpreter of the environment that holds the engine.
        seconds: After so many the engine is ended.
        memory: Bytes that the engine may take; 0 for no bound but that of ``runtime``, where it has one.
    """

    engine: str
    tokens: Callable[[Model], TokenSet]
    runtime: Runtime
    python: Path = Path(sys.executable)
    seconds: float = SECONDS
    memory: int = 0

    @property
    def process(self) -> EngineProcess:
        """What is started."""
        return EngineProcess(self.engine, self.python, self.seconds, self.memory or self.runtime.memory)

    def check(self) -> None:
        """Check, before any work, that there is something to be started; errors as `EngineProcess.check`."""
        self.process.check("live", (*RUN, *FILE_ENGINES))


class Ran(msgspec.Struct, frozen=True):
    """A module as the engine's script lists it; transformers' scheme is compressed-tensors' own arguments."""

    name: str
    scheme: Any
    kernel: str


class LiveAnswer(Reply, frozen=True):
    """What an engine's script writes of a run; see `bundled/run_engine.py`."""

    modules: tuple[Ran, ...] = ()
    losses: tuple[tuple[float, ...], ...] = ()


def run_live(
    live: Live,
    folder: StoredFolder,
    matches: Mapping[str, Match],
    stored: Model | None,
    findings: Findings,
    progress: Progress,
) -> tuple[LiveRun, ...]:
    """Run a folder in an engine, and compare; nothing comes back where the engine did not run it.

    Args:
        live: The engine.
        folder: Opened.
        matches: Module's name to what the engine makes of it by its row.
        stored: The folder's model as qarat computes it; None where it cannot, and then there is no loss.
        findings: What is found is added to it.
        progress: Called before and behind the engine's run.
    """
    tokens = None if stored is None else live.tokens(stored)
    if tokens is not None and len(tokens) > WINDOWS:
        tokens = tokens.subset(WINDOWS)
    windows = [list(range(8))] if tokens is None else tokens.windows.tolist()
    request: dict[str, Any] = {"windows": windows}
    if live.engine == "vllm" and any(m.group and not m.group.inputs for m in matches.values()):
        request["dtype"] = "bfloat16"
        what = "weights alone are quantized, and vLLM's kernels for them take no float32: it computes in bfloat16"
        findings.add("note", what, "its loss has bfloat16's own roundings in it", engines=(live.engine,))
    progress(live.engine, 0, 1)
    answer = ask_live(live, folder.path, request, findings)
    progress(live.engine, 1, 1)
    if answer is None:
        return ()
    row = ENGINES[live.engine]
    modules = tuple(beside_resolution(row, folder.config, answer.modules, matches))
    wanted = {_merged_name(row, name) for name, module in folder.modules.items() if not _is_shared(folder, module)}
    judge_modules(row.name, answer.version, modules, wanted, findings)
    _judge_kernels(row, modules, findings)
    run = LiveRun(live.engine, answer.version, modules)
    if stored is None or tokens is None:
        return (run,)
    ours = measure_perplexity(stored, tokens, label="folder", progress=progress)
    loss = compare_losses(live.engine, ours, tokens, answer.losses, findings)
    return (msgspec.structs.replace(run, losses=(loss,)),)


def ask_live(live: Live, folder: Path, request: Mapping[str, Any], findings: Findings) -> LiveAnswer | None:
    """What the engine answers; None where it did not run, and why not, and whether its version is known, are findings.

    Args:
        live: The engine.
        folder: That it is to run.
        request: As `bundled/run_engine.py` takes it.
        findings: What is found is added to it.
    """
    engine, row = live.engine, row_of(live.engine)
    try:
        answer = live.process.ask(folder, request, LiveAnswer)
    except DiedError as error:
        findings.add("not judged", str(error), "see what it says", engines=(engine,))
        return None
    if answer.absent:
        findings.add("not judged", *live.process.absence(answer))
        return None
    if what := live.process.unknown(answer.version):
        findings.add(
            "note", what, f"the row is about {row.versions}; what is said of it may not hold", engines=(engine,)
        )
    if answer.refusal:
        what = f"{engine} {answer.version} did not run the folder: {answer.refusal}"
        if local_cause(RuntimeError(answer.refusal)):
            findings.add("not judged", what, "mend that and verify again", engines=(engine,))
        else:
            findings.add("error", what, "see what else was found for this engine", engines=(engine,))
    return None if answer.refusal else answer


def beside_resolution(
    engine: Engine, config: StoredConfig, ran: Sequence[Ran], matches: Mapping[str, Match]
) -> Iterator[LiveModule]:
    """Every module that ran, with what the resolution says of it.

    Args:
        engine: Its row.
        config: Of the folder.
        ran: What the engine lists.
        matches: Module's name to what the engine makes of it by its row.
    """
    by_name = {_merged_name(engine, name): match for name, match in matches.items()}
    for module in ran:
        match = by_name.get(module.name)
        resolved, expected = ("no such module", "nothing") if match is None else _resolved(engine, config, match)
        yield LiveModule(module.name, _spelled(module.scheme), module.kernel, resolved, expected)


def _resolved(engine: Engine, config: StoredConfig, match: Match) -> tuple[str, str]:
    """What a match comes to in our words, and in the engine's."""
    group = match.group
    if group is None:
        return "float", "float"
    if not engine.fuses:
        return group.spell(), group.spell()
    kind = kernel_kind(group.scheme, config.format_of(group))
    kernel = kernel_for(engine, kind)
    return kind, kernel.runs if kernel is not None else ""


def _merged_name(engine: Engine, name: str) -> str:
    """A module's name in the engine."""
    home, _, leaf = name.rpartition(".")
    fusion = fusion_of(leaf) if engine.fuses else None
    return name if fusion is None else f"{home}.{fusion.name}"


def _spelled(scheme: Any) -> str:
    """What an engine calls a scheme; compressed-tensors' own arguments in the short spelling."""
    if isinstance(scheme, str):
        return scheme
    group = read_group("scheme", scheme, [])
    return "(not understood)" if group is None else group.spell()


def _is_shared(folder: StoredFolder, module: StoredModule) -> bool:
    """Whether it is a head that is the embedding, which engines have once."""
    return module.name == folder.family.head and bool(folder.checkpoint.config.tie_word_embeddings)


def judge_modules(
    engine: str, version: str, modules: Sequence[LiveModule], wanted: Collection[str], findings: Findings
) -> None:
    """What ran otherwise than resolved, or not at all.

    Args:
        engine: Its name.
        version: That ran.
        modules: What ran.
        wanted: Names of the modules that had to.
        findings: What is found is added to it.
    """
    for module in modules:
        if not module.agrees:
            what = f"{engine} {version} ran {module.scheme}, where the resolution says {module.resolved}"
            findings.add("error", what, "believe what ran", (module.name,), (engine,))
        elif not module.expected:
            kind = module.resolved or "such a scheme"
            what = f"{engine} {version} ran {module.scheme}; its row does not know what it calls {kind}"
            findings.add("not judged", what, "compare the two yourself", (module.name,), (engine,))
    if missing := sorted(set(wanted) - {module.name for module in modules}):
        what = f"{engine} {version} did not run it, or under another name"
        findings.add("error", what, "look for it among what ran", missing, (engine,))


def _judge_kernels(engine: Engine, modules: Sequence[LiveModule], findings: Findings) -> None:
    """What kernels of this machine make of a scheme."""
    for kind in dict.fromkeys(module.resolved for module in modules if module.kernel.startswith("CPU")):
        if (kernel := kernel_for(engine, kind)) is not None and kernel.on_cpu:
            findings.add(grave_here(), f"{kind}: {kernel.on_cpu}", f"see {kernel.source}", engines=(engine.name,))


def grave_here() -> Severity:
    """How grave it is what INT8 kernels do on some x86 CPUs: whether this is one, without VNNI or with AMX."""
    flags = cpu_says("flags")
    return "warning" if "vnni" not in flags or "amx_int8" in flags else "note"


def compare_losses(
    engine: str, ours: Evaluation, tokens: TokenSet, losses: Sequence[Sequence[float]], findings: Findings
) -> LiveLoss:
    """The engine's mean loss beside ours, and a finding where it is far off, or where nobody can say whether it is.

    Args:
        engine: Its name.
        ours: Of the folder as qarat computes it.
        tokens: What both were measured on.
        losses: The engine's, nats of every predicted token, by window.
        findings: What is found is added to it.
    """
    sums = [sum(window) - nats for window, nats in zip(losses, ours.nats, strict=True)]
    difference, error, _ = clustered_mean(sums, ours.predicted, ours.sources)
    counts = len(tokens), sum(ours.predicted)
    loss = LiveLoss(ours.loss + difference, ours.loss, error, *counts, tokens.fingerprint, tokens.convention)
    if math.isnan(error):
        what = f"its mean loss is {difference:+.4f} nats from ours, of one source: how sure that is nobody knows"
        findings.add("note", what, "compare on text of several documents", engines=(engine,))
    elif abs(difference) > LIMIT * error:
        what = f"its mean loss is {difference:+.4f} ± {error:.4f} nats from ours, over {len(tokens)} windows"
        remedy = "compare on more windows; docs/verifying.md says what an engine's own roundings may cost"
        findings.add("warning", what, remedy, engines=(engine,))
    return loss

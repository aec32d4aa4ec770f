"""Folders timed in an installed engine, in turns, so that whatever else the machine does meets them all alike.

Every turn starts the engine anew for every folder (`qarat.jobs.engine_process`): one model is in memory at a time, and
loading has a spread too. Given up: the time that starting takes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, Runtime, no_progress
from qarat.jobs.engine_process import DiedError, EngineProcess, Reply, cpu_says
from qarat.jobs.verify import verify
from qarat.model.checkpoints import Checkpoint
from qarat.model.finding import find_local, is_gguf
from qarat.model.native import is_native
from qarat.model.opening import read_checkpoint
from qarat.values.engines import CPU
from qarat.values.records.speed import EngineSpeed, FolderSpeed, Turn
from qarat.values.requests.speed import SpeedRequest

_PAGE = 128  # tokens that a KV cache is dealt out by, at most
_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


class _Answer(Reply, frozen=True):
    """What `bundled/run_engine.py` writes of a folder that it timed; see there."""

    load: float = 0.0
    weights: int = 0
    prefill: tuple[float, ...] = ()
    decode: tuple[float, ...] = ()
    device: str = ""
    threads: int = 0


def time_folders(
    names: Sequence[str], process: EngineProcess, request: SpeedRequest, *, progress: Progress = no_progress
) -> EngineSpeed:
    """Load and time folders in an engine, each once a turn.

    Args:
        names: Hugging Face folders, float or quantized, reference models, or GGUF files, the float model of which is
            timed in bfloat16; the others are set against the first.
        process: The engine.
        request: What is timed.
        progress: Called behind every folder of every turn.

    Raises:
        UserError: No such folder, or none that engines load; windows too long for one; the engine is absent, died, was
            ended, or refused a folder, with its own words and what `qarat verify` finds.
    """
    process.check("engine")
    request.check()
    checkpoints = [_open(name) for name in names]
    _check_length(checkpoints, request)
    question = _ask_for(checkpoints, request)
    answers: list[list[_Answer]] = [[] for _ in checkpoints]
    total = request.turns * len(checkpoints)
    progress(process.engine, 0, total)
    for turn in range(request.turns):
        for place, checkpoint in enumerate(checkpoints):
            answers[place].append(_time(checkpoint, process, question))
            progress(process.engine, turn * len(checkpoints) + place + 1, total)
    return _record(checkpoints, answers, process, request)


def _open(name: str) -> Checkpoint:
    """A folder that engines load; of a GGUF file, what its codes stand for in bfloat16, for as long as it is needed.

    Raises:
        UserError: It is none; says how to make one.
    """
    given = Path(name)
    if is_native(given) or is_native(given / "model"):
        raise UserError(f"{name} is qarat's own folder, which no engine loads; `qarat export {name}` makes one that is")
    path = find_local(name)
    if path is None:
        raise UserError(f"{name} is no folder here; fetch it first, and give its folder")
    if not is_gguf(path):
        return Checkpoint(path, quantized=True)
    checkpoint = read_checkpoint(path)  # its config lies in a temporary folder, where the weights go too
    wanted = {name: tensor for name, tensor in checkpoint.skeleton().state_dict().items() if name in checkpoint}
    save_file(checkpoint.read("", wanted, Runtime(CPU, "bfloat16")), checkpoint.folder / "model.safetensors")
    return checkpoint


def _check_length(checkpoints: Sequence[Checkpoint], request: SpeedRequest) -> None:
    if short := [c for c in checkpoints if c.config.max_position_embeddings < request.positions]:
        held = ", ".join(f"{c.path} has {c.config.max_position_embeddings}" for c in short)
        raise UserError(
            f"`prompt_tokens` {request.prompt_tokens} and `new_tokens` {request.new_tokens} need {request.positions} "
            f"positions, and {held}; give less"
        )


def _ask_for(checkpoints: Sequence[Checkpoint], request: SpeedRequest) -> dict[str, object]:
    """What the engine is asked for: random tokens that all folders know, and a KV cache for the largest batch."""
    draw, vocabulary = random.Random(0), min(c.config.vocab_size for c in checkpoints)
    most = max(request.batches)
    windows = [[draw.randrange(vocabulary) for _ in range(request.prompt_tokens)] for _ in range(most)]
    tokens = most * _PAGE * math.ceil(request.positions / _PAGE)
    held = max(tokens * _cache_width(c) * _BYTES[request.dtype] for c in checkpoints)
    how = {name: getattr(request, name) for name in ("batches", "new_tokens", "dtype", "eager", "clock")}
    return {"windows": windows, "cache": math.ceil(held / 2**30), **how}


def _cache_width(checkpoint: Checkpoint) -> int:
    """Numbers that a KV cache holds of one token."""
    config = checkpoint.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * width


def _time(checkpoint: Checkpoint, process: EngineProcess, request: dict[str, object]) -> _Answer:
    """One folder in one turn; errors as `time_folders`."""
    folder = checkpoint.path
    try:
        answer = process.ask(checkpoint.folder, request, _Answer)
    except DiedError as error:
        raise UserError(f"{folder}: {error}") from None
    if answer.absent:
        raise UserError("; ".join(process.absence(answer)))
    if answer.refusal:
        failure = f"{process.engine} {answer.version} did not run {folder}: {answer.refusal}"
        raise UserError("\n  ".join([failure, *_our_findings(checkpoint, process.engine)]))
    return answer


def _our_findings(checkpoint: Checkpoint, engine: str) -> list[str]:
    """What `qarat verify` says of a quantized folder in this engine, a line each."""
    if not _format_of(checkpoint):
        return []
    try:
        record = verify(checkpoint.path, [engine], CPU if Runtime().device == CPU else "")
    except UserError as error:
        return [f"qarat verify: {error}"]
    problems = [f for f in record.findings if f.severity != "note"]
    return [f"qarat verify, {f.severity}: {f.what}; {f.remedy}" for f in problems] or [
        "qarat verify finds no fault in it"
    ]


def _format_of(checkpoint: Checkpoint) -> str:
    """Of a folder's quantization, as its config calls it; empty for a float model."""
    quantization = getattr(checkpoint.config, "quantization_config", None) or {}
    return quantization.get("format") or quantization.get("quant_method", "")


def _record(
    checkpoints: Sequence[Checkpoint], answers: Sequence[Sequence[_Answer]], process: EngineProcess, how: SpeedRequest
) -> EngineSpeed:
    first = answers[0][0]
    folders = tuple(
        FolderSpeed(
            checkpoint.path.resolve().name,
            checkpoint.fingerprint,
            _format_of(checkpoint),
            checkpoint.weight_bytes(),
            tuple(Turn(a.load, a.weights, a.prefill, a.decode) for a in turns),
        )
        for checkpoint, turns in zip(checkpoints, answers, strict=True)
    )
    device = (cpu_says("model name") or CPU) if first.device == CPU else first.device
    notes = [process.unknown(first.version)]
    if first.device == CPU and any(folder.format for folder in folders):
        notes += _about_cpu(process.engine, how)
    return EngineSpeed(process.engine, first.version, device, first.threads, how, folders, tuple(filter(None, notes)))


def _about_cpu(engine: str, how: SpeedRequest) -> list[str]:
    """What is known of quantized folders on such a CPU; see `docs/serving.md`."""
    flags, notes = cpu_says("flags"), list[str]()
    if "vnni" not in flags:
        notes.append("this CPU has no VNNI: INT8 is hardly faster than float32 in prefill, and slower in decode")
    if engine == "vllm" and "avx512" not in flags and how.dtype == "bfloat16":
        notes.append("without AVX-512 vLLM's INT8 in bfloat16 is oneDNN's reference code; time it in float32 as well")
    return notes

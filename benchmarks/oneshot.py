"""Claim: profile, quantize and export in half of llm-compressor's time and a third of its memory.

    .venv-engines/bin/python benchmarks/oneshot.py -o result.json

A random 1.1 B-parameter model in bf16, TinyLlama's shape, is written block by block into a temporary folder. Two
`down_proj` get FP8, everything else INT8 with static inputs per tensor. qarat's plan, exported as a recipe, is what
llm-compressor's `oneshot` runs; the token ids, the threads and the dtype are the same. Each side has a process of its
own (`oneshot_side.py`), its clock runs from behind the imports until the folder is written, and its anonymous memory
is watched from outside, over its whole life. Then one reader computes the loss of both folders.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import common
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from qarat.ground.runtime import Runtime
from qarat.model.opening import open_model
from qarat.stages.export.llmcompressor import recipe
from qarat.stages.read_back.folders import Findings, open_folder
from qarat.stages.read_back.readback import logits_of
from qarat.stages.read_back.resolution import resolve
from qarat.stages.read_back.simulation import open_stored
from qarat.testing import tiny_tokenizer
from qarat.values.engines import engine_named
from qarat.values.plans import assign
from qarat.values.schemes import LOW

VOCABULARY = 32000
FP8 = "w=e4m3/channel a=e4m3/token"
TARGETS = {"wall": 0.5, "cpu": 0.5, "anonymous": 1 / 3, "deeper": 1.05}
POLL = 0.01  # seconds between looks at a process's memory
DISK_BYTES = 1 << 30


def write_model(folder: Path, blocks: int, length: int) -> int:
    """A LLaMA with random bf16 weights, a shard for each block and one for the rest; its bytes."""
    folder.mkdir()
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=common.HIDDEN,
        intermediate_size=common.INTERMEDIATE,
        num_hidden_layers=blocks,
        num_attention_heads=common.HEADS,
        num_key_value_heads=common.KV_HEADS,
        max_position_embeddings=length,
        bos_token_id=0,
        eos_token_id=None,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in AutoModelForCausalLM.from_config(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    where: dict[str, str] = {}
    total = 0
    for number, group in enumerate(["outside", *(f"model.layers.{i}." for i in range(blocks))]):
        file = f"model-{number + 1:05}-of-{blocks + 1:05}.safetensors"
        names = [n for n in shapes if (n.startswith(group) if number else not n.startswith("model.layers."))]
        tensors = {name: _random(shapes[name], generator) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
        total += sum(t.nbytes for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def _random(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """As `qarat.testing.tiny_checkpoint`: weights larger than an untrained model's, norms that are not all ones."""
    noise = torch.randn(shape, generator=generator)
    return (1 + 0.2 * noise if len(shape) == 1 else noise.mul_(1.5 / shape[1] ** 0.5)).bfloat16()


def run_side(side: str, home: Path, model: Path, out: Path, **how: object) -> dict[str, Any]:
    """Run one side to its end; seconds, its steps' seconds, and the peak of its anonymous memory in bytes.

    Args:
        side: Of `oneshot_side`.
        home: Folder with the token ids, and for what is said.
        model: Folder of the float model.
        out: Folder to be written.
        how: The other options of `oneshot_side`.
    """
    result, log = home / "result.json", home / f"{side}.log"
    command = [sys.executable, str(Path(__file__).with_name("oneshot_side.py")), side]
    options = {"model": model, "tokens": home / "tokens.safetensors", "out": out, "result": result, **how}
    for key, value in options.items():
        command += [f"--{key}", str(value)]
    threads = {name: str(how["threads"]) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
    environment = os.environ | threads | {"HF_HUB_OFFLINE": "1"}
    with log.open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment, cwd=home)
        peak = 0
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(POLL)
    if process.returncode:
        raise SystemExit(f"{side} failed:\n{log.read_text()[-4000:]}")
    return json.loads(result.read_text()) | {"anonymous": peak}


def anonymous_bytes(process: int) -> int:
    """Anonymous memory of a process: what is its own, without the files that it has mapped."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")), 0)


def how(model: Path, chosen: argparse.Namespace) -> dict[str, object]:
    """The options of both sides."""
    told = {"recipe": model.with_suffix(".yaml"), "low": LOW, "rules": json.dumps(rules(chosen)), "dtype": "bfloat16"}
    return told | {"memory": chosen.memory, "threads": chosen.threads}


def rules(chosen: argparse.Namespace) -> list[tuple[str, str]]:
    return [(f"{block}.down", FP8) for block in chosen.protect]


def write_recipe(folder: Path, chosen: argparse.Namespace) -> None:
    """The plan as llm-compressor reads it, beside the model."""
    model = open_model(str(folder))
    plan = assign(model.fingerprint, model.source_bits, model.sites(), LOW, rules(chosen))
    folder.with_suffix(".yaml").write_text(yaml.safe_dump(recipe(plan, model.family.head), sort_keys=False))


def judge(model: Path, folders: dict[str, Path], chosen: argparse.Namespace) -> dict[str, Any]:
    """Loss and logits of each folder against the float model, on other tokens, in float32, all by one reader."""
    windows = random_ids(chosen.judged, chosen.length, seed=1)
    runtime = Runtime(threads=chosen.threads, memory=1)
    reference = logits_of(open_model(str(model), runtime), windows)
    found: dict[str, Any] = {"float": {"loss": _loss(reference, windows)}}
    for name, path in folders.items():
        folder, engine = open_folder(path), engine_named("transformers")
        _, matches = resolve(folder, [engine], "", Findings(), lenient=False)
        logits = logits_of(open_stored(folder, matches[engine.name], runtime), windows)
        error = float((logits - reference).norm() / reference.norm())
        loss = _loss(logits, windows)
        found[name] = {"loss": loss, "over float": loss - found["float"]["loss"], "logits' relative error": error}
    return found


def _loss(logits: Tensor, windows: Tensor) -> float:
    return float(cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten()))


def random_ids(windows: int, length: int, seed: int) -> Tensor:
    """Windows of random ids, (windows, length) int64, each begun with BOS."""
    ids = torch.randint(2, VOCABULARY, (windows, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 0
    return ids


def disk_speed(folder: Path) -> dict[str, float]:
    """Bytes a second that this disk writes (until they are on it) and reads (from it, not from memory)."""
    path, piece = folder / "speed", os.urandom(1 << 24)
    began = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(DISK_BYTES // len(piece)):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began_reading = time.perf_counter()
    with path.open("rb") as file:
        while file.read(len(piece)):
            pass
    read = time.perf_counter()
    path.unlink()
    return {"write": DISK_BYTES / (written - began), "read": DISK_BYTES / (read - began_reading)}


def matrix_rate(threads: int) -> float:
    """Floating-point operations a second of the MLP's product in bf16."""
    torch.set_num_threads(threads)
    x, w = torch.randn(4096, common.HIDDEN).bfloat16(), torch.randn(common.INTERMEDIATE, common.HIDDEN).bfloat16()
    seconds: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(x, w.T)
        seconds.append(time.perf_counter() - began)
    return 2 * x.numel() * common.INTERMEDIATE / statistics.median(seconds)


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=22, help="decoder layers of the random model")
    parser.add_argument("--deeper", type=int, default=44, help="decoder layers of the model that shows a flat peak")
    parser.add_argument("--windows", type=int, default=8, help="calibration windows")
    parser.add_argument("--judged", type=int, default=1, help="windows on which the two folders are compared")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--protect", type=int, nargs="+", default=[1, 20], help="blocks whose down_proj gets FP8")
    parser.add_argument("--rounds", type=int, default=1, help="in each, both sides run once, in turns first")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=int, default=1, help="MiB that qarat may keep weights in; 1 keeps no block")
    parser.add_argument("-o", "--output", type=Path, help="write the JSON here too")
    return parser.parse_args()


def compare(home: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turns on the model, then qarat alone on the deeper one."""
    model, outs = home / "model", {side: home / side for side in ("qarat", "llmcompressor")}
    source = write_model(model, chosen.blocks, chosen.length)
    write_recipe(model, chosen)
    save_file({"ids": random_ids(chosen.windows, chosen.length, seed=0)}, home / "tokens.safetensors")
    rounds: list[dict[str, Any]] = []
    for number in range(chosen.rounds):
        sides = list(outs)[:: -1 if number % 2 else 1]
        if number:
            for out in outs.values():
                subprocess.run(["rm", "-r", str(out)], check=True)
        rounds.append({side: run_side(side, home, model, outs[side], **how(model, chosen)) for side in sides})
        print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    judged = judge(model, outs, chosen)
    written = folder_bytes(outs["qarat"])
    speed = disk_speed(home)
    tokens = chosen.windows * chosen.length
    rate = matrix_rate(chosen.threads)
    parameters = source // 2 - 2 * VOCABULARY * common.HIDDEN  # those of the blocks
    deeper: dict[str, Any] = {}
    if chosen.deeper:
        write_model(home / "deeper", chosen.deeper, chosen.length)
        more = how(home / "deeper", chosen)
        deeper = run_side("qarat", home, home / "deeper", home / "deeper-out", **more)
    return {
        "rounds": rounds,
        "deeper": deeper,
        "judged": judged,
        "floor": {
            "bytes read": source,
            "bytes written": written,
            "disk, bytes a second": speed,
            "disk, seconds": source / speed["read"] + written / speed["write"],
            "bf16 products, GFLOP/s": rate / 1e9,
            "one forward's products, seconds": 2 * parameters * tokens / rate,
        },
    }


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Medians over the rounds of qarat by llm-compressor, and whether they are within the targets."""
    ratios = {
        key: statistics.median(r["qarat"][key] / r["llmcompressor"][key] for r in result["rounds"])
        for key in ("wall", "cpu", "anonymous")
    }
    if result["deeper"]:
        ratios["deeper"] = result["deeper"]["anonymous"] / max(r["qarat"]["anonymous"] for r in result["rounds"])
    return {
        name: {"ratio": value, "target": TARGETS[name], "met": value <= TARGETS[name]} for name, value in ratios.items()
    }


def main() -> None:
    chosen = arguments()
    with tempfile.TemporaryDirectory() as home:
        result = compare(Path(home), chosen)
    packages = {name: version(name) for name in ("llmcompressor", "compressed-tensors")}
    settings = {key: value for key, value in vars(chosen).items() if key != "output"}
    schemes = {"low": LOW, "protected": FP8}
    whole = {
        "ratios": summary(result),
        **result,
        "settings": settings | schemes,
        "machine": common.machine() | packages,
    }
    common.emit(whole, chosen.output)


if __name__ == "__main__":
    main()

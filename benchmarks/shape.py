"""A model of a known shape with random weights goes through every step, each a process of its own, against its floor.

python benchmarks/shape.py --shape llama-2-7b --memory 2.5GB -o shape.json

The checkpoint (sharded, bfloat16) is written tensor by tensor and removed afterwards. Random weights say nothing about
quality; time, memory and disk depend on shapes alone. Of every process: wall and CPU seconds, the peak of what it held
resident (files that it maps count there, though they can be dropped at any time), the peak of what is its own, and the
bytes that it read and wrote.

The floor of a step is its matrix products at the rate of such products, measured beside it with the same threads, and
the bytes that it has to read and write at the disk's rate. Nothing else is counted: no rounding, no hashing, no import
of libraries. The steps' floors count what a walk that holds one block at a time has to do: prices take a forward,
another to be differentiated, the gradient and one product with the rounded weight.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from common import emit, machine

from qarat.model.folders import BESIDE
from qarat.model.reference_models import reference_models
from qarat.stages.export.compressed_tensors.shards import ShardWriter, size_of


class Shape(NamedTuple):
    """Numbers of a LLaMA's config."""

    hidden: int
    inner: int
    blocks: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False


SHAPES = {
    "smollm-135m": Shape(576, 1536, 30, 9, 3, 49152, True),
    "tinyllama-1.1b": Shape(2048, 5632, 22, 32, 4, 32000),
    "open-llama-3b": Shape(3200, 8640, 26, 32, 32, 32000),
    "llama-2-7b": Shape(4096, 11008, 32, 32, 32, 32000),
    "llama-3-8b": Shape(4096, 14336, 32, 32, 8, 128256),
    "llama-2-70b": Shape(8192, 28672, 80, 64, 8, 32000),
}
SHARD = 4 << 30
TOKENIZER = "py-128"
SITES = ("*.1.*.down_proj", "*.0.*.down_proj")


def config_of(shape: Shape, length: int) -> dict[str, object]:
    """As config.json has it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.blocks,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": max(2048, length),
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "bfloat16",
    }


def tensors_of(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Name of every tensor to its shape, in the model's order."""
    hidden, inner = shape.hidden, shape.inner
    keys = hidden // shape.heads * shape.kv_heads
    block = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, hidden)}
    for index in range(shape.blocks):
        shapes |= {f"model.layers.{index}.{name}.weight": size for name, size in block.items()}
    shapes["model.norm.weight"] = (hidden,)
    return shapes if shape.tied else shapes | {"lm_head.weight": (shape.vocabulary, hidden)}


def write_checkpoint(shape: Shape, folder: Path, length: int, device: str = "cpu") -> int:
    """Write the checkpoint one tensor after the other, drawn on a device; its bytes."""
    folder.mkdir(parents=True)
    layout = {name: (torch.bfloat16, size) for name, size in tensors_of(shape).items()}
    total = sum(map(size_of, layout.values()))
    shards = -(-total // SHARD)
    files: dict[str, str] = {}
    done = 0
    for name, entry in layout.items():
        files[name] = f"model-{min(done // SHARD, shards - 1) + 1:05}-of-{shards:05}.safetensors"
        done += size_of(entry)
    writer = ShardWriter(folder, layout, files if shards > 1 else dict.fromkeys(layout, "model.safetensors"))
    generator = torch.Generator(device).manual_seed(0)
    for name, (_, size) in layout.items():
        drawn = torch.empty(size, dtype=torch.bfloat16, device=device)
        if len(size) == 1:
            drawn.fill_(1.0)
        for rows in drawn.split(1 << 12) if len(size) > 1 else ():  # in pieces: a whole one in float32 would be more
            rows.copy_(torch.randn(rows.shape, generator=generator, device=device) * 0.02)
        writer.put({name: drawn})
    writer.finish()
    (folder / "config.json").write_text(json.dumps(config_of(shape, length), indent=1) + "\n")
    for path in reference_models()[TOKENIZER].iterdir():
        if path.suffix in BESIDE and path.name.startswith("tokenizer"):
            shutil.copyfile(path, folder / path.name)
    return total


class Used(NamedTuple):
    """What a process used: seconds and bytes."""

    wall: float
    cpu: float
    resident: int
    own: int
    read: int
    written: int


def run(command: list[str], log: Path, threads: int) -> Used:
    """Run a command to its end and look at it all the while.

    Raises:
        SystemExit: It failed; its last words.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    begun = time.perf_counter()
    resident = own = 0
    disk = [0, 0]
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
        home = Path(f"/proc/{process.pid}")
        while True:
            try:
                held = _fields(home / "status")
                resident = max(resident, held.get("VmHWM", 0) << 10)
                own = max(own, held.get("RssAnon", 0) << 10)
                counted = _fields(home / "io")
                disk = [counted.get("read_bytes", disk[0]), counted.get("write_bytes", disk[1])]
            except OSError:
                pass
            ended, status, spent = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}:\n{log.read_text()[-3000:]}")
    return Used(time.perf_counter() - begun, spent.ru_utime + spent.ru_stime, resident, own, *disk)


def _fields(path: Path) -> dict[str, int]:
    """Numbers of a file of /proc by their names."""
    pairs = (line.split()[:2] for line in path.read_text().splitlines())
    return {pair[0].rstrip(":"): int(pair[1]) for pair in pairs if len(pair) > 1 and pair[1].isdigit()}


def matrix_rate(shape: Shape, rows: int, seconds: float = 2.0) -> tuple[float, float]:
    """Floating-point operations a second of the shape's largest product, by wall and by CPU time."""
    weight, inputs = torch.randn(shape.inner, shape.hidden), torch.randn(rows, shape.hidden)
    torch.mm(inputs, weight.T)
    wall, cpu, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        torch.mm(inputs, weight.T)
        done += 2 * rows * weight.numel()
    return done / (time.perf_counter() - wall), done / (time.process_time() - cpu)


def disk_rate(folder: Path) -> float:
    """Bytes a second of reading a file that no cache holds any more; at most 2 GB of it."""
    path = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begun, done = time.perf_counter(), 0
        while done < 2 << 30 and (piece := file.read(1 << 24)):
            done += len(piece)
    return done / (time.perf_counter() - begun)


class Step(NamedTuple):
    """A step: its command, and what it has to do at least; ``forwards`` and ``head`` in products a token."""

    name: str
    command: list[str]
    forwards: float
    head: float
    read: Callable[[], int]
    written: Callable[[], int]


def size(*paths: Path) -> int:
    """Bytes of files, and of all files of folders."""
    files = (inside for path in paths for inside in (path.rglob("*") if path.is_dir() else [path]))
    return sum(path.stat().st_size for path in files if path.is_file())


def steps(home: Path, chosen: argparse.Namespace) -> list[Step]:
    """The steps in their order."""
    python = [sys.executable, "-m", "qarat"]
    model, stats, menu, plan = home / "model", home / "stats.safetensors", home / "menu.json", home / "plan.json"
    quantized, exported = home / "quantized", home / "exported"
    machine = ["--threads", str(chosen.threads), *(["--memory", chosen.memory] if chosen.memory else [])]
    text = ["--samples", str(chosen.windows), "--report-samples", str(chosen.windows), "--length", str(chosen.length)]
    low = ["--low", chosen.low]
    every, nothing = lambda: size(model), lambda: 0
    plans = 3  # float, the plan and the one that protects nothing
    given = [
        ("profile", [model, *text, *low, "-o", stats], 1, 0, every, lambda: size(stats)),
        (
            "damage",
            [model, *text, "--stats", stats, "--schemes", chosen.low, "-o", menu],
            4,
            2,
            lambda: 2 * size(model),
            nothing,
        ),
        (
            "plan",
            [model, *text, *low, "--stats", stats, "--menu", menu, "--sites", *SITES, "--no-rewrites", "-o", plan],
            plans,
            plans,
            lambda: plans * size(model),
            nothing,
        ),
        (
            "quantize",
            [model, *text, "--plan", plan, "--stats", stats, "-o", quantized],
            0,
            0,
            every,
            lambda: size(quantized),
        ),
        ("export", [quantized, "-o", exported], 0, 0, lambda: size(quantized), lambda: size(exported)),
        (
            "verify",
            [exported, "--against", quantized, *text],
            2,
            2,
            lambda: 2 * size(quantized) + size(exported),
            nothing,
        ),
    ]
    own = {"export": []}
    return [
        Step(name, [*python, name, *map(str, words), *own.get(name, machine)], *least)
        for name, words, *least in given
        if name in chosen.steps
    ]


def products(shape: Shape, tokens: int, length: int) -> tuple[float, float]:
    """Floating-point operations of one forward through the blocks, and of one through the head."""
    block = sum(
        a[0] * a[1] for name, a in tensors_of(shape).items() if name.startswith("model.layers.0.") and len(a) > 1
    )
    attention = 2 * 2 * shape.hidden * (length + 1) / 2  # as many keys as causality lets a token see
    return tokens * shape.blocks * (2 * block + attention), tokens * 2.0 * shape.hidden * shape.vocabulary


def check_room(home: Path, shape: Shape) -> None:
    """Refuse a disk that would be full before the end.

    Raises:
        SystemExit: With the bytes that are needed and there.
    """
    total = 2 * sum(torch.Size(s).numel() for s in tensors_of(shape).values())
    needed, free = int(total * 2.1) + (1 << 30), shutil.disk_usage(home).free
    if needed > free:
        raise SystemExit(
            f"{home} has {free:,} bytes free, and {needed:,} are needed: {total:,} for the checkpoint, as many for the "
            "quantized folder and its export, and states of a pass; give a --folder with more"
        )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama-1.1b")
    parser.add_argument("--blocks", type=int, help="another depth")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", default="", help="bound on memory, as of qarat's --memory")
    parser.add_argument("--low", default="w=int8/channel a=int8/tensor/static", help="scheme of what is not protected")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where everything lies")
    every = ["profile", "damage", "plan", "quantize", "export", "verify"]
    parser.add_argument("--steps", nargs="+", choices=every, default=every, help="only these; each needs those before")
    parser.add_argument("--keep", action="store_true", help="leave the folder, and take one that was left")
    parser.add_argument("-o", "--output", type=Path, help="write the JSON here too")
    return parser.parse_args()


def main() -> None:
    """Make the checkpoint, run the steps, print a table and the JSON, remove everything."""
    chosen = arguments()
    torch.set_num_threads(chosen.threads)
    shape = SHAPES[chosen.shape]
    if chosen.blocks:
        shape = shape._replace(blocks=chosen.blocks)
    home = chosen.folder / f"shape-{chosen.shape}-{shape.blocks}"
    rows: list[dict[str, object]] = []
    try:
        if not (home / "model" / "config.json").is_file():
            check_room(chosen.folder, shape)
            begun = time.perf_counter()
            total = write_checkpoint(shape, home / "model", chosen.length)
            print(f"{total:,} bytes written in {time.perf_counter() - begun:.0f} s", flush=True)
        rate = disk_rate(home / "model")
        forward, head = products(shape, chosen.windows * chosen.length, chosen.length)
        print(f"disk {rate / 1e9:.2f} GB/s", flush=True)
        for step in steps(home, chosen):
            before = matrix_rate(shape, min(1024, chosen.windows * chosen.length))
            used = run(step.command, home / f"{step.name}.log", chosen.threads)
            after = matrix_rate(shape, min(1024, chosen.windows * chosen.length))
            wall, cpu = ((a + b) / 2 for a, b in zip(before, after, strict=True))
            flops = step.forwards * forward + step.head * head
            moved = (step.read() + step.written()) / rate
            row = {
                "step": step.name,
                **used._asdict(),
                "floor_products": flops / cpu,
                "floor_disk": moved,
                "times_floor_cpu": used.cpu / (flops / cpu + moved),
                "times_floor_wall": used.wall / (flops / wall + moved),
                "rate_wall": wall,
                "rate_cpu": cpu,
            }
            rows.append(row)
            print(line(row), flush=True)
            if chosen.output is not None:  # a run of hours is not to lose what it found
                chosen.output.write_text(json.dumps(report(chosen, shape, rows, rate), indent=1) + "\n")
        print(line(total_of(rows)))
        emit(report(chosen, shape, rows, rate), chosen.output)
    finally:
        if not chosen.keep:
            shutil.rmtree(home, ignore_errors=True)


def report(chosen: argparse.Namespace, shape: Shape, rows: list[dict[str, object]], rate: float) -> dict[str, object]:
    """What goes into the JSON."""
    return {
        "shape": shape._asdict(),
        "parameters": sum(torch.Size(s).numel() for s in tensors_of(shape).values()),
        "steps": rows,
        "all": total_of(rows),
        "disk_bytes_per_second": rate,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(chosen).items() if k != "output"},
        "machine": machine(),
    }


def total_of(rows: list[dict[str, object]]) -> dict[str, object]:
    """Sums of times and bytes, the largest of peaks."""

    def add(key: str) -> float:
        return sum(float(row[key]) for row in rows)  # type: ignore[arg-type]

    sums = {key: add(key) for key in ("wall", "cpu", "read", "written", "floor_products", "floor_disk")}
    peaks = {key: max(int(row[key]) for row in rows) for key in ("resident", "own")}  # type: ignore[call-overload]
    floor = sums["floor_products"] + sums["floor_disk"]
    walls = sum(float(row["wall"]) / float(row["times_floor_wall"]) for row in rows)  # type: ignore[arg-type]
    times = {"times_floor_cpu": sums["cpu"] / floor, "times_floor_wall": sums["wall"] / walls}
    return {"step": "all", **sums, **peaks, **times}


def line(row: dict[str, object]) -> str:
    """A row as a person reads it."""
    cells = [f"{row['step']:<9}"]
    cells += [f"{row[key]:8.1f} s {name}" for key, name in (("wall", "wall"), ("cpu", "cpu"))]
    cells += [f"{float(row[key]) / 1e6:7.0f} MB {name}" for key, name in (("resident", "resident"), ("own", "own"))]  # type: ignore[arg-type]
    cells += [f"floor {row['floor_products']:7.1f} + {row['floor_disk']:6.1f} s"]
    cells += [f"x{row['times_floor_cpu']:.2f} cpu x{row['times_floor_wall']:.2f} wall"]
    return "  ".join(cells)


if __name__ == "__main__":
    main()

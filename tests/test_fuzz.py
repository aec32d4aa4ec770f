"""Broken files of every kind, made by chance from a seed: each is read, or refused in words; never anything else.

Bytes are flipped, cut and repeated; JSON gets junk in the place of any of its values, keys that are gone or new, and
numbers that are absurd. A reader that hangs counts as one that fails.
"""

import copy
import io
import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from qarat.ground.errors import UserError
from qarat.jobs.run_steps import show_run
from qarat.jobs.verify import verify
from qarat.model.native import read_native, write_native
from qarat.model.opening import open_model
from qarat.stages.export.base import MARK, export_model
from qarat.stages.quantize import quantize
from qarat.surfaces.cli import main
from qarat.surfaces.terminal import render
from qarat.testing import tiny_checkpoint
from qarat.values.plan_files import decode_plan
from qarat.values.plans import assign
from qarat.values.records.files import decode_record
from qarat.values.schemes import LOW

Change = Callable[[bytes, random.Random], bytes]
SECONDS = 5  # a reader that takes longer hangs

NUMBERS = [0, 1, -1, 2, 7, 1.5, -0.0, 1e308, float("nan"), 10**6, 2**31, 2**63, 10**30]
WORDS = [
    "",
    "x",
    "\x00",
    "é",
    "../../x",
    "/etc/passwd",
    "1",
    "float",
    "int8",
    "w=int8/channel",
    "w=nope",
    "re:(",
    "re:.*",
]
WORDS += ["Linear", "model.layers.0", "model.layers.0.mlp.down_proj", "weight", "__metadata__"]
LISTS = [[], {}, [None], {"x": 1}, [[[]]], [1, 2, 3], [-1, 5], ["model.layers.0"], {"x": {"y": [{}]}}]
JUNK: list[Any] = [None, True, False, *NUMBERS, *WORDS, *LISTS]


def junk(chance: random.Random) -> Any:
    """One of them, and its own copy: it may be mutated in its turn."""
    return copy.deepcopy(chance.choice(JUNK))


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with every key or index in it, all the way down."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def mutate_json(text: bytes, chance: random.Random) -> bytes:
    """JSON that is still JSON, with one to three things wrong in it."""
    whole = json.loads(text)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        spots = list(places(whole))
        if not spots:
            break
        container, key = chance.choice(spots)
        match chance.randrange(5):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[chance.choice(WORDS)] = junk(chance)
            case 2:
                container[key] = json.loads(json.dumps(chance.choice(spots)[0]))
            case _:
                container[key] = junk(chance)
    return json.dumps(whole).encode()


def mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut out, repeated or put in."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(changed) + 1)
        end = min(len(changed), at + chance.choice((1, 2, 8, 64)))
        match chance.randrange(5):
            case 0:
                del changed[at:end]
            case 1:
                changed[at:at] = changed[at:end]
            case 2:
                changed[at:at] = bytes(chance.randrange(256) for _ in range(chance.choice((1, 8))))
            case 3:
                del changed[at:]
            case _:
                changed[at:end] = bytes(chance.randrange(256) for _ in range(end - at))
    return bytes(changed)


def mutate_text(text: bytes, chance: random.Random) -> bytes:
    return mutate_json(text, chance) if chance.random() < 0.8 else mutate_bytes(text, chance)


def mutate_header(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file: its header as JSON, the header's length, or bytes of both."""
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    kind = chance.random()
    if kind < 0.6:
        header = mutate_json(header, chance)
    elif kind < 0.8:
        header = mutate_bytes(header, chance)
    elif kind < 0.9:
        return mutate_bytes(data[: 8 + length], chance) + rest
    claimed = len(header) if kind < 0.95 else chance.choice((0, 1, length + 1, 2**31, 2**62, 2**64 - 1))
    return claimed.to_bytes(8, "little") + header + rest


def survives(read: Callable[[], object]) -> bool:
    """Whether it was read; a refusal in words is the other thing that may happen."""

    def hangs(*_: object) -> None:
        raise TimeoutError(f"not read within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    try:
        read()
        return True
    except UserError as error:
        if not str(error).strip():
            raise
        return False
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    return tiny_checkpoint(folder, hidden=8, intermediate=16, heads=2, kv_heads=1, blocks=1, vocabulary=32)


@pytest.fixture(scope="module")
def native(source: Path) -> Path:
    model = open_model(str(source))
    rules = [("0.down", "float"), ("0.o", "w=int8/channel")]
    plan = assign(model.fingerprint, 32, model.sites(), "w=int4/g4/asymmetric", rules)
    write_native(quantize(model, plan), plan, source.parent / "native")
    return source.parent / "native"


@pytest.fixture(scope="module")
def exported(native: Path) -> Path:
    model, plan = read_native(native)
    export_model(model, plan, native.parent / "exported", "compressed-tensors")
    return native.parent / "exported"


@pytest.fixture(scope="module")
def run(tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("fuzz-run")
    model = tiny_checkpoint(folder / "model", blocks=1, length=8)
    sizes = ["--samples", "2", "--report-samples", "2", "--length", "8", "--threads", "1", "--sites", "0.down"]
    assert (
        main(["run", str(model), "--calibration", str(tiny_text), *sizes, "--no-page", "-o", str(folder / "run")]) == 0
    )
    return folder / "run"


def open_and_run(folder: Path) -> None:
    """A float model, from its config to hidden states behind its last block."""
    model = open_model(str(folder))
    hidden = model.embed(torch.zeros(1, 4, dtype=torch.long))
    for index, block in model.walk():
        hidden = model.run_block(index, block, hidden)


def rendered(*records: Any, title: str = "", **context: Any) -> None:
    Console(file=io.StringIO(), width=100).print(render(*records, **context))


def show(folder: Path) -> None:
    """A run's story."""
    show_run(folder, rendered, LOW)


def fuzz(folder: Path, file: str, change: Change, read: Callable[[Path], object], times: int) -> None:
    """Break a file of a folder many times, and read the folder."""
    path = folder / file
    whole, chance, survived = path.read_bytes(), random.Random(file), 0
    assert survives(lambda: read(folder))
    try:
        for number in range(times):
            path.write_bytes(change(whole, chance))
            try:
                survived += survives(lambda: read(folder))
            except BaseException as error:
                kept = shutil.copyfile(path, folder.parent / f"broken-{path.name}")
                raise AssertionError(f"mutation {number} of {file}, kept in {kept}: {error!r}") from error
    finally:
        path.write_bytes(whole)
    assert survived < times  # or else they break nothing


@pytest.mark.parametrize(
    ("file", "change", "times"),
    [
        ("config.json", mutate_text, 300),
        ("generation_config.json", mutate_text, 60),
        ("tokenizer_config.json", mutate_text, 60),
        ("model.safetensors", mutate_header, 300),
    ],
)
def test_a_float_model(file: str, change: Change, times: int, source: Path):
    fuzz(source, file, change, open_and_run, times)


@pytest.mark.parametrize(
    ("file", "change", "times"),
    [
        ("plan.json", mutate_text, 400),
        ("qarat.index.json", mutate_text, 200),
        ("block-000.safetensors", mutate_header, 200),
    ],
)
def test_a_quantized_folder(file: str, change: Change, times: int, native: Path):
    fuzz(native, file, change, lambda folder: list(read_native(folder)[0].walk()), times)


@pytest.mark.parametrize(
    ("file", "change", "times"),
    [
        ("plan.json", mutate_text, 100),
        ("menu.json", mutate_text, 100),
        ("protection.json", mutate_text, 100),
        ("evaluation-plan.json", mutate_text, 100),
        ("continuations.json", mutate_text, 50),
        ("stats.safetensors", mutate_header, 100),
    ],
)
def test_a_record(file: str, change: Change, times: int, run: Path):
    context: dict[str, Any] = {"low": None} if file.startswith("stats") else {}
    fuzz(run, file, change, lambda folder: rendered(decode_record(folder / file), **context), times)


@pytest.mark.parametrize(("file", "times"), [("manifest.json", 100), ("plan.json", 30), ("protection.json", 30)])
def test_a_run(file: str, times: int, run: Path):
    fuzz(run, file, mutate_text, show, times)


@pytest.mark.parametrize(
    ("file", "change", "times"),
    [("config.json", mutate_text, 300), ("model.safetensors", mutate_header, 150)],
)
def test_an_export(file: str, change: Change, times: int, exported: Path):
    fuzz(exported, file, change, verify, times)


def test_the_plan_beside_an_export(exported: Path):
    fuzz(exported, MARK, mutate_text, lambda folder: decode_plan((folder / MARK).read_bytes()), 200)

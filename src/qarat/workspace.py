"""Where and how work runs: the runtime's limits, files written whole, and a run's folder that survives a kill.

A run works in ``OUT.partial``. Each step has a key, the hash of everything that decides its bytes; a step whose key and
files are there already is not run again, so the same command after a kill goes on from the last finished step and ends
with the same bytes. Times and machine names go to ``log.jsonl``, which no hash covers.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch

from qarat.errors import UserError

__all__ = ["Estimate", "Progress", "Run", "Runtime", "explained", "hash_json", "no_progress", "parse_size", "write_whole"]

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the units done and the units in all."""


def no_progress(stage: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


class Runtime(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where work runs and what it may use; never part of a result's identity, save for the dtype.

    Attributes:
        device: ``cpu`` or ``cuda``.
        dtype: Arithmetic of the walk, ``float32`` or ``bfloat16``.
        threads: CPU threads; 0 leaves torch's own choice.
        memory: Bytes that weights kept in memory may take; 0 is half of what is free.
        batch_tokens: Tokens that go through a block at once.
    """

    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 0
    memory: int = 0
    batch_tokens: int = 4096

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]

    def memory_bytes(self) -> int:
        if self.memory:
            return self.memory
        pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return pages // 2


class Estimate(msgspec.Struct, frozen=True):
    """What a run would take.

    Attributes:
        steps: Name and seconds.
        memory_bytes: Weights and hidden states at their peak.
        disk_bytes: Of the quantized folder.
        rate: Matrix rate measured on this machine, floating-point operations a second.
    """

    steps: tuple[tuple[str, float], ...]
    memory_bytes: int
    disk_bytes: int
    rate: float


def parse_size(text: str) -> int:
    """Bytes of a size such as ``8GB`` or ``512MiB``.

    Raises:
        UserError: Malformed.
    """
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = text[len(number) :].strip().lower()
    try:
        return int(float(number) * units[unit])
    except (ValueError, KeyError):
        raise UserError(f"{text!r} is no size; write for example 8GB, 512MiB or a number of bytes") from None


def hash_json(value: object) -> str:
    """SHA-256 of a value's JSON with sorted keys."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file beside its place and rename it, so that a kill or a full disk leaves what was there.

    Raises:
        UserError: No space, or no permission; the partial file is removed.
    """
    partial = path.with_name(f".{path.name}.partial")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an operating-system error on the way to ``path`` into one that says what to do."""
    try:
        yield
    except OSError as error:
        remedy = {
            errno.ENOSPC: "no space left; free some and run the same command again, it continues",
            errno.EACCES: "no permission to write there",
            errno.EROFS: "the file system is read-only",
        }.get(error.errno or 0, str(error))
        raise UserError(f"cannot write {path}: {remedy}") from error


class Run:
    """A run's folder while it is being made: steps done so far, and the log.

    Attributes:
        out: Where the finished run will lie.
        folder: ``OUT.partial``, where it is made.
    """

    def __init__(self, out: Path, *, overwrite: bool = False) -> None:
        """Begin, or go on with, the run that will lie at ``out``.

        Raises:
            UserError: If ``out`` exists already and may not be overwritten.
        """
        if out.exists() and not overwrite:
            raise UserError(f"{out} exists already; give another -o, or --overwrite to replace it")
        self.out = out
        self.folder = out.with_name(out.name + ".partial")
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._manifest_file = self.folder / "manifest.json"
        self.steps: dict[str, dict[str, str]] = {}
        if self._manifest_file.exists():
            try:
                self.steps = msgspec.json.decode(self._manifest_file.read_bytes(), type=dict[str, dict[str, str]])
            except msgspec.DecodeError:
                raise UserError(f"{self._manifest_file} is damaged; delete {self.folder} to begin anew") from None

    def path(self, name: str) -> Path:
        return self.folder / name

    def step(self, name: str, key: object, outputs: list[str], work: Callable[[], None]) -> bool:
        """Run a step unless its outputs are there from an earlier call with the same key.

        Args:
            name: Of the step.
            key: Everything that decides the outputs' bytes.
            outputs: File names in the folder, each checked by hash before it is trusted.
            work: Writes the outputs.

        Returns:
            Whether the work was done now.
        """
        wanted = hash_json(key)
        known = self.steps.get(name, {})
        if known.get("key") == wanted and all(known.get(o) == _file_hash(self.path(o)) for o in outputs):
            self.log(step=name, reused=True)
            return False
        begun = time.perf_counter()
        work()
        hashes: dict[str, str] = {}
        for output in outputs:
            digest = _file_hash(self.path(output))
            if digest is None:
                raise RuntimeError(f"step {name} did not write {output}")
            hashes[output] = digest
        self.steps[name] = {"key": wanted, **hashes}
        write_whole(self._manifest_file, json.dumps(self.steps, indent=1, sort_keys=True) + "\n")
        self.log(step=name, seconds=round(time.perf_counter() - begun, 3))
        return True

    def log(self, **fields: object) -> None:
        """Append a line to the log that no hash covers."""
        with explained(self.folder), self.path("log.jsonl").open("a") as file:
            file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **fields}) + "\n")

    def finish(self) -> None:
        """Put the finished folder into place, replacing an older run only now."""
        with explained(self.out):
            if self.out.exists():
                retired = self.out.with_name(self.out.name + ".replaced")
                shutil.rmtree(retired, ignore_errors=True)
                os.replace(self.out, retired)
                os.replace(self.folder, self.out)
                shutil.rmtree(retired)
            else:
                os.replace(self.folder, self.out)


def _file_hash(path: Path) -> str | None:
    """SHA-256 of a file, or of every file of a folder with its name; None if there is none."""
    if path.is_dir():
        parts = [(str(p.relative_to(path)), _file_hash(p)) for p in sorted(path.rglob("*")) if p.is_file()]
        return hash_json(parts)
    if not path.is_file():
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()

"""Where and how work runs: the runtime's limits, files written whole, and a run's folder that survives a kill.

A run works in ``OUT.partial``. Each step has a key, the hash of everything that decides its bytes; a step whose key and
files are there already is not run again, so the same command after a kill goes on from the last finished step and ends
with the same bytes. Times and machine names go to ``log.jsonl``, which no hash covers.

A folder is replaced by two renames, with what was there kept as ``OUT.replaced`` in between; so at any moment both the
old and the new are whole somewhere. Nothing is ever replaced or deleted that lacks the mark of what qarat writes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import torch

from qarat.errors import UserError

__all__ = [
    "Estimate",
    "Progress",
    "Run",
    "Runtime",
    "check_file",
    "check_folder",
    "explained",
    "hash_json",
    "new_folder",
    "no_progress",
    "put_into_place",
    "read_command",
    "read_manifest",
    "write_whole",
]

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
        """The dtype itself."""
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]

    def memory_bytes(self) -> int:
        """The memory bound in bytes; half of what is free at the moment, where none was given."""
        if self.memory:
            return self.memory
        pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return pages // 2


class Estimate(msgspec.Struct, frozen=True):
    """What a run would take.

    Attributes:
        steps: Name to seconds.
        memory_bytes: Weights and hidden states at their peak.
        disk_bytes: Of what would be written.
        rate: Matrix rate measured on this machine, floating-point operations a second.
    """

    steps: dict[str, float]
    memory_bytes: int
    disk_bytes: int
    rate: float


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
    """Turn an operating-system error on the way to ``path`` into one that says what to do.

    Raises:
        UserError: Instead of any `OSError` inside the context.
    """
    try:
        yield
    except OSError as error:
        remedy = {
            errno.ENOSPC: "no space left; free some and run the same command again",
            errno.EDQUOT: "the quota is used up; free some space and run the same command again",
            errno.EACCES: "no permission to write there",
            errno.EROFS: "the file system is read-only",
        }.get(error.errno or 0, str(error))
        raise UserError(f"cannot write {path}: {remedy}") from error


def check_file(path: Path) -> None:
    """Check, before any work, that a file can be written.

    Raises:
        UserError: If a folder is in its place, or its folder cannot be written to.
    """
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; give -o a file's name")
    _check_parent(path)


def check_folder(out: Path, mark: str, *, overwrite: bool) -> None:
    """Check, before any work, that a folder can be put at ``out``.

    Args:
        out: Where to.
        mark: A file that every folder of this kind holds.
        overwrite: Whether one of this kind may be replaced; of another kind, none may.

    Raises:
        UserError: If there is something that may not be replaced, or no permission.
    """
    if out.exists():
        if not overwrite:
            raise UserError(f"{out} exists already; give another -o, or --overwrite to replace it")
        if not _is_ours(out, mark):
            raise UserError(f"{out} is not from this command (no {mark}), so --overwrite leaves it; give another -o")
    for spare in (_partial(out), _replaced(out)):
        if spare.exists() and not _is_ours(spare, mark):
            raise UserError(f"{spare} is in the way, and holds no {mark}; move it, or give another -o")
    _check_parent(out)


@contextmanager
def new_folder(out: Path, mark: str) -> Iterator[Path]:
    """An empty ``OUT.partial`` to be filled; put into place at the end, deleted after an error.

    Raises:
        UserError: As `check_folder` with ``overwrite``; or it cannot be written.
    """
    check_folder(out, mark, overwrite=True)
    partial = _partial(out)
    with explained(out):
        _delete(partial, mark)
        partial.mkdir(parents=True)
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        put_into_place(out, mark)


def put_into_place(out: Path, mark: str) -> None:
    """Rename the finished ``OUT.partial`` to ``out``; what was there is deleted only then."""
    retired = _replaced(out)
    with explained(out):
        if out.exists():
            _delete(retired, mark)
            os.replace(out, retired)
        os.replace(_partial(out), out)
        _delete(retired, mark)


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _replaced(out: Path) -> Path:
    return out.with_name(out.name + ".replaced")


def _is_ours(path: Path, mark: str) -> bool:
    """Whether a folder was written by qarat, or is empty."""
    return path.is_dir() and ((path / mark).is_file() or all(p.match(".*.partial") for p in path.iterdir()))


def _delete(folder: Path, mark: str) -> None:
    """Delete a folder, the mark last: cut short, it is still known as ours."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != mark:
                path.unlink()
        shutil.rmtree(folder)


def _check_parent(path: Path) -> None:
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir():
        raise UserError(f"cannot write {path}: {parent} is no folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: no permission to write in {parent}")


class Run:
    """A run's folder while it is being made: steps done so far, and the log.

    Attributes:
        out: Where the finished run will lie.
        folder: ``OUT.partial``, where it is made.
        steps: Name of each finished step to its key and the hashes of its files.
    """

    MANIFEST, LOG = "manifest.json", "log.jsonl"

    def __init__(self, out: Path, *, overwrite: bool = False) -> None:
        """Check that a run may be put at ``out``; nothing is written yet.

        Raises:
            UserError: If ``out`` exists already and may not be overwritten, or cannot be written.
        """
        check_folder(out, self.MANIFEST, overwrite=overwrite)
        self.out = out
        self.folder = _partial(out)
        self.steps: dict[str, dict[str, str]] = {}

    def begin(self, **facts: object) -> None:
        """Make the folder, or go on with the one that an earlier call left; the facts go to the log.

        Raises:
            UserError: If it cannot be written, or its manifest is damaged.
        """
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for stray in self.folder.glob(".*.partial"):  # a file that a kill cut short
                stray.unlink()
        manifest = self.path(self.MANIFEST)
        if manifest.exists():
            self.steps = read_manifest(self.folder)
        else:
            self._write_manifest()
        self.log(**facts)

    def path(self, name: str) -> Path:
        """Where the file or folder of that name lies while the run is being made."""
        return self.folder / name

    def step(
        self, name: str, key: object, outputs: Sequence[str], work: Callable[[], None], after: Sequence[str] = ()
    ) -> bool:
        """Run a step unless its outputs are there from an earlier call with the same key.

        Args:
            name: Of the step.
            key: Everything that decides the outputs' bytes.
            outputs: File names in the folder, each checked by hash before it is trusted.
            work: Writes the outputs.
            after: Steps whose outputs this one reads; if they changed, it is done again.

        Returns:
            Whether the work was done now.
        """
        wanted = hash_json([key, *(self.steps[step] for step in after)])
        known = self.steps.get(name, {})
        if known.get("key") == wanted and all(_file_hash(self.path(o)) == known.get(o, "") for o in outputs):
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
        self._write_manifest()
        self.log(step=name, seconds=round(time.perf_counter() - begun, 3))
        return True

    def log(self, **fields: object) -> None:
        """Append a line to the log that no hash covers."""
        with explained(self.folder), self.path(self.LOG).open("a") as file:
            file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **fields}) + "\n")

    def leave(self, *begun: str) -> None:
        """Go away before the end: what was finished stays, and where that is nothing, nothing does.

        Args:
            *begun: Files of a step that goes on where it was; one of them there counts as something.
        """
        if (
            not self.steps
            and not any(self.path(name).exists() for name in begun)
            and _is_ours(self.folder, self.MANIFEST)
        ):
            _delete(self.folder, self.MANIFEST)

    @contextmanager
    def work(self, *begun: str, **facts: object) -> Iterator[None]:
        """Begin, and where an exception ends the work, leave; arguments and errors as `leave` and `begin`."""
        try:
            self.begin(**facts)
            yield
        except BaseException:
            self.leave(*begun)
            raise

    def finish(self) -> None:
        """Put the finished folder into place, replacing an older run only now."""
        put_into_place(self.out, self.MANIFEST)

    def _write_manifest(self) -> None:
        write_whole(self.path(self.MANIFEST), json.dumps(self.steps, indent=1, sort_keys=True) + "\n")


def read_manifest(folder: Path) -> dict[str, dict[str, str]]:
    """The finished steps of a run's folder, with their keys and the hashes of their files.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    path = folder / Run.MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} holds no run of qarat (no {Run.MANIFEST})")
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, str]])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is damaged; delete {folder} and run the command again") from None


def read_command(folder: Path) -> str:
    """The command that last worked on a run's folder, as its log has it; empty if it has none."""
    found = ""
    path = folder / Run.LOG
    for line in path.read_text().splitlines() if path.is_file() else ():
        with suppress(ValueError):  # a line that a kill cut short
            found = json.loads(line).get("command", found)
    return found


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

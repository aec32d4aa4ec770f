"""Files and folders written whole: after a kill or a full disk, what was there before is there still.

A folder is replaced by two renames, with what was there kept as ``OUT.replaced`` in between; so at any moment both the
old and the new are whole somewhere. Nothing is ever replaced or deleted that lacks the mark of what qarat writes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from qarat.ground.errors import UserError


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
def explained(path: Path) -> Generator[None]:
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
        }.get(error.errno or 0, error.strerror or str(error))
        raise UserError(f"cannot write {path}: {remedy}") from error


def check_file(path: Path, *, overwrite: bool) -> None:
    """Check, before any work, that a file can be written.

    Args:
        path: Of the file.
        overwrite: Whether one that is there may be replaced.

    Raises:
        UserError: If a folder is in its place, or a file that may not be replaced, or its folder cannot be written to.
    """
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; give `out` a file's name")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; give another `out`, or `overwrite` to replace it")
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
            raise UserError(f"{out} exists already; give another `out`, or `overwrite` to replace it")
        if not is_ours(out, mark):
            raise UserError(f"{out} is not from this command (no {mark}), so `overwrite` leaves it; give another `out`")
    for spare in (partial_of(out), _replaced(out)):
        if spare.exists() and not is_ours(spare, mark):
            raise UserError(f"{spare} is in the way, and holds no {mark}; move it, or give another `out`")
    _check_parent(out)


@contextmanager
def new_folder(out: Path, mark: str) -> Generator[Path]:
    """An empty ``OUT.partial`` to be filled; put into place at the end, deleted after an error.

    Raises:
        UserError: As `check_folder` with ``overwrite``; it cannot be written, or another process is writing it.
    """
    check_folder(out, mark, overwrite=True)
    partial = partial_of(out)
    with explained(out), held(partial):
        _empty(partial, mark)
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        put_into_place(out, mark)


def check_room(out: Path, needed: int) -> None:
    """Check, before any work, that a disk has room; what an earlier call left there counts as written.

    Args:
        out: What will be written, or the folder for it.
        needed: Bytes that it will take.

    Raises:
        UserError: Saying how much there is, and how much it takes.
    """
    partial = partial_of(out)
    done = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file()) if partial.is_dir() else 0
    home = next(p for p in out.absolute().parents if p.exists())
    if (free := shutil.disk_usage(home).free) + done < needed:
        raise UserError(
            f"{home} has {free:,} bytes free, and {out.name} will take {needed:,}; free some, or give another `out`"
        )


@contextmanager
def held(folder: Path) -> Generator[None]:
    """Make a folder if it is not there, and keep other processes that ask for it away; a kill lets go of it.

    Raises:
        UserError: Another process has it, or it cannot be written.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another command is at work in {folder}; let it end (or end it: the same command goes on where it "
                "was), or give another `out`"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def put_into_place(out: Path, mark: str) -> None:
    """Rename the finished ``OUT.partial`` to ``out``; what was there is deleted only then."""
    retired = _replaced(out)
    with explained(out):
        if out.exists():
            delete(retired, mark)
            os.replace(out, retired)
        os.replace(partial_of(out), out)
        delete(retired, mark)


def not_there(path: Path, wanted: str = "file") -> str:
    """What is wrong with a path that is no file, or, as ``wanted`` says, no folder."""
    if path.exists():
        return f"{path} is a {'folder' if path.is_dir() else 'file'}, not a {wanted}"
    return f"no such {wanted}: {path}"


def partial_of(out: Path) -> Path:
    """Where a folder is made before it is put at ``out``."""
    return out.with_name(out.name + ".partial")


def _replaced(out: Path) -> Path:
    return out.with_name(out.name + ".replaced")


def is_ours(path: Path, mark: str) -> bool:
    """Whether a folder was written by qarat, or is empty."""
    return path.is_dir() and ((path / mark).is_file() or all(p.match(".*.partial") for p in path.iterdir()))


def delete(folder: Path, mark: str) -> None:
    """Delete a folder, the mark last: cut short, it is still known as ours."""
    if folder.is_dir():
        _empty(folder, mark)
        folder.rmdir()


def _empty(folder: Path, mark: str) -> None:
    for path in sorted(folder.iterdir(), key=lambda path: path.name == mark):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _check_parent(path: Path) -> None:
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir():
        raise UserError(f"cannot write {path}: {parent} is no folder")
    with explained(path), tempfile.TemporaryFile(dir=parent):  # permissions do not tell all, least of all to root
        pass


def file_hash(path: Path) -> str | None:
    """SHA-256 of a file, or of every file of a folder with its name; None if there is none."""
    if path.is_dir():
        parts = [(str(p.relative_to(path)), file_hash(p)) for p in sorted(path.rglob("*")) if p.is_file()]
        return hash_json(parts)
    if not path.is_file():
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()

"""Where the tensors of a Hugging Face folder lie: its safetensors files, and what their headers say."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from qarat.ground.errors import UserError
from qarat.model.recognition import other_weights

_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}


class Entry(NamedTuple):
    """Where a tensor lies and what its file's header says of it; ``span`` is its first byte there, and how many."""

    dtype: str
    path: Path
    shape: tuple[int, ...]
    span: tuple[int, int] = (0, 0)

    @property
    def bytes(self) -> int:
        """Size of the tensor in that dtype."""
        return math.prod(self.shape) * _BYTES.get(self.dtype, 1)


def locate_tensors(folder: Path, index: str = "model.safetensors.index.json") -> dict[str, Entry]:
    """Tensor name to where it lies, from every shard's header.

    Args:
        folder: Where they lie.
        index: Name of the file that says which shards there are, if there is one.

    Raises:
        UserError: No weights, a tensor in two files, or a file truncated or damaged; or as `_weight_files`.
    """
    where: dict[str, Entry] = {}
    for path in _weight_files(folder, folder / index):
        try:
            spans = _spans(path)
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    piece = file.get_slice(name)
                    if name in where:
                        raise UserError(
                            f"{name} is in both {where[name].path} and {path}; remove the file that is not meant"
                        )
                    where[name] = Entry(piece.get_dtype(), path, tuple(piece.get_shape()), spans.get(name, (0, 0)))
        except (SafetensorError, OSError) as error:
            if _begins(path, b"version https://git-lfs"):
                raise UserError(f"{path} is Git LFS's pointer to the weights; fetch them: git lfs pull") from None
            raise UserError(f"{path} is truncated or damaged: {error}; fetch or save it again") from error
    return where


def _spans(path: Path) -> dict[str, tuple[int, int]]:
    """Where in a safetensors file each tensor lies; empty for a file that its library will find damaged."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header: dict[str, Any] = json.loads(file.read(size if size < path.stat().st_size else 0))
            lie = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
            return {name: (8 + size + begin, end - begin) for name, (begin, end) in lie.items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            return {}


def expect(entries: Iterable[Entry]) -> None:
    """Ask the system to bring tensors from the disk into its cache; nobody waits for it, and nothing is held here."""
    if not hasattr(os, "posix_fadvise"):
        return
    by_file: dict[Path, list[tuple[int, int]]] = {}
    for entry in entries:
        by_file.setdefault(entry.path, []).append(entry.span)
    for path, spans in by_file.items():
        with suppress(OSError):  # what cannot be read will be said by who reads it
            descriptor = os.open(path, os.O_RDONLY)
            try:
                for begin, size in spans:
                    os.posix_fadvise(descriptor, begin, size, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)


def _begins(path: Path, mark: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(mark)) == mark


def _weight_files(folder: Path, index: Path) -> list[Path]:
    """The index's shards, else ``model.safetensors``, else all there are but an adapter's.

    Raises:
        UserError: No weights, or not all of them; an index that is damaged, names files outside the folder or missing
            ones, or is of another save than the files beside it.
    """
    single = folder / "model.safetensors"
    files = sorted(set(folder.glob("*.safetensors")) - {folder / "adapter_model.safetensors"})
    shards = {path.name for path in files if _SHARD.fullmatch(path.name)}
    if index.is_file():
        paths = _indexed(index, files)
        strays = shards - {path.name for path in paths}
        if single in files and single not in paths:  # transformers would read it, and not the index
            strays.add(single.name)
        if strays:
            listed = ", ".join(sorted(strays))
            raise UserError(
                f"{folder} holds weights that {index.name} does not name: {listed}; remove what is not meant"
            )
        return paths
    if single in files:
        return [single]
    if not files:
        there = other_weights([path.name for way in ("*", "*/*") for path in folder.glob(way)])
        raise UserError(
            f"{folder} holds no safetensors weights"
            + (f", but {there}" if there else "; fetch them, or convert the checkpoint to safetensors first")
        )
    for name in sorted(shards):
        number = name.removesuffix(".safetensors").rpartition("-")[2]
        of_these = sum(other.endswith(f"-of-{number}.safetensors") for other in shards)
        if of_these != int(number):
            raise UserError(f"{folder} holds {of_these} of {int(number)} shards (…-of-{number}); fetch the others")
    return files


def _indexed(index: Path, files: Sequence[Path]) -> list[Path]:
    """The shards that an index names; errors as of `_weight_files`."""
    folder = index.parent
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [folder / name for name in names]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is damaged: {error}; fetch or save it again") from error
    if outside := [str(n) for n, p in zip(names, paths, strict=True) if p.parent.resolve() != folder.resolve()]:
        raise UserError(f"{index} names files outside the folder: {', '.join(outside)}; correct it, or fetch it again")
    missing = [p.name for p in paths if not p.is_file()]
    if missing and files and not set(files) & set(paths):
        there = ", ".join(path.name for path in files)
        raise UserError(
            f"{index} is of another save: it names {', '.join(missing)}, and {there} is what lies there; remove the "
            "index if that is all of the model, or fetch what it names"
        )
    if missing:
        raise UserError(f"{index} names shards that are missing: {', '.join(missing)}; fetch them into {folder}")
    if not paths:
        raise UserError(f"{index} names no weights; fetch or save it again")
    return paths

"""Safetensors files written while the tensors come, so that no file has to fit into memory.

The safetensors library writes a file from all its tensors at once. Here the headers, which follow from names, dtypes
and shapes, are written first, and each tensor then goes to its place. Tensors lie as the library lays them: those with
the widest elements first, then by name, so that each is aligned.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from qarat.model.folders import INDEX, KINDS

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Name of a tensor to its dtype and shape, in the model's order."""


def shard_names(layout: Layout, groups: Mapping[str, str]) -> dict[str, str]:
    """Name of every tensor to the file it goes to: together what lay together, under the usual names.

    Args:
        layout: The tensors; what replaces ``X.weight`` (``X.weight_scale``, …) goes where that lay, and what belongs to
            no weight (scales of a cache) to the tensor before it.
        groups: Name of every float tensor to the file it lay in; only whether two are equal matters.
    """
    home: dict[str, str] = {}
    for name in layout:
        module = name.rpartition(".")[0]
        home[name] = groups.get(name) or groups.get(f"{module}.weight") or next(reversed(home.values()), "")
    order = {group: number for number, group in enumerate(sorted(set(home.values())), start=1)}
    if len(order) == 1:
        return dict.fromkeys(layout, "model.safetensors")
    return {name: f"model-{order[group]:05}-of-{len(order):05}.safetensors" for name, group in home.items()}


class ShardWriter:
    """A folder's safetensors files while they are written, and their index where there are several."""

    def __init__(self, folder: Path, layout: Layout, files: Mapping[str, str]) -> None:
        """Write headers and index; the tensors are still to come.

        Args:
            folder: Where to.
            layout: Every tensor.
            files: Name of every tensor to its file.
        """
        self._folder, self._layout, self._files = folder, layout, files
        self._offsets: dict[str, int] = {}
        self._missing = set(layout)
        for file in sorted(set(files.values())):
            self._begin(file, [name for name in layout if files[name] == file])
        if len(set(files.values())) > 1:
            index = {"metadata": {"total_size": sum(map(size_of, layout.values()))}, "weight_map": dict(files)}
            (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Write some of the tensors.

        Raises:
            ValueError: A tensor that is not in the layout, or of another dtype or shape: a fault of the exporter.
        """
        for name, tensor in tensors.items():
            made = tensor.dtype, tuple(tensor.shape)
            if made != self._layout.get(name) or name not in self._missing:
                raise ValueError(f"{name}: {made} was made, {self._layout.get(name)} announced")
            with (self._folder / self._files[name]).open("r+b") as file:
                file.seek(self._offsets[name])
                file.write(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
            self._missing.remove(name)

    def finish(self) -> None:
        """Check that every tensor was written.

        Raises:
            ValueError: Some were not: a fault of the exporter.
        """
        if self._missing:
            raise ValueError(f"announced and not made: {', '.join(sorted(self._missing))}")

    def _begin(self, file: str, names: list[str]) -> None:
        """Write a file's header and make it as long as it will be."""
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in sorted(names, key=lambda name: (-self._layout[name][0].itemsize, name)):
            dtype, shape = self._layout[name]
            end = offset + size_of(self._layout[name])
            header[name] = {"dtype": KINDS[dtype], "shape": shape, "data_offsets": [offset, end]}
            self._offsets[name], offset = offset, end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that the tensors begin aligned
        start = 8 + len(text)
        for name in names:
            self._offsets[name] += start
        with (self._folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(start + offset)


def size_of(entry: tuple[torch.dtype, tuple[int, ...]]) -> int:
    """Bytes of a tensor of that dtype and shape."""
    dtype, shape = entry
    return dtype.itemsize * math.prod(shape)

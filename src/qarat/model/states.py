"""Hidden states at block boundaries: in memory, or on disk until they are wanted.

A pass with gradients needs the states in front of every block. In memory they would be more than all else it holds;
yet each is written once, and read a whole pass later. And where a token set is large, the states of one boundary alone
are more than the memory bound has room for; a walk goes through them batch by batch, so they may lie in a file as well.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from qarat.ground.disk import explained


class Batches:
    """The tensors of one boundary, one a batch, each replaced by what comes of it; in memory or in a file.

    The file has no name, lies under ``TMPDIR``, and goes away with this object.
    """

    def __init__(self, tensors: Iterable[Tensor], *, on_disk: bool) -> None:
        """Take them one by one.

        Args:
            tensors: (windows, length, hidden) each, or of any shape.
            on_disk: Whether into a file.

        Raises:
            UserError: No room on disk.
        """
        self._places: list[Tensor | _Place] = []
        self._file: IO[bytes] | None = None
        if on_disk:
            with explained(_folder()):
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 -- open as long as this object is there
        end = 0
        for tensor in tensors:
            self._places.append(tensor if self._file is None else _Place(end, tensor))
            self[len(self) - 1] = tensor
            end += tensor.nbytes

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self._places)

    def __getitem__(self, index: int) -> Tensor:
        """A batch, on the device it came from."""
        place = self._places[index]
        if isinstance(place, Tensor):
            return place
        assert self._file is not None
        tensor = torch.empty(place.shape, dtype=place.dtype)
        self._file.seek(place.offset)
        self._file.readinto(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[attr-defined]
        return tensor.to(place.device)

    def __setitem__(self, index: int, tensor: Tensor) -> None:
        """Put another tensor of the same shape and dtype into a batch's place.

        Raises:
            UserError: No room on disk.
        """
        place = self._places[index]
        if isinstance(place, Tensor):
            self._places[index] = tensor
            return
        assert self._file is not None
        assert (place.shape, place.dtype) == (tensor.shape, tensor.dtype)
        with explained(_folder()):
            self._file.seek(place.offset)
            self._file.write(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
            self._file.flush()

    def __iter__(self) -> Iterator[Tensor]:
        """Every batch, as it is when its turn comes."""
        return (self[index] for index in range(len(self)))

    def copy(self) -> Batches:
        """The same batches, of which one may be replaced and the other keeps what it has."""
        return Batches(self, on_disk=self._file is not None)


class _Place:
    """Where in a file a tensor lies, and what it is."""

    def __init__(self, offset: int, tensor: Tensor) -> None:
        self.offset, self.shape, self.dtype, self.device = offset, tensor.shape, tensor.dtype, tensor.device


class States:
    """Boundaries, from the first block's on, all on disk."""

    def __init__(self) -> None:
        """None yet."""
        self._boundaries: list[Batches] = []

    def append(self, batches: Iterable[Tensor]) -> None:
        """Write the next boundary.

        Args:
            batches: (windows, length, hidden) each.

        Raises:
            UserError: No room.
        """
        self._boundaries.append(Batches(batches, on_disk=True))

    def __getitem__(self, index: int) -> Batches:
        """The batches of a boundary."""
        return self._boundaries[index]

    def pop(self) -> Batches:
        """The batches of the last boundary, which is forgotten."""
        return self._boundaries.pop()


def room_on_disk() -> int:
    """Bytes that states may take: half of what is free under ``TMPDIR``."""
    return shutil.disk_usage(_folder()).free // 2


def _folder() -> Path:
    return Path(tempfile.gettempdir())

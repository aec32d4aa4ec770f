"""Hidden states at block boundaries, on disk until they are wanted.

A pass with gradients needs the states in front of every block. In memory they would be more than all else it holds;
yet each is written once, and read a whole pass later.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from qarat.ground.disk import explained


class States:
    """Boundaries, from the first block's on; each in a file without a name under ``TMPDIR``, gone with this object."""

    def __init__(self) -> None:
        """None yet."""
        self._files: list[IO[bytes]] = []

    def append(self, batches: Sequence[Tensor]) -> None:
        """Write the next boundary.

        Args:
            batches: (windows, length, hidden) each.

        Raises:
            UserError: No room.
        """
        with explained(Path(tempfile.gettempdir())):
            self._files.append(tempfile.TemporaryFile())  # noqa: SIM115 -- open until it is popped
            torch.save(list(batches), self._files[-1])

    def __getitem__(self, index: int) -> list[Tensor]:
        """The batches of a boundary."""
        self._files[index].seek(0)
        return torch.load(self._files[index], weights_only=True)

    def pop(self) -> list[Tensor]:
        """The batches of the last boundary, which is forgotten."""
        batches = self[-1]
        self._files.pop().close()
        return batches


def room_on_disk() -> int:
    """Bytes that states may take: half of what is free under ``TMPDIR``."""
    return shutil.disk_usage(tempfile.gettempdir()).free // 2

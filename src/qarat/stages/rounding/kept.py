"""Weights that took long to round, on disk until they are wanted again."""

from __future__ import annotations

import dataclasses
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import torch

from qarat.ground.disk import explained
from qarat.maths.tensors import QuantizedTensor
from qarat.values.schemes import TensorScheme

Key = tuple[str, TensorScheme]


class KeptWeights:
    """By site and scheme, one behind the other in a file without a name under ``TMPDIR``, gone with this object."""

    def __init__(self) -> None:
        """None yet."""
        self._file: IO[bytes] | None = None
        self._places: dict[Key, tuple[int, int]] = {}

    def get(self, key: Key, make: Callable[[], QuantizedTensor]) -> QuantizedTensor:
        """The weight that was made under a key; made now if none was.

        Args:
            key: Full name of a site, and the scheme.
            make: Rounds the weight.

        Raises:
            UserError: No room.
        """
        with explained(Path(tempfile.gettempdir())):
            if key not in self._places:
                self._places[key] = self._append(make())
            start, length = self._places[key]
            assert self._file is not None
            self._file.seek(start)
            return torch.load(io.BytesIO(self._file.read(length)), weights_only=False)  # of this very process

    def _append(self, weight: QuantizedTensor) -> tuple[int, int]:
        """Write a weight behind the others; where it begins, and its bytes."""
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 -- open as long as this object
        start = self._file.seek(0, io.SEEK_END)
        # Of rows of a larger whole, only these.
        torch.save(dataclasses.replace(weight, codes=weight.codes.clone()), self._file)
        return start, self._file.tell() - start

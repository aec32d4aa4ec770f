"""The sparse part of a weight: a few of its numbers in float16, by row and column.

What is kept is what is missing: the weight less what its code stands for, so that any product with the codes is right
once the product with these is added. Of codes with a scale the second is 0, and the weight itself is kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qarat.ground.errors import UserError

MOST_COLUMNS = 1 << 16  # a column is kept in 16 bits


class Sparse(NamedTuple):
    """Compressed sparse rows.

    Attributes:
        values: What is added, row by row, (count,) float16.
        columns: Where, ascending in a row, (count,) int16, modulo 2^16.
        ends: How many belong to the rows up to and with each, (rows,) int32.
    """

    values: Tensor
    columns: Tensor
    ends: Tensor

    @classmethod
    def empty(cls, count: int, rows: int) -> Sparse:
        """What it will consist of, on the meta device."""
        sizes = ((count, torch.float16), (count, torch.int16), (rows, torch.int32))
        return cls(*(torch.empty(size, dtype=dtype, device="meta") for size, dtype in sizes))

    @classmethod
    def of(cls, missing: Tensor, kept: Tensor) -> Sparse:
        """Keep some numbers of a matrix.

        Args:
            missing: (rows, cols) float32.
            kept: Which, (rows, cols) bool.

        Raises:
            UserError: A number that float16 does not reach; more columns than 16 bits count.
        """
        if missing.shape[1] > MOST_COLUMNS:
            raise UserError(f"a sparse part counts columns in 16 bits, and these are {missing.shape[1]}; leave it out")
        values = missing[kept].half()
        if not bool(values.isfinite().all()):
            raise UserError("a weight of the sparse part is beyond what float16 reaches (65504); leave it out")
        columns = kept.nonzero()[:, 1].to(torch.int32).to(torch.int16)  # wraps, as 16 bits do
        return cls(values, columns, kept.sum(1).cumsum(0).to(torch.int32))

    def add_to_(self, dense: Tensor) -> Tensor:
        """Add to a (rows, cols) float32 matrix, in its memory; returned."""
        counts = self.ends.diff(prepend=self.ends.new_zeros(1))
        rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        return dense.index_put_((rows, self._columns()), self.values.float(), accumulate=True)

    def check(self, cols: int) -> None:
        """Check what was read from a file.

        Raises:
            ValueError: Rows that do not follow each other, or columns beyond the matrix.
        """
        steps = self.ends.diff(prepend=self.ends.new_zeros(1))
        if bool((steps < 0).any()) or int(self.ends[-1]) != len(self.values):
            raise ValueError("rows of the sparse part do not follow each other")
        if int(self._columns().max()) >= cols:
            raise ValueError(f"the sparse part has a column beyond the {cols} of the weight")

    def _columns(self) -> Tensor:
        return self.columns.int() & (MOST_COLUMNS - 1)


def highest(score: Tensor, count: int) -> Tensor:
    """The ``count`` elements of the highest score, of equal ones the first; shape of ``score``, bool."""
    chosen = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    chosen[score.flatten().argsort(descending=True, stable=True)[:count]] = True
    return chosen.view(score.shape)

"""Tiles: a matrix seen as a grid in which every cell shares one scale, and the arithmetic between a cell and its scale.

There is one mechanism for every granularity: tensor, channel, token, group and tile are all a reshape to
(batch, tall, tile rows, wide, tile cols), a view unless the last tile is shorter (then a copy padded with zeros, which
changes no extreme and is cut off again). Scales broadcast over it.

A leading axis of a tensor with more than two axes holds independent matrices, one per sequence: a scale computed from
the values at hand must not depend on which sequences happened to share a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qarat.maths.rounding import round_
from qarat.values.schemes import SCALES_PER_BLOCK, Granularity, TensorScheme


@dataclass(frozen=True, eq=False)
class Scales:
    """The scales of one tensor under one scheme.

    An element is ``effective × (table[code] − zero_point)``.

    Attributes:
        scale: One per tile, float32 already rounded to the scheme's scale kind; (tall, wide) as
            `Granularity.scale_shape` says, or (batch, tall, wide) for a tensor of more than two axes.
        zero_point: Shape of ``scale``, float32 integers in units of the table; None where 0 is fixed.
        tensor_scale: The float32 above the scales, where their kind has them, else None: of e4m3 one per matrix,
            (1, 1) or (batch, 1, 1); of uint8 one for each 256 scales in reading order, (1, blocks) or (batch, 1,
            blocks).
        table: Of a learned format, each tile's own values, (tall, wide, values) float16, ascending; scales are then 1.
        shift: Of a cache in two dimensions, the middle of each channel, (1, cols) float32; ``scale`` is then half of
            its range, and the scales of tokens are found behind that.
    """

    scale: Tensor
    zero_point: Tensor | None = None
    tensor_scale: Tensor | None = None
    table: Tensor | None = None
    shift: Tensor | None = None

    @classmethod
    def empty(cls, scheme: TensorScheme, rows: int, cols: int) -> Scales:
        """Scales of a (rows, cols) matrix that hold no numbers, on the meta device: what they will consist of."""
        if scheme.two_dimensional:
            each = torch.empty(1, cols, device="meta")
            return cls(each, shift=each)
        scale = torch.empty(scheme.granularity.scale_shape(rows, cols), device="meta")
        above = torch.empty(1, scheme.scales_above(rows, cols), device="meta") if scheme.nests_scales else None
        fmt = scheme.number_format
        values = (*scale.shape, len(fmt.values))
        table = torch.empty(values, dtype=torch.float16, device="meta") if fmt.learned else None
        return cls(scale, None if scheme.symmetric else scale, above, table)

    @classmethod
    def of_tables(cls, table: Tensor) -> Scales:
        """Tables in place of scales, (tall, wide, values) float16."""
        return cls(torch.ones(table.shape[:2], device=table.device), table=table)

    def to(self, device: str) -> Scales:
        """The same on a device."""
        return replace(self, **{name: part.to(device) for name, part in vars(self).items() if part is not None})

    @property
    def effective(self) -> Tensor:
        """The factor of each tile, shape of ``scale``, float32."""
        return self.scale if self.tensor_scale is None else self.scale * above_each(self.tensor_scale, self.scale.shape)


def above_each(tensor_scale: Tensor, shape: torch.Size) -> Tensor:
    """The float32 above each scale, so that it broadcasts over scales of a shape; both as of `Scales`."""
    if tensor_scale.shape[-1] == 1:
        return tensor_scale
    spread = tensor_scale.repeat_interleave(SCALES_PER_BLOCK, dim=-1)
    return spread[..., : shape[-2] * shape[-1]].reshape(shape)


def as_matrices(x: Tensor) -> Tensor:
    """``x`` as independent float32 matrices (batch, rows, cols); a view where possible."""
    if x.dim() < 2 or x.numel() == 0:
        raise ValueError(f"expected (rows, cols) or (batch, …, cols) with at least one element, got {tuple(x.shape)}")
    return x.detach().float().reshape(1 if x.dim() == 2 else x.shape[0], -1, x.shape[-1])


def to_tiles(matrices: Tensor, granularity: Granularity) -> Tensor:
    """(batch, rows, cols) seen as (batch, tall, tile rows, wide, tile cols); short last tiles are padded with 0."""
    batch, rows, cols = matrices.shape
    tall, wide = granularity.scale_shape(rows, cols)
    # A single tile is as large as the matrix, whatever its nominal size.
    tile_rows = rows if tall == 1 else granularity.rows or rows
    tile_cols = cols if wide == 1 else granularity.cols or cols
    if (tall * tile_rows, wide * tile_cols) != (rows, cols):
        matrices = torch.nn.functional.pad(matrices, (0, wide * tile_cols - cols, 0, tall * tile_rows - rows))
    return matrices.reshape(batch, tall, tile_rows, wide, tile_cols)


def from_tiles(tiles: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `as_matrices` and `to_tiles`: a contiguous tensor of that shape."""
    batch, tall, tile_rows, wide, tile_cols = tiles.shape
    cols = shape[-1]
    rows = shape.numel() // (batch * cols)
    matrices = tiles.reshape(batch, tall * tile_rows, wide * tile_cols)
    return matrices[:, :rows, :cols].reshape(shape).contiguous()


def to_units(tiles: Tensor, scales: Scales) -> Tensor:
    """Elements in units of the table, not yet rounded: x ÷ effective scale + zero point; a new float32 tensor.

    Args:
        tiles: (batch, tall, tile rows, wide, tile cols) float32.
        scales: (tall, wide), or (batch, tall, wide).
    """
    units = tiles / _per_tile(scales.effective)
    return units if scales.zero_point is None else units.add_(_per_tile(scales.zero_point))


def from_units_(units: Tensor, scales: Scales) -> Tensor:
    """The inverse of `to_units`, in the memory of ``units``."""
    if scales.zero_point is not None:
        units.sub_(_per_tile(scales.zero_point))
    return units.mul_(_per_tile(scales.effective))


def fake_quantize_tiles(tiles: Tensor, scheme: TensorScheme, scales: Scales) -> Tensor:
    """What is left of the elements after storing them under those scales; shape of ``tiles``, a new float32 tensor."""
    return from_units_(round_(to_units(tiles, scales), scheme.number_format), scales)


def per_element(values: Tensor, granularity: Granularity, shape: torch.Size) -> Tensor:
    """Each tile's value at each of its elements, for arithmetic that goes by columns instead of tiles.

    Args:
        values: (tall, wide), one a tile.
        granularity: Of the tiles.
        shape: (rows, cols) of the matrix.

    Returns:
        (rows, cols).
    """
    tiles = to_tiles(torch.empty(1, *shape, device=values.device), granularity)
    return from_tiles(_per_tile(values).expand(tiles.shape), shape)


def _per_tile(values: Tensor) -> Tensor:
    """(tall, wide) or (batch, tall, wide) so that it broadcasts over tiles: (batch or 1, tall, 1, wide, 1)."""
    return values.reshape(-1, values.shape[-2], 1, values.shape[-1], 1)

"""Quantized tensors: what a scheme makes of a matrix.

`quantize_tensor` gives the codes a file would hold, `fake_quantize` the numbers they stand for. The second could be
defined by the first; it is written separately because simulation runs it on every activation, where a trip through
codes costs more than the rounding. The law between them is exact: ``quantize_tensor(x, …).dequantize()`` and
``fake_quantize(x, …)`` are equal bit for bit.

Dividing by the scale, not multiplying by its reciprocal, is what engines and compressed-tensors do; the two differ in
the last bit, and so, near a tie, by a whole step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qarat.maths.rounding import decode, encode
from qarat.maths.scales import choose_scale
from qarat.maths.sparse import Sparse
from qarat.maths.tables import look_up
from qarat.maths.tiles import Scales, as_matrices, fake_quantize_tiles, from_tiles, from_units_, to_tiles, to_units
from qarat.values.schemes import TensorScheme


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A tensor as a scheme stores it.

    Attributes:
        codes: Shape of the tensor, uint8 indices into the format's table (`qarat.maths.packing` knows wire codes).
        scales: Its scales.
        scheme: The scheme.
        sparse: What is added to the numbers that the codes stand for; None for nothing.
    """

    codes: Tensor
    scales: Scales
    scheme: TensorScheme
    sparse: Sparse | None = None

    @classmethod
    def empty(cls, scheme: TensorScheme, rows: int, cols: int) -> QuantizedTensor:
        """A (rows, cols) matrix that holds no numbers, on the meta device: what it will consist of."""
        codes = torch.empty(rows, cols, dtype=torch.uint8, device="meta")
        sparse = None if scheme.sparse is None else Sparse.empty(scheme.sparse_count(rows, cols), rows)
        return cls(codes, Scales.empty(scheme, rows, cols), scheme, sparse)

    @property
    def nbytes(self) -> int:
        """Memory of codes, scales and the sparse part."""
        s = self.scales
        parts = (self.codes, s.scale, s.zero_point, s.tensor_scale, s.table, *(self.sparse or ()))
        return sum(part.nbytes for part in parts if part is not None)

    def rows(self, first: int, end: int) -> QuantizedTensor:
        """Some rows of a matrix whose scales reach over single rows, or over all of them; a view."""
        pick = slice(first, end) if len(self.scales.scale) == len(self.codes) else slice(None)
        zeros = self.scales.zero_point
        scales = Scales(self.scales.scale[pick], None if zeros is None else zeros[pick], self.scales.tensor_scale)
        return QuantizedTensor(self.codes[first:end], scales, self.scheme)

    def dequantize(self) -> Tensor:
        """The numbers stored; shape of ``codes``, float32.

        A code stands for scale × (table[code] − zero point), or for what its tile's own table says; the sparse part is
        added to that.
        """
        if self.scales.table is not None:
            dense = look_up(self.codes, self.scales.table, self.scheme.granularity)
        else:
            values = as_matrices(decode(self.codes, self.scheme.number_format))
            dense = from_tiles(from_units_(to_tiles(values, self.scheme.granularity), self.scales), self.codes.shape)
        return dense if self.sparse is None else self.sparse.add_to_(dense)


@torch.no_grad()
def quantize_tensor(x: Tensor, scheme: TensorScheme, scales: Scales | None = None) -> QuantizedTensor:
    """Quantize a tensor.

    Args:
        x: (rows, cols), or (batch, …, cols) of independent matrices; floating; not written to.
        scheme: The scheme.
        scales: Scales to use, e.g. a static scheme's; chosen from ``x`` when absent.

    Raises:
        UserError: A scheme that contradicts itself.
        ValueError: ``x`` has a NaN or an infinity in a tile whose scale is chosen here; a static scheme
            without scales; scales that do not fit its shape.
    """
    scales = scales_for(x, scheme, scales)
    units = to_units(to_tiles(as_matrices(x), scheme.granularity), scales)
    return QuantizedTensor(encode(from_tiles(units, x.shape), scheme.number_format), scales, scheme)


@torch.no_grad()
def fake_quantize(x: Tensor, scheme: TensorScheme, scales: Scales | None = None) -> Tensor:
    """What is left of a tensor after quantizing it: `quantize_tensor` and back, without the codes.

    Unlike it, a NaN is no error and stays NaN: in a simulation the loss then shows it.

    Args:
        x: (rows, cols), or (batch, …, cols) of independent matrices; floating; not written to.
        scheme: The scheme.
        scales: Scales to use, e.g. a static scheme's; chosen from ``x`` when absent.

    Returns:
        Shape of ``x``, float32.

    Raises:
        UserError: A scheme that contradicts itself.
        ValueError: A static scheme without scales; scales that do not fit the shape of ``x``.
    """
    scales = scales_for(x, scheme, scales)
    tiles = to_tiles(as_matrices(x), scheme.granularity)
    return from_tiles(fake_quantize_tiles(tiles, scheme, scales), x.shape)


def scales_for(x: Tensor, scheme: TensorScheme, scales: Scales | None) -> Scales:
    """The scales given, checked against the shape, or else chosen.

    Args:
        x: As of `quantize_tensor`, as the others.
        scheme: The scheme.
        scales: Scales to use; chosen from ``x`` when absent.

    Raises:
        ValueError: A static scheme without scales; scales that do not fit the shape of ``x``; a scheme that says more
            than how a tensor is rounded.
    """
    if scheme.number_format.learned:
        raise ValueError(f"{scheme.spell('w')} has tables in place of scales (qarat.maths.tables)")
    if scheme.outliers is not None:
        raise ValueError(
            f"{scheme.spell('a')}: columns in float are the product's affair (qarat.maths.kernels.reference)"
        )
    if scales is None:
        if scheme.static:
            raise ValueError(f"{scheme.spell('a')} is static: its scales come from calibration, and none were given")
        return choose_scale(x, scheme)
    batch = 1 if x.dim() == 2 else x.shape[0]
    expected = scheme.granularity.scale_shape(x.numel() // (batch * x.shape[-1]), x.shape[-1])
    if scales.scale.shape not in (expected, (batch, *expected)):
        raise ValueError(
            f"{scheme.spell('a')} on {tuple(x.shape)} needs scales {expected} or {(batch, *expected)}, "
            f"got {tuple(scales.scale.shape)}"
        )
    return scales

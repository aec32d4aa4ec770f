"""Scales: how the factor is chosen by which a tile is divided before it is rounded.

A tile's least and greatest value are clipped as the scheme's choice says; what is left to reach, divided by what the
format reaches, is the scale, rounded at once to what will be stored. So simulation never uses a scale that a file
cannot hold.

A tile of zeros gets scale 1. A tile that holds a NaN or an infinity gets a NaN scale, so that it shows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.maths import clipping
from qarat.maths.rounding import round_to_format
from qarat.maths.tiles import Scales, above_each, as_matrices, fake_quantize_tiles, to_tiles
from qarat.values.formats import FORMATS
from qarat.values.schemes import SCALES_PER_BLOCK, ScaleKind, TensorScheme

SCALE_DTYPES: dict[ScaleKind, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "e8m0": torch.float8_e8m0fnu,
    "e4m3": torch.float8_e4m3fn,
    "uint8": torch.uint8,
}
"""What a scale of each kind is stored as; `Scales.scale` converts to it and back without loss."""

E4M3_LARGEST = FORMATS["e4m3"].largest
E4M3_SMALLEST = 2.0**-9  # smallest positive e4m3, a subnormal
UINT8_LARGEST = 255.0
FLOAT16_SMALLEST = 2.0**-24
FLOAT32_SMALLEST = torch.finfo(torch.float32).tiny  # normal, so that dividing by it is safe where subnormals are zero
E8M0_LIMIT = 127  # E8M0 holds 2^-127 … 2^127; its code 255 is NaN (OCP MX v1.0, section 5.4.1)

# `mse` tries the extremes times 2^(-i/12). For values at hand i runs to 36 (an eighth), each i costing a rounding of
# all of them. A histogram is cheap and holds the spikes, which may be worth clipping to a thousandth: i to 120.
SHRINK_STEPS_PER_HALVING = 12
SHRINK_STEPS = 36
HISTOGRAM_SHRINK_STEPS = 120

_POWERS_OF_TWO = torch.tensor([2.0**e for e in range(-E8M0_LIMIT, E8M0_LIMIT + 1)], device="cpu")

# compressed-tensors rounds an MX maximum up to the next power of two where it would round past the largest element, at
# (largest + next power) / 2; but for e4m3 it keeps the mantissa width of e2m1, which makes it 448 instead of 480
# (compressed_tensors 0.20, quantization/utils/mxfp_utils.py, generate_mx_scales).
_MX_EVEN_THRESHOLDS = {"e4m3": 448.0}


class _Extremes(NamedTuple):
    """What a tile's scale has to reach: least value ≤ 0 and greatest ≥ 0, each (batch, tall, 1, wide, 1)."""

    low: Tensor
    high: Tensor

    def times(self, factor: float) -> _Extremes:
        return _Extremes(self.low * factor, self.high * factor)

    def clipped(self, bound: Tensor) -> _Extremes:
        return _Extremes(self.low.maximum(-bound), self.high.minimum(bound))


def choose_scale(x: Tensor, scheme: TensorScheme, weights: Tensor | None = None) -> Scales:
    """The scales of a tensor, from its own values.

    - ``absmax``: largest magnitude ÷ largest value of the format. Asymmetric: (greatest − least, 0 among them) ÷ span
      of the table, and the zero point, rounded to an integer, that puts the least value at the table's beginning.
    - ``mx-floor``: 2^(⌊log2 largest magnitude⌋ − ⌊log2 largest value⌋), which may clip (OCP MX v1.0, section 6.3).
    - ``mx-even``: likewise, but of the magnitude rounded first, as compressed-tensors does; clips less.
    - ``mse``: absmax of the extremes times 2^(−i/12), i = 0 … 36, whichever has the least squared error.
    - ``percentile``: absmax of the extremes clipped at that percentile of the tile's magnitudes (linear between ranks);
      a tile whose percentile is zero keeps its extremes.
    - ``typical``: absmax of the extremes clipped where the format rounds a Gaussian of the tile's σ with least error.

    Scales are then rounded to the scheme's kind: float16 to nearest, kept off zero and infinity; e8m0 *up* to a power
    of two, so that nothing clips that the choice meant to keep; e4m3 (NVFP4) to nearest, in units of one float32 per
    matrix, largest magnitude ÷ (448 · largest value), and never below the smallest e4m3; uint8 to 1 … 255 in units of
    one float32 for each 256 scales, largest magnitude among their tiles ÷ (255 · largest value).

    Args:
        x: (rows, cols), or (batch, …, cols) where each of the batch is a matrix of its own; floating.
        scheme: The scheme.
        weights: What a squared error counts in each column, (cols,), not negative. Where they are given, the extremes
            that the choice reaches are shrunk further as by ``mse``, whatever the choice, and errors count by them.

    Raises:
        UserError: A scheme that contradicts itself.
        ValueError: ``x`` has no elements or fewer than two axes.
    """
    _require_consistent(scheme)
    matrices = as_matrices(x)
    tiles = to_tiles(matrices, scheme.granularity)
    extremes = _extremes(tiles, scheme)
    tensor_scale = _tensor_scale(extremes, scheme)
    if scheme.choice == "percentile":
        bound = clipping.percentile(matrices, scheme)
        extremes = extremes.clipped(torch.where(bound == 0, torch.inf, bound))
    if scheme.choice == "typical":
        extremes = extremes.clipped(clipping.typical(matrices, scheme))
    if scheme.choice == "mse" or weights is not None:
        counts = None if weights is None else to_tiles(weights.view(1, 1, -1), scheme.granularity)
        scales = _least_squares(tiles, counts, extremes, scheme, tensor_scale, SHRINK_STEPS)
    else:
        scales = _scales(extremes, scheme, tensor_scale)
    return _drop_batch(scales) if x.dim() == 2 else scales


def static_scales(
    channel_min: Tensor, channel_max: Tensor, histogram: Tensor, edges: Tensor, scheme: TensorScheme
) -> Scales:
    """The scales of a stream's static scheme, from calibration statistics.

    The extremes of the channels, as a matrix of two rows, have the same scales as the stream itself; only `mse` and
    `percentile` need the histogram. It holds magnitudes of a sample, in which a bin counts as its geometric centre (the
    first as 0) and the percentile is the centre of the bin that holds its rank; at 100 it is the largest magnitude.

    Args:
        channel_min: (cols,) float32, least value of each channel.
        channel_max: (cols,) float32, greatest value of each channel.
        histogram: (bins,), how many magnitudes of the sample fell into each bin.
        edges: (bins + 1,) float32, ascending, log-spaced but for ``edges[0] == 0``.
        scheme: A static scheme.

    Returns:
        Scales of one matrix of any number of rows: (1, wide).

    Raises:
        UserError: A scheme that contradicts itself, or that these statistics cannot serve.
        ValueError: An empty histogram where one is needed, or edges that do not fit it.
    """
    _require_consistent(scheme)
    if scheme.granularity.rows is not None:
        raise UserError(f"static scales cannot differ between tokens, and {scheme.spell('a')} has one per token")
    tiles = to_tiles(as_matrices(torch.stack([channel_min, channel_max])), scheme.granularity)
    extremes = _extremes(tiles, scheme).times(scheme.reach)  # other than 1 with absmax alone
    tensor_scale = _tensor_scale(extremes, scheme)
    if scheme.choice not in ("mse", "percentile"):
        return _drop_batch(_scales(extremes, scheme, tensor_scale))
    centres, counts = _centres(histogram, edges)
    if scheme.choice == "mse":
        values = centres.float().view(1, 1, 1, 1, -1)
        return _drop_batch(_least_squares(values, counts, extremes, scheme, tensor_scale, HISTOGRAM_SHRINK_STEPS))
    if scheme.percentile < 100:
        rank = (counts.sum() - 1) * (scheme.percentile / 100)
        bound = centres[torch.searchsorted(counts.cumsum(0), rank, right=True)].float()
        extremes = extremes.clipped(torch.where(bound == 0, torch.inf, bound))
    return _drop_batch(_scales(extremes, scheme, tensor_scale))


def _drop_batch(scales: Scales) -> Scales:
    one = scales.tensor_scale
    zero = scales.zero_point
    return Scales(scales.scale[0], None if zero is None else zero[0], None if one is None else one[0])


def _require_consistent(scheme: TensorScheme) -> None:
    if offences := scheme.contradictions():
        raise UserError(f"{scheme.spell('a')}: {'; '.join(offences)}")


def _extremes(tiles: Tensor, scheme: TensorScheme) -> _Extremes:
    # Tiles are (batch, tall, rows of a tile, wide, columns of a tile), so a tile's own axes are 2 and 4.
    low, high = tiles.amin(dim=(2, 4), keepdim=True), tiles.amax(dim=(2, 4), keepdim=True)
    if scheme.symmetric:
        high = torch.maximum(-low, high)
        return _Extremes(-high, high)
    # 0 is always covered: it has to be a number of the grid, or what is padded with it would not stay nothing.
    return _Extremes(low.clamp(max=0.0), high.clamp(min=0.0))


def _tensor_scale(extremes: _Extremes, scheme: TensorScheme) -> Tensor | None:
    """The float32 above e4m3 or uint8 scales, as of `Scales`, under which the largest of its scales is just 448 or 255.

    The others have all of the kind's range below that.
    """
    if not scheme.nests_scales:
        return None
    reach, divisor = _reach(extremes, scheme)
    each = reach.flatten(1)
    if scheme.scale == "uint8":
        whole = torch.nn.functional.pad(each, (0, -each.shape[1] % SCALES_PER_BLOCK))
        each = whole.view(len(each), -1, SCALES_PER_BLOCK)
    top = E4M3_LARGEST if scheme.scale == "e4m3" else UINT8_LARGEST
    largest = each.amax(-1).view(len(each), 1, -1)
    return torch.where(largest == 0, 1.0, _over(largest, top * divisor).clamp(min=FLOAT32_SMALLEST))


def _reach(extremes: _Extremes, scheme: TensorScheme) -> tuple[Tensor, float]:
    """What a scale is the quotient of: the range to cover, (batch, tall, 1, wide, 1), and what the table covers."""
    fmt = scheme.number_format
    if scheme.symmetric:
        return extremes.high, fmt.largest
    return extremes.high - extremes.low, fmt.largest - fmt.values[0]


def _over(values: Tensor, divisor: float) -> Tensor:
    """The quotient, rounded once: by a number alone CUDA multiplies with its reciprocal, which is off by a last bit."""
    return values / values.new_full((), divisor)


def _scales(extremes: _Extremes, scheme: TensorScheme, tensor_scale: Tensor | None) -> Scales:
    """Scales as they are stored, (batch, tall, wide), that reach the extremes."""
    reach, divisor = _reach(extremes, scheme)
    ideal = _mx_scale(reach, scheme) if scheme.choice.startswith("mx-") else _over(reach, divisor)
    reach, ideal = reach.squeeze((2, 4)), ideal.squeeze((2, 4))
    # A tile of zeros has no scale of its own; any will do, and 1 divides without making numbers up.
    scale = torch.where(reach == 0, 1.0, _storable(ideal, scheme.scale, tensor_scale))
    scale = torch.where(reach.isfinite(), scale, torch.nan)  # frexp and clamp would make numbers of NaN and infinity
    scales = Scales(scale, None, tensor_scale)
    if scheme.symmetric:
        return scales
    # x ≈ s · (q − z): the least value is to be q = first, so z = first − low / s, with the scale as it is stored, since
    # that is what divides later.
    first, last = scheme.number_format.values[0], scheme.number_format.largest
    zero_point = (first - extremes.low.squeeze((2, 4)) / scales.effective).round_().clamp_(first, last)
    return Scales(scale, zero_point, tensor_scale)


def _storable(ideal: Tensor, kind: ScaleKind, tensor_scale: Tensor | None) -> Tensor:
    """Positive scales (batch, tall, wide) rounded to their kind; never zero, never infinite."""
    if kind == "float32":
        return ideal.clamp(min=FLOAT32_SMALLEST)
    if kind == "float16":
        return ideal.clamp(FLOAT16_SMALLEST, torch.finfo(torch.float16).max).half().float()
    if kind == "e8m0":
        mantissa, exponent = torch.frexp(ideal)  # ideal = mantissa · 2^exponent, mantissa in [½, 1)
        return _power_of_two(torch.where(mantissa == 0.5, exponent - 1, exponent))
    assert tensor_scale is not None
    units = ideal / above_each(tensor_scale, ideal.shape)
    if kind == "uint8":
        return units.round_().clamp_(1, UINT8_LARGEST)
    return round_to_format(units, FORMATS["e4m3"]).clamp_(min=E4M3_SMALLEST)


def _mx_scale(reach: Tensor, scheme: TensorScheme) -> Tensor:
    """The shared power of two of MX blocks, from their largest magnitudes; shape of ``reach``."""
    # ⌊log2 v⌋ is frexp's exponent less one on both sides, so the difference of exponents is that of the floors.
    fmt = scheme.number_format
    mantissa, exponent = torch.frexp(reach)
    element = int(torch.frexp(torch.tensor(fmt.largest)).exponent)
    if scheme.choice == "mx-even":
        threshold = _MX_EVEN_THRESHOLDS.get(fmt.name, (fmt.largest + 2.0**element) / 2)
        # A maximum that rounds up beyond the largest number, seen within its own binade, takes the next power.
        exponent = torch.where(mantissa >= threshold / 2.0**element, exponent + 1, exponent)
    return _power_of_two(exponent - element)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent within the range of E8M0, exactly (`exp2` may not be)."""
    index = exponent.clamp(-E8M0_LIMIT, E8M0_LIMIT).int() + E8M0_LIMIT
    return _POWERS_OF_TWO.to(exponent.device)[index]


def _least_squares(
    tiles: Tensor,
    weights: Tensor | None,
    extremes: _Extremes,
    scheme: TensorScheme,
    tensor_scale: Tensor | None,
    steps: int,
) -> Scales:
    """For each tile, of the scales that reach its extremes times 2^(−i/12), i = 0 … steps, the one that errs least."""
    # Every trial is a scale as it will be stored, zero point and all, so that the one that is kept errs as seen here.
    best = _scales(extremes, scheme, tensor_scale)
    least = _squared_error(tiles, weights, scheme, best)
    scale, zero_point = best.scale, best.zero_point
    for step in range(1, steps + 1):
        trial = _scales(extremes.times(2.0 ** (-step / SHRINK_STEPS_PER_HALVING)), scheme, tensor_scale)
        error = _squared_error(tiles, weights, scheme, trial)
        better = error < least
        least = torch.where(better, error, least)
        scale = torch.where(better, trial.scale, scale)
        if zero_point is not None and trial.zero_point is not None:
            zero_point = torch.where(better, trial.zero_point, zero_point)
    return Scales(scale, zero_point, tensor_scale)


def _squared_error(tiles: Tensor, weights: Tensor | None, scheme: TensorScheme, scales: Scales) -> Tensor:
    """Sum of squared errors of each tile, (batch, tall, wide); ``weights``, which broadcast over tiles, count them."""
    squares = fake_quantize_tiles(tiles, scheme, scales).sub_(tiles).square_()
    if weights is not None:
        squares = squares.double() * weights
    return squares.sum((2, 4))


def _centres(histogram: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitudes that stand for the bins, and their counts; both (bins,) float64."""
    if edges.shape != (len(histogram) + 1,) or float(edges[0]) != 0.0 or not bool(histogram.sum() > 0):
        raise ValueError(f"a histogram of {len(histogram)} bins, not all empty, needs one edge more, beginning with 0")
    wide = edges.double()
    return (wide[:-1] * wide[1:]).sqrt(), histogram.double()

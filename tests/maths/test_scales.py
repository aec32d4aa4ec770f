"""Scales: choices against their definitions, kinds against what a file can hold, statistics against the values."""

import itertools
import math

import gfloat
import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams
from gfloat import formats as gf
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.maths.histograms import EDGES, bin_counts, count_magnitudes
from qarat.maths.scales import SCALE_DTYPES, choose_scale, static_scales
from qarat.maths.tensors import fake_quantize
from qarat.maths.tiles import Scales
from qarat.values.parsing import parse_tensor_scheme
from qarat.values.schemes import SCALE_BITS, TensorScheme

GRANULARITIES = ["tensor", "channel", "g16", "g32", "8x16", "40x1000"]


CHOICES = ["int8", "int4//asymmetric", "e4m3", "int4//mse", "int4//p97.5", "e2m1//mse", "int4//typical"]
MSE = ["int4/{}/mse", "int3/{}/mse/asymmetric", "e2m1/{}/mse/scale-e4m3", "int4/{}/mse/scale-e8m0"]
MSE_GRID = ["int4/tensor", "int3/tensor/asymmetric", "e2m1/tensor", "int2/tensor/asymmetric/scale-e8m0"]
DYNAMIC = ["int8/tensor/dynamic", "int4/token", "mxfp4", "nvfp4", "int4/8x16/mse", "e4m3/token/p99"]
STORED = ["int8/channel", "int2/channel/asymmetric", "e5m2/g16", "int4/g16/mse", "e2m1/g16/p90", "int4/g16/typical"]
STATIC = ["int8/tensor", "int8/tensor/asymmetric", "int8/tensor/p100", "int8/g16", "e4m3/g16", "mxfp4", "nvfp4"]


def w(text: str) -> TensorScheme:
    return parse_tensor_scheme(text, "w")


def a(text: str) -> TensorScheme:
    return parse_tensor_scheme(text, "a")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pieces(x: Tensor, scheme: TensorScheme) -> list[tuple[int, int, Tensor]]:
    """The tiles of a matrix one by one, cut by slicing, as (row, column, tile)."""
    rows, cols = scheme.granularity.rows or len(x), scheme.granularity.cols or x.shape[1]
    places = itertools.product(range(0, x.shape[0], rows), range(0, x.shape[1], cols))
    return [(i // rows, j // cols, x[i : i + rows, j : j + cols]) for i, j in places]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("format_and_words", CHOICES)
def test_a_tile_is_scaled_as_if_it_were_alone(granularity: str, format_and_words: str) -> None:
    """Short last tiles included: padding is invisible. Exact, for every granularity and choice."""
    name, _, words = format_and_words.partition("//")
    scheme = w("/".join(filter(None, [name, granularity, words])))
    alone = w("/".join(filter(None, [name, "tensor", words])))
    x = normal(21, 50).exp() - 0.5
    scales = choose_scale(x, scheme)
    assert scales.scale.shape == scheme.granularity.scale_shape(21, 50)
    for i, j, tile in pieces(x, scheme):
        expected = choose_scale(tile, alone)
        assert scales.scale[i, j] == expected.scale.item()
        if scales.zero_point is not None and expected.zero_point is not None:
            assert scales.zero_point[i, j] == expected.zero_point.item()


@pytest.mark.parametrize("words", DYNAMIC)
def test_sequences_of_a_batch_do_not_see_each_other(words: str) -> None:
    scheme = a(words)
    batch = normal(3, 5, 7, 40)
    together = choose_scale(batch, scheme)
    for index, sequence in enumerate(batch):
        alone = choose_scale(sequence.reshape(35, 40), scheme)
        assert torch.equal(together.scale[index], alone.scale)
        if together.tensor_scale is not None and alone.tensor_scale is not None:
            assert torch.equal(together.tensor_scale[index], alone.tensor_scale)


def test_absmax_maps_the_largest_magnitude_onto_the_largest_value() -> None:
    x = torch.tensor([[1.0, -12.7, 3.0], [0.0, 6.35, -1.0]])
    assert choose_scale(x, w("int8/channel")).scale.tolist() == (torch.tensor([[12.7], [6.35]]) / 127).tolist()
    assert choose_scale(x, w("e4m3/tensor")).scale.item() == (torch.tensor(12.7) / 448).item()


@pytest.mark.parametrize("bits", [4, 8])
def test_asymmetric_absmax_equals_compressed_tensors(bits: int) -> None:
    x = normal(64, 48) + torch.linspace(-4, 4, 64)[:, None]
    ours = choose_scale(x, w(f"int{bits}/channel/asymmetric"))
    args = QuantizationArgs(num_bits=bits, symmetric=False, strategy="channel")  # pyright: ignore[reportArgumentType]
    scale, zero_point = calculate_qparams(x.amin(1, keepdim=True), x.amax(1, keepdim=True), args)
    assert torch.equal(ours.scale, scale)
    assert ours.zero_point is not None
    assert torch.equal(ours.zero_point, zero_point.float())


@pytest.mark.parametrize("name", ["int4", "sint4", "sint8", "e2m1", "e2m3", "e3m2", "e4m3", "e5m2"])
def test_mx_floor_is_the_quotient_of_leading_powers_of_two(name: str) -> None:
    x = normal(400, 32) * torch.exp2(torch.linspace(-60, 60, 400))[:, None]
    scheme = w(f"{name}/g32/scale-e8m0/mx-floor")
    element = math.floor(math.log2(scheme.number_format.largest))
    expected = [2.0 ** (math.frexp(m)[1] - 1 - element) for m in x.abs().amax(1).tolist()]
    assert choose_scale(x, scheme).scale.flatten().tolist() == expected


@pytest.mark.parametrize(
    ("name", "info"),
    [
        ("e2m1", gf.format_info_mxfp4_e2m1),
        ("e2m3", gf.format_info_mxfp6_e2m3),
        ("e3m2", gf.format_info_mxfp6_e3m2),
        ("e4m3", gf.format_info_mxfp8_e4m3),
        ("e5m2", gf.format_info_mxfp8_e5m2),
        ("int8", gf.format_info_mxint8),
    ],
)
def test_mx_equals_gfloat_on_a_million_numbers(name: str, info: gfloat.BlockFormatInfo) -> None:
    """Every block's scale and every element; the first blocks through gfloat's own block code too."""
    x = normal(31_250, 32, seed=1) * torch.exp2(torch.linspace(-30, 30, 31_250))[:, None]
    ours = fake_quantize(x, w(f"{name}/g32/scale-e8m0/mx-floor"))
    blocks = x.double().numpy()
    # gfloat's int8 is a fraction of 64ths, so its greatest exponent is 0; ours counts the 64ths.
    scale = np.exp2(np.clip(np.floor(np.log2(np.abs(blocks).max(1, keepdims=True))) - info.etype.emax, -127, 127))
    theirs = gfloat.round_ndarray(info.etype, blocks / scale, sat=True) * scale
    assert np.array_equal(ours.numpy(), theirs.astype(np.float32))
    for block, expected in zip(blocks[:20], theirs[:20], strict=True):
        largest = gfloat.quantize_block(info, block, gfloat.compute_scale_amax)
        assert np.array_equal(largest, expected)


def test_nvfp4_equals_gfloat_on_a_million_numbers() -> None:
    """Elements, block scales and the float32 above them, from their definition and gfloat's e2m1 and e4m3."""
    x = normal(1000, 1000, seed=2) * torch.exp2(torch.linspace(-6, 6, 1000))[:, None]
    x[0, :48] = 0
    x[1, :16] *= 1e-5  # block scales that e4m3 would round to zero
    scheme = w("nvfp4")
    blocks = torch.nn.functional.pad(x, (0, 8)).view(1000, 63, 16).numpy()
    top = np.abs(blocks).max() / np.float32(448 * 6)
    ideal = np.abs(blocks).max(-1, keepdims=True) / np.float32(6) / top
    scale = gfloat.round_ndarray(gf.format_info_ocp_e4m3, ideal.astype(np.float64), sat=True).astype(np.float32)
    scale = np.where(ideal == 0, np.float32(1), np.maximum(scale, np.float32(2**-9))) * top
    elements = gfloat.round_ndarray(gf.format_info_ocp_e2m1, (blocks / scale).astype(np.float64), sat=True)
    theirs = (elements.astype(np.float32) * scale).reshape(1000, 1008)[:, :1000]
    assert np.array_equal(fake_quantize(x, scheme).numpy(), theirs)


@pytest.mark.parametrize(("name", "bits"), [("e2m1", 4), ("e2m3", 6), ("e4m3", 8)])
def test_mx_even_is_what_compressed_tensors_chooses(name: str, bits: int) -> None:
    """Over eight octaves of maxima, with every float32 next to where the rule rounds up."""
    maxima = torch.exp2(torch.linspace(-4, 4, 40_001))
    edges = torch.tensor([e * 2.0**k for e in (1.0, 1.5, 1.75, 1.875, 1.9375, 1.96875) for k in range(-4, 4)])
    infinity = torch.tensor(torch.inf)
    maxima = torch.cat([maxima, edges, torch.nextafter(edges, infinity), torch.nextafter(edges, -infinity)])
    args = QuantizationArgs(
        num_bits=bits,
        type="float",  # pyright: ignore[reportArgumentType]
        strategy="group",  # pyright: ignore[reportArgumentType]
        group_size=32,
        scale_dtype=torch.uint8,
        zp_dtype=torch.uint8,
    )
    exponents, _ = calculate_qparams(-maxima, maxima, args)
    x = maxima[:, None] * torch.linspace(-0.5, 1, 32)
    assert torch.equal(choose_scale(x, w(f"{name}/g32/scale-e8m0/mx-even")).scale.flatten(), exponents.float())


@pytest.mark.parametrize("name", ["int4", "sint4", "e3m2", "e5m2", "e2m1", "e2m3"])
def test_mx_even_clips_only_what_rounds_past_the_largest_value(name: str) -> None:
    x = normal(4000, 32)
    scheme = w(f"{name}/g32/scale-e8m0/mx-even")
    fmt = scheme.number_format
    beyond = 2.0 ** math.frexp(fmt.largest)[1]  # the power of two after the largest value
    units = (x / choose_scale(x, scheme).scale).abs().amax(1)
    assert bool((units < (fmt.largest + beyond) / 2).all())
    assert bool((units >= (fmt.largest + beyond) / 4).all())


@pytest.mark.parametrize("words", MSE_GRID)
@pytest.mark.parametrize("shift", [0.0, 0.7, 2.0, -5.0])
def test_mse_is_the_best_of_its_grid(words: str, shift: float) -> None:
    """The extremes alone, shrunk by each factor, have the scales it may choose from: none errs less, zero point too."""
    x, scheme = normal(24, 64) ** 3 + shift, w(words)
    extremes = torch.stack([x.min(), x.max()]).reshape(1, 2)
    grid = [choose_scale(extremes * 2 ** (-i / 12), scheme) for i in range(37)]
    errors = [float((fake_quantize(x, scheme, scales) - x).square().sum()) for scales in grid]
    best = grid[errors.index(min(errors))]
    chosen = choose_scale(x, w(f"{words}/mse"))
    assert torch.equal(chosen.scale, best.scale)
    if chosen.zero_point is not None and best.zero_point is not None:
        assert torch.equal(chosen.zero_point, best.zero_point)
    assert errors.index(min(errors)) > 0 or shift != 0


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("words", MSE)
def test_mse_never_loses_more_than_absmax_in_any_tile(granularity: str, words: str) -> None:
    x = normal(24, 64) ** 3
    scheme = w(words.format(granularity))
    plain = w(words.format(granularity).replace("/mse", ""))
    lost, lost_plain = (fake_quantize(x, s) - x for s in (scheme, plain))
    for (_, _, ours), (_, _, theirs) in zip(pieces(lost, scheme), pieces(lost_plain, plain), strict=True):
        assert ours.square().sum() <= theirs.square().sum() * (1 + 1e-5)  # the sums are taken in another order
    assert lost.square().sum() < lost_plain.square().sum()


@pytest.mark.parametrize("percent", [50, 90, 99, 99.9, 100])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_percentile_is_that_of_the_magnitudes_of_each_tile(granularity: str, percent: float) -> None:
    x = normal(21, 150)
    scheme = w(f"int8/{granularity}/p{percent:g}")
    scales = choose_scale(x, scheme).scale
    for i, j, tile in pieces(x, scheme):
        expected = np.percentile(tile.abs().double().numpy(), percent) / 127
        assert scales[i, j].item() == pytest.approx(expected, rel=1e-6)


def test_a_percentile_of_zero_keeps_the_extremes() -> None:
    x = torch.zeros(1, 1000)
    x[0, 0] = 127.0
    assert choose_scale(x, w("int8/channel/p99")).scale.item() == 1.0


@pytest.mark.parametrize("kind", SCALE_BITS)
@pytest.mark.parametrize("words", STORED)
def test_scales_are_kept_exactly_as_they_will_be_stored(kind: str, words: str) -> None:
    """From 1e-44, a subnormal, to 1e38: positive, finite, unchanged by a trip through their dtype."""
    x = normal(84, 50).clamp(-3, 3) * torch.logspace(-44, 37, 84)[:, None]
    scheme = w(f"{words}/scale-{kind}")
    assert bool(fake_quantize(x[:2], scheme).isfinite().all())
    scales = choose_scale(x, scheme)
    assert torch.equal(scales.scale.to(SCALE_DTYPES[scheme.scale]).float(), scales.scale)
    assert bool(((scales.scale > 0) & scales.scale.isfinite()).all())
    assert bool(fake_quantize(x, scheme).isfinite().all())
    assert (scales.tensor_scale is not None) == (kind in ("e4m3", "uint8"))


@pytest.mark.parametrize("words", ["int4/g32", "e2m1/g32", "int8/channel", "int4/g32/p95", "int4/g32/asymmetric"])
def test_power_of_two_scales_are_rounded_up_so_that_nothing_clips(words: str) -> None:
    x = normal(50, 64)
    wanted = choose_scale(x, w(words)).scale
    got = choose_scale(x, w(f"{words}/scale-e8m0")).scale
    assert bool(((got >= wanted) & (got < 2 * wanted)).all())
    assert torch.equal(got.log2(), got.log2().round())


@pytest.mark.parametrize("kind", SCALE_BITS)
@pytest.mark.parametrize("words", ["int8/g16", "int8/g16/asymmetric", "e2m1/g16", "int4/g16/mse", "int4/g16/p99"])
def test_a_tile_of_zeros_has_scale_one_and_stays_zero(kind: str, words: str) -> None:
    scheme = w(f"{words}/scale-{kind}")
    x = normal(4, 64)
    x[1:3, 16:48] = 0
    for values in (x, torch.zeros(4, 64)):
        scales = choose_scale(values, scheme)
        assert bool((scales.scale[1:3, 1:3] == 1).all())
        assert bool((fake_quantize(values, scheme)[1:3, 16:48] == 0).all())


@pytest.mark.parametrize(
    ("kind", "choice"),
    [
        *itertools.product(SCALE_BITS, ["absmax", "mse", "p99"]),
        *itertools.product(["float32", "float16", "e8m0"], ["mx-floor", "mx-even"]),
    ],
)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_nan_or_infinity_shows_in_its_tile(kind: str, choice: str, bad: float) -> None:
    x = normal(4, 64)
    x[2, 5] = bad
    scales = choose_scale(x, w(f"int8/g16/{choice}/scale-{kind}"))
    assert bool(scales.effective[2, 0].isnan())
    if kind not in ("e4m3", "uint8"):  # there the float32 above is lost, so all that it stands above shows it
        assert int(scales.effective.isnan().sum()) == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("e4m3/tensor/asymmetric", "integer format"),
        ("int4/g32/mx-floor/asymmetric", "no zero point"),
        ("int4/g32/mx-even/scale-e4m3", "powers of two"),
    ],
)
def test_a_scheme_that_contradicts_itself_is_refused(words: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        choose_scale(normal(4, 64), w(words))


@pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 0, 5)])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one element"):
        choose_scale(torch.zeros(shape), w("int8/tensor"))


# Static scales: from channel extremes and a histogram, instead of from the values themselves.


def statistics(x: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    edges = torch.cat([torch.zeros(1), torch.logspace(-6, 3, bins)])
    index = torch.bucketize(x.abs().flatten(), edges[1:-1], right=True)
    return x.amin(0), x.amax(0), torch.bincount(index, minlength=bins), edges


@pytest.mark.parametrize("words", [*STATIC, "e2m1/g16/mx-even/scale-e8m0"])
def test_static_scales_of_a_stream_are_those_of_its_values(words: str) -> None:
    scheme = a(f"{words}/static")
    x = normal(300, 72)
    ours, expected = static_scales(*statistics(x, 64), scheme), choose_scale(x, scheme)
    assert torch.equal(ours.scale, expected.scale)
    assert ours.scale.shape == scheme.granularity.scale_shape(300, 72)
    for one, other in [(ours.zero_point, expected.zero_point), (ours.tensor_scale, expected.tensor_scale)]:
        assert (one is None and other is None) or (one is not None and other is not None and torch.equal(one, other))


@pytest.mark.parametrize("percent", [90, 99, 99.9, 99.99])
@pytest.mark.parametrize("symmetry", ["", "/asymmetric"])
def test_a_static_percentile_is_right_to_the_width_of_a_bin(percent: float, symmetry: str) -> None:
    scheme = a(f"int8/tensor/static/p{percent:g}{symmetry}")
    x = normal(2000, 40) ** 3
    low, high, histogram, edges = statistics(x, 512)
    ours, expected = static_scales(low, high, histogram, edges, scheme), choose_scale(x, scheme)
    width = float(edges[-1] / edges[-2])
    assert ours.scale.item() == pytest.approx(expected.scale.item(), rel=width - 1)


def test_a_static_mse_clips_a_spike_that_is_not_worth_its_range() -> None:
    """One element of 80 000 a hundred times the rest: clipped, it loses less than all the others would."""
    x = normal(2000, 40)
    x[7, 7] = 100.0
    scheme = a("int4/tensor/static/mse")
    ours = static_scales(*statistics(x, 512), scheme)
    plain = choose_scale(x, a("int4/tensor/static"))
    errors = [float((fake_quantize(x, scheme, s) - x).square().sum()) for s in (ours, plain)]
    assert ours.scale.item() < 10 / 7
    assert errors[0] < errors[1] / 5


def test_a_static_mse_agrees_with_the_values_it_summarizes() -> None:
    x = normal(2000, 40)
    scheme = a("int4/tensor/static/mse")
    histogram, values = static_scales(*statistics(x, 2048), scheme), choose_scale(x, scheme)
    errors = [float((fake_quantize(x, scheme, s) - x).square().sum()) for s in (histogram, values)]
    assert errors[0] == pytest.approx(errors[1], rel=0.01)


@pytest.mark.parametrize("format", ["int8", "int6", "int4"])
@pytest.mark.parametrize("spike", [0.0, 150.0])
def test_a_static_mse_is_within_a_hundredth_of_the_best_clip(format: str, spike: float) -> None:
    """Of all clips, 48 a halving, on values with heavy tails, from the histogram that observing keeps."""
    x = normal(2000, 40) * normal(2000, 40, seed=1).abs()
    x[7, 7] = max(spike, float(x[7, 7]))
    scheme, widest = a(f"{format}/tensor/static/mse"), choose_scale(x, a(f"{format}/tensor/static"))
    ours = static_scales(x.amin(0), x.amax(0), bin_counts(count_magnitudes(x)), EDGES, scheme)
    clips = [ours, *(Scales(widest.scale * 2.0 ** (-step / 48)) for step in range(400))]
    error, *others = (float((fake_quantize(x, scheme, scales) - x).square().sum()) for scales in clips)
    assert error <= 1.01 * min(others)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("int8/g16/static/mse", "not for its groups"),
        ("int8/g16/static/p99", "not for its groups"),
        ("int8/tensor/static/mse/asymmetric", "signs"),
        ("int8/token", "between tokens"),
        ("e4m3/tensor/static/asymmetric", "integer format"),
    ],
)
def test_what_the_statistics_cannot_serve_is_refused(words: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        static_scales(*statistics(normal(30, 32), 64), a(words))


def test_an_empty_histogram_is_refused() -> None:
    low, high, histogram, edges = statistics(normal(30, 32), 64)
    for wrong in ((histogram * 0, edges), (histogram, edges[1:]), (histogram, edges + 1)):
        with pytest.raises(ValueError, match="not all empty"):
            static_scales(low, high, *wrong, a("int8/tensor/static/p99"))

"""Learned tables and sparse parts: the least error there is, the bits that are counted, the numbers that come back."""

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.maths.kmeans import cluster_rows
from qarat.maths.packing import pack
from qarat.maths.sparse import Sparse, highest
from qarat.maths.tables import find_tables
from qarat.maths.tensors import QuantizedTensor, quantize_tensor
from qarat.stages.rounding import round_weight
from qarat.testing.extensions import KnownInputs
from qarat.values.parsing import parse_tensor_scheme
from qarat.values.schemes import TensorScheme


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def w(words: str) -> TensorScheme:
    return parse_tensor_scheme(words, "w")


def error(values: Tensor, weights: Tensor, centres: Tensor) -> float:
    """Weighted squared error of numbers that go to the nearest centre."""
    return float((weights * (values[:, None] - centres).square().amin(1)).sum())


def spread(values: Tensor, weights: Tensor) -> float:
    """Weighted squared error of one cluster."""
    mean = (weights * values).sum() / weights.sum().clamp(min=1e-30)
    return float((weights * (values - mean).square()).sum())


@pytest.mark.parametrize("clusters", [2, 3, 4])
def test_k_means_is_that_of_every_partition(clusters: int) -> None:
    values, weights = normal(6, 9), normal(6, 9, seed=1).square()
    weights[1, :5], weights[2] = 0.0, 0.0  # some and all that count for nothing
    ours = cluster_rows(values, weights, clusters)
    assert bool((ours.diff(dim=1) >= 0).all())
    for row, counts, centres in zip(values, weights, ours, strict=True):
        counts = counts if float(counts.sum()) else torch.ones(9, dtype=torch.float64)
        ordered, order = row.sort()
        tried: list[float] = []
        for cuts in combinations(range(1, 9), clusters - 1):
            parts = list(zip((0, *cuts), (*cuts, 9), strict=True))
            sums = [(ordered[i:j], counts[order][i:j]) for i, j in parts]
            tried.append(
                sum(float((c * (v - (c * v).sum() / c.sum().clamp(min=1e-30)).square()).sum()) for v, c in sums)
            )
        assert error(row, counts, centres) == pytest.approx(min(tried), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("clusters", [8, 16])
def test_k_means_errs_no_more_than_sklearn_on_any_row(clusters: int) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    values, weights = normal(10, 120), normal(10, 120, seed=1) ** 4
    for row, counts, centres in zip(values, weights, cluster_rows(values, weights, clusters), strict=True):
        theirs = cluster.KMeans(clusters, n_init=3, max_iter=50, random_state=0)
        theirs.fit(row[:, None].numpy(), sample_weight=counts.numpy())
        found = torch.from_numpy(theirs.cluster_centers_[:, 0])
        assert error(row, counts, centres) <= error(row, counts, found) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("bits", "optimal", "linear"), [(2, 0.1175, 0.1188), (3, 0.03454, 0.03744), (4, 0.009497, 0.01154)]
)
def test_of_a_gaussian_it_is_the_quantizer_of_lloyd_and_max(bits: int, optimal: float, linear: float) -> None:
    """Max 1960, tables I and II: the least mean squared error of any quantizer, and of one with equal steps."""
    count = 20000
    values = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    ones = torch.ones_like(values)
    ours = error(values, ones, cluster_rows(values[None], ones[None], 1 << bits)[0]) / count
    assert ours == pytest.approx(optimal, rel=0.01)
    assert ours < linear


def test_rows_together_are_rows_alone() -> None:
    values, weights = normal(7, 40), normal(7, 40, seed=1).square()
    alone = [cluster_rows(v[None], c[None], 4)[0] for v, c in zip(values, weights, strict=True)]
    assert torch.equal(cluster_rows(values, weights, 4), torch.stack(alone))


@pytest.mark.parametrize("words", ["kmeans3/channel", "kmeans2/g16", "kmeans4/g12"])
def test_a_code_is_the_nearest_of_its_own_table(words: str) -> None:
    scheme, weight = w(words), normal(6, 40).float()
    codes, scales = find_tables(weight, scheme, torch.ones_like(weight))
    size = scheme.granularity.cols or 40
    assert scales.table is not None
    assert scales.table.shape == (6, math.ceil(40 / size), 1 << scheme.number_format.bits)
    stored = QuantizedTensor(codes, scales, scheme).dequantize()
    for row, col in ((0, 0), (3, 17), (5, 39)):
        table = scales.table[row, col // size].float()
        assert float(stored[row, col]) == float(table[(table - weight[row, col]).abs().argmin()])


def test_numbers_beyond_float16_are_refused() -> None:
    with pytest.raises(UserError, match="beyond what a table of float16 reaches"):
        find_tables(torch.full((2, 8), 1e6), w("kmeans2/channel"), torch.ones(2, 8))
    with pytest.raises(UserError, match="beyond what float16 reaches"):
        round_weight(torch.eye(8) * 1e6, w("int4/channel/sparse-10"))
    with pytest.raises(ValueError, match="finite"):
        find_tables(torch.full((2, 8), torch.nan), w("kmeans2/channel"), torch.ones(2, 8))
    with pytest.raises(ValueError, match="tables in place of scales"):
        quantize_tensor(torch.ones(2, 8), w("kmeans2/channel"))


@pytest.mark.parametrize(
    "words", ["int4/g8", "int3/channel/asymmetric", "int4/channel/mse", "mxfp4", "kmeans3/channel"]
)
def test_the_sparse_part_keeps_what_it_is_given(words: str) -> None:
    """In it: the weights as float16, of tables as what they lack. Beside it: as if those weights were 0."""
    weight = normal(8, 32).float()
    weight[2, 5] = 90.0
    scheme = w(f"{words}/sparse-5")
    ours = round_weight(weight, scheme)
    kept = highest(weight.abs(), scheme.sparse_count(8, 32))
    assert int(kept.sum()) == 13
    assert kept[2, 5]
    stored = ours.dequantize()
    assert torch.allclose(stored[kept], weight[kept], rtol=2e-3, atol=0)
    rest = round_weight(weight.masked_fill(kept, 0.0), w(words)).dequantize()
    if not scheme.number_format.learned:  # where a 0 counts as any other number
        assert torch.equal(stored[~kept], rest[~kept])
        assert torch.equal(ours.dequantize().masked_fill(~kept, 0.0)[kept], weight[kept].half().float())
    assert float((stored - weight).square().sum()) < float(
        (round_weight(weight, w(words)).dequantize() - weight).square().sum()
    )


def test_what_is_kept_has_no_part_in_a_table() -> None:
    """Two numbers to a row but for what is kept: two centres hold them exactly."""
    weight = torch.tensor([[0.5, -0.25] * 8] * 4)
    weight[:, 3] = 8.0
    stored = round_weight(weight, w("kmeans2/channel/sparse-6.25"))
    assert torch.equal(stored.dequantize(), weight)


def test_the_sparse_part_is_compressed_rows() -> None:
    missing = torch.tensor([[0.0, 1.5, 0.0], [0.0, 0.0, 0.0], [2.0, 0.0, -3.0]])
    sparse = Sparse.of(missing, missing != 0)
    assert (sparse.values.tolist(), sparse.columns.tolist(), sparse.ends.tolist()) == (
        [1.5, 2, -3],
        [1, 0, 2],
        [1, 1, 3],
    )
    assert torch.equal(sparse.add_to_(torch.ones(3, 3)), missing + 1)
    wide = torch.zeros(1, 1 << 16)
    wide[0, -1] = 1.0
    far = Sparse.of(wide, wide != 0)
    far.check(1 << 16)
    assert torch.equal(far.add_to_(torch.zeros_like(wide)), wide)
    with pytest.raises(UserError, match="counts columns in 16 bits, and these are 65537"):
        Sparse.of(torch.zeros(1, (1 << 16) + 1), torch.zeros(1, (1 << 16) + 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="column beyond the 2 of the weight"):
        sparse.check(2)
    with pytest.raises(ValueError, match="do not follow each other"):
        sparse._replace(ends=sparse.ends + 1).check(3)


def test_of_equal_scores_the_first_are_highest() -> None:
    assert highest(torch.tensor([[1.0, 2.0], [2.0, 2.0]]), 2).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    ("words", "bits"),
    [
        ("kmeans4/channel", 4 + 16 * 16 / 512),
        ("kmeans3/channel", 3 + 16 * 8 / 512),
        ("kmeans3/g128", 3 + 16 * 8 / 128),
        ("kmeans4/channel/sparse-0.5", 4 + 16 * 16 / 512 + 0.005 * 32 + 32 / 512),
        ("int3/g128/sparse-1", 3 + 32 / 128 + 0.01 * 32 + 32 / 512),
    ],
)
def test_bits_are_the_formulas_and_what_is_stored(words: str, bits: float) -> None:
    """b + 16·2^b / in of a table by row, r·32 + 32/in of a sparse part."""
    scheme, shape = w(words), (100, 512)
    counted = scheme.bits(*shape) / (100 * 512)
    assert counted == pytest.approx(bits, rel=1e-12)
    stored = round_weight(normal(*shape).float(), scheme)
    size = pack(stored.codes, scheme.number_format).nbytes
    size += stored.scales.scale.nbytes if stored.scales.table is None else stored.scales.table.nbytes
    size += sum(part.nbytes for part in stored.sparse or ())
    assert size * 8 == scheme.bits(*shape)


def test_what_a_kernel_multiplies_is_dense_and_sparse() -> None:
    """The product with the codes plus the product with what is kept, summed apart."""
    weight, x = normal(12, 24).float(), normal(5, 24, seed=1).float()
    context = KnownInputs(normal(50, 24, seed=2).float())
    ours = round_weight(weight, w("kmeans3/channel/sparse-5/round-squeezellm"), context)
    assert ours.sparse is not None
    dense = QuantizedTensor(ours.codes, ours.scales, ours.scheme).dequantize()
    beside = torch.zeros(12, 24)
    for row, end in enumerate(ours.sparse.ends.tolist()):
        start = int(ours.sparse.ends[row - 1]) if row else 0
        for at in range(start, end):
            beside[row, int(ours.sparse.columns[at])] = float(ours.sparse.values[at])
    assert int((beside != 0).sum()) == w("kmeans3/channel/sparse-5").sparse_count(12, 24)
    assert torch.allclose(x @ ours.dequantize().T, x @ dense.T + x @ beside.T, atol=1e-5)

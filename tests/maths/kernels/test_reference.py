"""The reference kernel: its meaning, spelled out; and the registry that finds the others."""

import pytest
import torch
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.maths import kernels
from qarat.maths.kernels import int8, reference
from qarat.maths.scales import choose_scale
from qarat.maths.tensors import fake_quantize, quantize_tensor
from qarat.values.parsing import parse_scheme, parse_tensor_scheme
from qarat.values.schemes import LinearScheme, MatmulScheme

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_projection_in_float_is_torch_linear() -> None:
    x, weight, bias = normal(2, 5, 32), normal(16, 32, seed=1), normal(16, seed=2)
    assert torch.equal(reference.linear(x, weight, bias, None, None), torch.nn.functional.linear(x, weight, bias))
    narrow = reference.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), None, None)
    assert narrow.dtype == torch.float32
    assert torch.equal(narrow, torch.nn.functional.linear(*(t.bfloat16().float() for t in (x, weight, bias))))


@pytest.mark.parametrize("weight_words", ["int8/channel", "int4/g16/asymmetric", "mxfp4", "nvfp4"])
@pytest.mark.parametrize("input_words", ["int8/token", "e4m3/tensor/dynamic", "mxfp8", "int8/tensor/static"])
def test_a_projection_multiplies_what_quantization_leaves(weight_words: str, input_words: str) -> None:
    x, w, bias = normal(2, 5, 32), normal(16, 32, seed=1), normal(16, seed=2)
    before = x.clone()
    weight, scheme = quantize_tensor(w, parse_tensor_scheme(weight_words, "w")), parse_tensor_scheme(input_words, "a")
    scales = choose_scale(normal(50, 32, seed=3), scheme) if scheme.static else None
    left, right = fake_quantize(x, scheme, scales), fake_quantize(w, weight.scheme)
    expected = torch.nn.functional.linear(left, right, bias)
    assert torch.equal(reference.linear(x, weight, bias, scheme, scales), expected)
    assert torch.equal(x, before)


def product(text: str) -> MatmulScheme:
    scheme = parse_scheme(text, "product")
    assert isinstance(scheme, MatmulScheme)
    return scheme


def test_operands_of_a_product_are_grouped_along_its_reduction_axis() -> None:
    """The right operand's groups run down its columns: for probabilities·V, over tokens within a channel."""
    left, right = normal(2, 3, 8, 64), normal(2, 3, 64, 10, seed=1)
    right[..., 5, 7] = 1000.0  # spoils the 32 of its own column and group, and nothing else
    a, b = reference.matmul_operands(left, right, product("l=mxfp4 r=int4/g32"))
    assert torch.equal(a, fake_quantize(left, parse_tensor_scheme("mxfp4", "l")))
    column = fake_quantize(right[0, 1, :, 7].reshape(1, 64), parse_tensor_scheme("int4/g32", "r"))
    assert torch.equal(b[0, 1, :, 7], column[0])
    spoiled = (b - right).abs() > 0.5
    assert bool(spoiled[..., :32, 7].any())
    assert not bool(spoiled[..., 32:, :].any())
    assert not bool(spoiled[..., :7].any())


def test_an_operand_without_a_scheme_is_left_in_float() -> None:
    left, right = normal(2, 8, 16), normal(2, 16, 8, seed=1)
    a, b = reference.matmul_operands(left, right, product("float"))
    assert torch.equal(a, left)
    assert torch.equal(b, right)
    a, b = reference.matmul_operands(left, right, product("l=int8/token"))
    assert not torch.equal(a, left)
    assert torch.equal(b, right)


def test_static_operands_take_their_scales() -> None:
    left, right = normal(2, 8, 16), normal(2, 16, 8, seed=1)
    scheme = product("l=int8/tensor/static r=int8/tensor/static")
    assert scheme.left is not None
    assert scheme.right is not None
    scales = [choose_scale(3 * normal(9, 16, seed=s), scheme.left) for s in (2, 3)]
    a, b = reference.matmul_operands(left, right, scheme, *scales)
    assert torch.equal(a, fake_quantize(left, scheme.left, scales[0]))
    assert torch.equal(b, fake_quantize(right, scheme.right, scales[1]))


def test_the_folder_is_the_registry_and_the_reference_comes_last() -> None:
    assert "int8" in kernels.KERNELS.names()
    with pytest.raises(UserError, match="did you mean int8"):
        kernels.KERNELS.load("int9")
    with pytest.raises(UserError, match="did you mean fast"):
        kernels.choose(None, None, (16, 64), CPU, "fats")


ON_A_CPU = "int8" if int8.is_exact(int8.product, "cpu") else "int8-split"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("w=int8/channel a=int8/token", ON_A_CPU),
        ("w=int8/tensor a=int8/tensor/static", ON_A_CPU),
        ("w=int8/channel/asymmetric a=int8/tensor/dynamic/asymmetric", ON_A_CPU),
        ("w=int4/channel a=int8/token/outliers-6", ON_A_CPU),
        ("w=int8/g32 a=int8/token", "reference"),
        ("w=int8/channel a=int8/g32/static", "reference"),
        ("w=e4m3/channel a=e4m3/token", "reference"),
        ("w=int8/channel", "reference"),
        ("a=int8/token", "reference"),
    ],
)
def test_the_first_kernel_that_computes_it_is_chosen_and_the_reference_says_why(text: str, name: str) -> None:
    scheme = parse_scheme(text)
    assert isinstance(scheme, LinearScheme)
    chosen = kernels.choose(scheme.weight, scheme.input, (16, 64), CPU, "fast")
    assert chosen.kernel == name
    assert bool(chosen.why) == (name == kernels.REFERENCE)
    assert kernels.choose(scheme.weight, scheme.input, (16, 64), CPU) == kernels.Choice(kernels.REFERENCE)


def test_a_shape_that_could_overflow_and_another_device_fall_to_the_reference() -> None:
    scheme = parse_scheme("w=int8/channel a=int8/token")
    assert isinstance(scheme, LinearScheme)
    wide = kernels.choose(scheme.weight, scheme.input, (16, 70_000), CPU, "fast")
    assert wide.kernel == kernels.REFERENCE
    assert "fp8: computes e4m3 by e4m3; int8, int8-split: 70000 input features could overflow" in wide.why
    elsewhere = kernels.choose(scheme.weight, scheme.input, (16, 64), torch.device("meta"), "fast")
    assert elsewhere.kernel == kernels.REFERENCE
    assert "int8: integer sums on this meta device are not exact; int8-split: is for CPUs" in elsewhere.why


# ---------------------------------------------------------------- LLM.int8()


def spiky(*shape: int) -> Tensor:
    """Two columns reach 6: one in the first matrix alone, one, just, in the second."""
    x = normal(*shape).clamp(-5, 5)
    x[0, 2, 7], x[1, 1, 9] = -50.0, 6.0
    return x


def with_outliers(x: Tensor, words: str) -> Tensor:
    return reference.linear(x, torch.eye(x.shape[-1]), None, parse_tensor_scheme(words, "a"), None)


def test_without_outliers_it_is_the_plain_scheme() -> None:
    x = spiky(2, 5, 32)
    assert torch.equal(with_outliers(x, "int8/token/outliers-1000"), with_outliers(x, "int8/token"))


@pytest.mark.parametrize("words", ["int8/token", "int4/tensor/dynamic", "int8/g8", "int8/token/asymmetric"])
def test_a_threshold_of_zero_leaves_the_input_in_float(words: str) -> None:
    x = spiky(2, 5, 32)
    assert torch.equal(with_outliers(x, f"{words}/outliers-0"), x)


def test_columns_that_reach_the_threshold_stay_and_have_no_part_in_scales() -> None:
    x = spiky(2, 5, 32)
    y = with_outliers(x, "int8/token/outliers-6")
    columns = reference.outlier_columns(x, 6.0)
    assert columns.shape == (2, 1, 32)
    assert columns.squeeze(1).nonzero().tolist() == [[0, 7], [1, 9]]
    for matrix, column in ((0, 7), (1, 9)):
        others = [c for c in range(32) if c != column]
        assert torch.equal(y[matrix, :, column], x[matrix, :, column])
        assert torch.equal(y[matrix][:, others], with_outliers(x[matrix][:, others], "int8/token"))


def test_outlier_columns_do_not_depend_on_the_batch() -> None:
    x = spiky(2, 5, 32)
    alone = torch.cat([with_outliers(x[:1], "int8/token/outliers-6"), with_outliers(x[1:], "int8/token/outliers-6")])
    assert torch.equal(with_outliers(x, "int8/token/outliers-6"), alone)
    assert torch.equal(with_outliers(x[0], "int8/token/outliers-6"), alone[0])  # (rows, in) is one matrix


def test_only_a_product_knows_outlier_columns() -> None:
    scheme = parse_tensor_scheme("int8/token/outliers-6", "a")
    with pytest.raises(ValueError, match="the product's affair"):
        fake_quantize(normal(4, 8), scheme)
    with pytest.raises(ValueError, match="the product's affair"):
        quantize_tensor(normal(4, 8), scheme)

"""What roundings in given steps cost: the table against its definition, and scales that norms take unrounded."""

import pytest
import torch
from torch import Tensor

from qarat.maths.input_steps import DEAD, POINTS, Sensitivity, Steps, exact_scales, finest_steps, fits, tabulate
from qarat.maths.rounding import round_to_format
from qarat.values.formats import FORMATS
from qarat.values.parsing import parse_scheme
from qarat.values.schemes import LinearScheme


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["int8", "int4", "e4m3"])
def test_the_table_is_half_the_mean_of_what_rounding_changes_along_the_gradient(name: str) -> None:
    fmt, x, gradient = FORMATS[name], normal(300, 6) ** 3, normal(300, 6, seed=1)
    reach = x.abs().amax(0)
    table = tabulate(x, gradient, reach, fmt)
    for point in (0, 7, len(POINTS) - 1):
        step = reach / fmt.largest * 2 ** POINTS[point]
        change = round_to_format(x / step, fmt) * step - x
        torch.testing.assert_close(table[point], ((gradient * change) ** 2).mean(0) / 2)


def test_at_the_coarsest_step_int8_rounds_everything_to_nothing() -> None:
    x, gradient = normal(200, 4), normal(200, 4, seed=1)
    table = tabulate(x, gradient, x.abs().amax(0), FORMATS["int8"])
    torch.testing.assert_close(table[-1], ((gradient * x) ** 2).mean(0) / 2)


def test_a_dead_channel_is_rounded_as_if_it_reached_a_little() -> None:
    steps = finest_steps(torch.tensor([127.0, 0.0]), 127)
    torch.testing.assert_close(steps, torch.tensor([1.0, DEAD]))
    assert bool((finest_steps(torch.zeros(3), 127) > 0).all())


def test_heads_that_share_a_source_share_its_scales() -> None:
    """Four query heads of two channels, two value heads."""
    none = torch.zeros(0, 8)
    found = Sensitivity(torch.ones(8), {}, (none, none), (), (), share=2, head=2)
    by_source = torch.tensor([1.0, 2.0, 3.0, 4.0])
    spread = found.spread(by_source)
    assert spread.tolist() == [1, 2, 1, 2, 3, 4, 3, 4]
    assert torch.equal(found.gather(spread), by_source)


def test_scales_are_steps_over_copies_with_a_mean_of_one() -> None:
    steps = Steps(torch.tensor([8.0, 2.0, 1.0]), torch.tensor([4, 1, 1]), 1.0, 2.0)
    torch.testing.assert_close(steps.scales, torch.tensor([2.0, 2.0, 1.0]) / 4 ** (1 / 3))
    assert steps.damage == 3.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_is_divided_by_exact_scales_without_being_rounded(dtype: torch.dtype, offset: float) -> None:
    weight = (normal(400) * 0.2 + 1 - offset).to(dtype)
    scales = normal(400, seed=1).exp()
    exact = exact_scales(scales, weight, dtype, offset)
    divided = (weight.double() + offset) / exact.double() - offset
    torch.testing.assert_close(divided, divided.to(dtype).double(), rtol=1e-6, atol=1e-6)
    # as close as the dtype is fine, where an offset does not cancel most of it
    assert float((exact / scales).log().abs().median()) < 2 * torch.finfo(dtype).eps


def test_what_no_exact_scale_can_divide_keeps_its_own() -> None:
    assert exact_scales(torch.tensor([3.0]), torch.zeros(1), torch.bfloat16).tolist() == [3.0]


@pytest.mark.parametrize(
    ("spelling", "fitting"),
    [
        ("w=int8/channel a=int8/tensor/static", True),
        ("w=int6/channel a=int6/tensor/dynamic", True),
        ("a=e4m3/tensor/static", True),
        ("w=int4/g128", True),
        ("w=int8/channel a=int8/token", True),
        ("w=int8/channel a=int8/g32", True),
        ("w=mxint4 a=mxint4", False),
        ("w=e4m3/channel", False),
        ("w=int8/channel a=int8/tensor/static/asymmetric", False),
    ],
)
def test_steps_are_fitted_where_one_scale_serves_all_channels(spelling: str, fitting: bool) -> None:
    scheme = parse_scheme(spelling)
    assert isinstance(scheme, LinearScheme)
    assert fits(scheme.weight, scheme.input) == fitting

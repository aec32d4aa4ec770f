"""Formats: the tables are those of the standards, and nothing else passes for a table."""

import math

import pytest
import torch

from qarat.ground.registry import nearest_names
from qarat.values.formats import FORMATS, NumberFormat, floating, format_named


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_are_what_engines_compute(bits: int) -> None:
    full, symmetric = FORMATS[f"int{bits}"], FORMATS[f"sint{bits}"]
    assert full.values == tuple(range(-(2 ** (bits - 1)), 2 ** (bits - 1)))
    assert symmetric.values == full.values[1:]
    assert full.largest == symmetric.largest == 2 ** (bits - 1) - 1
    assert full.bits == symmetric.bits == bits
    assert full.is_integer
    assert symmetric.is_integer


@pytest.mark.parametrize(("name", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
def test_eight_bit_floats_are_the_finite_numbers_of_torch(name: str, dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    finite = sorted(set(every[every.isfinite()].tolist()))
    assert FORMATS[name].values == tuple(finite)
    assert FORMATS[name].bits == 8


def test_small_floats_are_those_of_ocp_mx() -> None:
    """OCP MX v1.0, section 5.3: tables and largest values of FP4 and FP6."""
    assert FORMATS["e2m1"].values == (-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6)
    assert (FORMATS["e2m3"].largest, FORMATS["e2m3"].bits, len(FORMATS["e2m3"].values)) == (7.5, 6, 63)
    assert (FORMATS["e3m2"].largest, FORMATS["e3m2"].bits, len(FORMATS["e3m2"].values)) == (28.0, 6, 63)
    assert min(v for v in FORMATS["e2m3"].values if v > 0) == 0.125
    assert min(v for v in FORMATS["e3m2"].values if v > 0) == 0.0625


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_every_table_is_ascending_exact_in_float32_and_finds_its_zero(fmt: NumberFormat) -> None:
    values = torch.tensor(fmt.values, dtype=torch.float32)
    assert values.tolist() == list(fmt.values)
    assert bool((values.diff() > 0).all())
    assert fmt.values[fmt.zero] == 0.0


@pytest.mark.parametrize(
    "values",
    [(0.0,), (1.0, 2.0), (0.0, 0.0), (1.0, 0.0), (0.0, math.inf), tuple(float(v) for v in range(257))],
    ids=["one", "no zero", "equal", "descending", "infinite", "257"],
)
def test_what_is_no_table_is_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="format 'f'"):
        NumberFormat("f", values)


def test_a_largest_value_that_the_float_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="no value"):
        floating(2, 1, largest=5.0)


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"did you mean .*int4"):
        format_named("itn4")
    assert nearest_names("zzz", ["a", "b"]) == "known: a, b"
    assert format_named("e2m1") is FORMATS["e2m1"]

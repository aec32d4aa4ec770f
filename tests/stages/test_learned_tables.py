"""Learned tables: what k-means promises, and a plan that carries its own table."""

from pathlib import Path

import pytest
import torch

import qarat
from qarat.ground.errors import UserError
from qarat.maths.packing import pack, unpack
from qarat.maths.rounding import round_to_format
from qarat.maths.tensors import fake_quantize, quantize_tensor
from qarat.stages.learned_tables import table_of
from qarat.testing import tiny_checkpoint
from qarat.values.formats import format_named, literal_table
from qarat.values.schemes import Granularity, SchemeError, TensorScheme


def units(seed: int) -> torch.Tensor:
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(seed)) / 4
    return torch.cat([x.clamp(-1, 1), torch.tensor([-1.0, 1.0])])


@pytest.mark.parametrize("bits", [3, 4])
def test_a_learned_table_rounds_better_than_the_even_one(bits: int) -> None:
    """Even against an even table with one value more."""
    x = units(0)
    learned = table_of(x, bits)
    assert len(learned.values) == 2**bits
    assert (learned.values[0], learned.values[-1]) == (-1.0, 1.0)
    assert 0.0 in learned.values
    even = literal_table(tuple(v / (2 ** (bits - 1)) for v in range(-(2 ** (bits - 1)), 2 ** (bits - 1) + 1)))
    errors = [float((round_to_format(x, table) - x).square().mean()) for table in (learned, even)]
    assert errors[0] < errors[1]


def test_the_name_spells_the_table() -> None:
    table = table_of(units(1), 4)
    assert format_named(table.name) == table
    scheme = qarat.parse_scheme(f"w={table.name}/g64 a=int8/token")
    assert qarat.parse_scheme(str(scheme)) == scheme
    assert isinstance(scheme, qarat.LinearScheme)
    assert scheme.weight is not None
    assert scheme.weight.number_format == table


def test_what_is_no_table_is_refused_at_its_place() -> None:
    with pytest.raises(SchemeError, match="no table"):
        qarat.parse_scheme("w={-1,0.5,1}/channel")
    with pytest.raises(UserError, match="no table"):
        format_named("{a,b}")


def test_codes_of_a_learned_table_survive_packing() -> None:
    table = table_of(units(2), 3)
    scheme = TensorScheme(table.name, Granularity(1, 16))
    weight = torch.randn(8, 48, generator=torch.Generator().manual_seed(3))
    stored = quantize_tensor(weight, scheme)
    assert torch.equal(unpack(pack(stored.codes, table), table, 48), stored.codes)
    assert torch.equal(stored.dequantize(), fake_quantize(weight, scheme))


def test_a_native_folder_carries_its_learned_table(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model")
    model = qarat.open_model(str(tmp_path / "model"))
    table = qarat.learn_table(model, 4, Granularity(1, 16))
    plan = qarat.assign(model.fingerprint, model.source_bits, model.sites(), f"w={table.name}/g16")
    small = qarat.quantize(model, plan)
    qarat.write_native(small, plan, tmp_path / "small")
    back, read = qarat.read_native(tmp_path / "small")
    ids = torch.arange(1, 20).unsqueeze(0)
    assert read == plan
    assert torch.equal(back.module()(ids).logits, small.module()(ids).logits)
    with pytest.raises(UserError, match="quantized already"):
        qarat.learn_table(small, 4, Granularity(1, 16))

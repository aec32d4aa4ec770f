from pathlib import Path

import pytest

from qarat.model.model import Model
from qarat.model.token_sets import load_token_sets
from qarat.model.tokens import TokenSet
from qarat.stages.measure.outliers import measure_float_columns
from qarat.stages.quantize import quantize
from qarat.values.plans import assign


@pytest.fixture
def tokens(tiny_model: Model, tiny_text: Path) -> TokenSet:
    return load_token_sets(tiny_model, calibration=str(tiny_text), length=32, samples=4, report_samples=4)[0]


def shares(model: Model, tokens: TokenSet, threshold: str) -> dict[str, float]:
    low = f"w=int8/channel a=int8/token/outliers-{threshold}"
    rules = [("1.down", "float"), ("1.o", "w=int8/channel a=int8/token")]
    quantized = quantize(model, assign(model.fingerprint, 32, model.sites(), low, rules))
    return dict(measure_float_columns(quantized, tokens))


def test_the_share_runs_from_all_to_none_with_the_threshold(tiny_model: Model, tokens: TokenSet):
    every, some, none = (shares(tiny_model, tokens, t) for t in ("0", "1.5", "1000000"))
    assert set(every.values()) == {1.0}
    assert set(none.values()) == {0.0}
    assert any(0 < share < 1 for share in some.values())
    projections = {s.name for s in tiny_model.sites() if s.kind == "projection"}
    assert every.keys() == projections - {"model.layers.1.mlp.down_proj", "model.layers.1.self_attn.o_proj"}


def test_sites_that_share_an_input_share_its_columns(tiny_model: Model, tokens: TokenSet):
    found = shares(tiny_model, tokens, "1.5")
    assert len({found[f"model.layers.0.self_attn.{p}_proj"] for p in "qkv"}) == 1


def test_batches_do_not_show(tiny_model: Model, tokens: TokenSet, monkeypatch: pytest.MonkeyPatch):
    together = shares(tiny_model, tokens, "1.5")
    monkeypatch.setattr(type(tiny_model.runtime), "batch_tokens", 32)
    assert shares(tiny_model, tokens, "1.5") == together


def test_no_hook_stays(tiny_model: Model, tokens: TokenSet):
    low = "w=int8/channel a=int8/token/outliers-6"
    quantized = quantize(tiny_model, assign(tiny_model.fingerprint, 32, tiny_model.sites(), low))
    measure_float_columns(quantized, tokens)
    assert not any(module._forward_pre_hooks for _, block in quantized.walk() for module in block.modules())

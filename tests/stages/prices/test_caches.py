"""Prices of caches: what later tokens read and what a token reads of itself, told apart in one pass."""

from typing import Any

import pytest
import torch
from torch import Tensor

from qarat.model.capture import run_capturing
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.passes import backward, draw_labels
from qarat.model.tokens import TokenSet
from qarat.stages.observe import observe
from qarat.stages.prices.changes import Pricing
from qarat.stages.prices.pricing import price
from qarat.testing import tiny_checkpoint
from qarat.values.parsing import parse_scheme
from qarat.values.roles import CACHES

PLAIN, PAST = "c=int6/token", "c=int6/token/past-only"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    sizes: dict[str, Any] = {"hidden": 32, "heads": 4, "kv_heads": 2, "intermediate": 48, "vocabulary": 48}
    return open_model(str(tiny_checkpoint(folder, blocks=2, **sizes)))


@pytest.fixture(scope="module")
def tokens() -> TokenSet:
    ids = torch.randint(2, 40, (5, 12), generator=torch.Generator().manual_seed(4))
    ids[:, 0] = 0
    return TokenSet("selection", "windows-12-bos", ids, tuple(f"text {i}" for i in range(5)), ("0" * 64,), ("text",))


def captured(model: Model, tokens: TokenSet, *spellings: str) -> list[dict[str, Tensor]]:
    """Gradients of every site, of the last block first."""
    schemes = [parse_scheme(text) for text in spellings]
    pricing = Pricing(model, tokens, schemes, None, None, (), 0, lambda *_: None)
    return [seen.captured.gradients for seen in backward(lambda _: draw_labels(0))(pricing)]


def test_gradients_of_both_readings_sum_to_that_of_the_projection(model: Model, tokens: TokenSet):
    """Values go into the cache as v_proj puts them out."""
    for gradients in captured(model, tokens, PLAIN):
        both = gradients["v_cache"].sum(1).transpose(1, 2).flatten(2)
        torch.testing.assert_close(both, gradients["self_attn.v_proj"], rtol=1e-4, atol=1e-6)


def test_the_last_token_is_read_by_itself_alone_and_earlier_ones_by_others(model: Model, tokens: TokenSet):
    for gradients in captured(model, tokens, PLAIN):
        for name in CACHES:
            later, own = gradients[name].unbind(1)
            assert not later[..., -1, :].any()
            assert own[..., 1:, :].abs().amax() > 0
            assert later[..., :-1, :].abs().amax() > 0
        # What the first token reads of itself alone it reads whatever its key is.
        assert not gradients["k_cache"][:, 1, :, 0].abs().amax() > 1e-6


def test_looking_at_a_cache_changes_no_hidden_state(model: Model, tokens: TokenSet):
    hidden = model.embed(tokens.windows)
    for index, block in model.walk():
        expected = model.run_block(index, block, hidden)
        shown, seen = run_capturing(model, index, block, hidden, CACHES)
        torch.testing.assert_close(shown, expected, rtol=1e-5, atol=1e-5)
        assert seen.outputs["k_cache"].shape == (5, 2, 2, 12, 8)
        assert seen.operands["k_cache"][0].shape == (5, 2, 12, 8)
        hidden = expected


def test_each_scheme_costs_alone_what_it_costs_among_others(model: Model, tokens: TokenSet):
    stats = observe(model, tokens)
    spellings = [PLAIN, PAST, "c=int4/g8/asymmetric", "c=e4m3/tensor/static", "c=int4/g8/static", "c=int4/g1/static"]
    spellings += ["c=int4/g8/2d"]
    together = price(model, tokens, [parse_scheme(text) for text in (*spellings, "w=int4/channel")], stats)
    for text in spellings:
        alone = price(model, tokens, [parse_scheme(text)], stats)
        assert len(alone.entries) == 4
        for name, damage in alone.damages(text).items():
            assert damage == pytest.approx(together.damages(text)[name], rel=1e-3)


def test_a_prefix_in_float_costs_nothing(model: Model, tokens: TokenSet):
    """All but the last token in float: nobody else reads that one, so past-only its rounding costs nothing."""
    shared = TokenSet(
        "selection", "windows-12-bos", tokens.windows[:1].repeat(3, 1), tokens.sources[:3], ("0" * 64,), ("text",)
    )
    prefix = tuple(shared.windows[0, :11].tolist())
    menu = price(model, shared, [parse_scheme(PLAIN), parse_scheme(PAST)], prefix=prefix)
    assert all(damage == 0 for damage in menu.damages(PAST).values())
    assert all(damage > 0 for name, damage in menu.damages(PLAIN).items())


@pytest.mark.parametrize("metric", ["kl", "output-error", "elementwise", "gradient-error"])
def test_every_metric_that_looks_at_tokens_prices_caches(model: Model, tokens: TokenSet, metric: str):
    menu = price(model, tokens, [parse_scheme(PLAIN), parse_scheme(PAST)], metric=metric)
    assert len(menu.entries) == 8
    assert all(e.damage > 0 for e in menu.entries)
    if metric != "kl":  # what a token reads of itself comes on top
        assert all(menu.damages(PAST)[name] < damage for name, damage in menu.damages(PLAIN).items())

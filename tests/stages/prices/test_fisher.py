"""Fisher damage against two things it must be: a sum over autograd's own gradients, and a second-order KL divergence.

The models have one block where the law is to hold without remainder: there a token's site output moves that token's
logits alone (save for keys and values), so that no two tokens couple.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.model.attention import PRODUCTS
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.observe import observe
from qarat.stages.prices.fisher import METRIC
from qarat.stages.prices.pricing import price
from qarat.stages.quantize import quantize
from qarat.testing import tiny_checkpoint
from qarat.values.parsing import parse_scheme
from qarat.values.plans import assign
from qarat.values.records.files import content_hash
from qarat.values.records.prices import Menu
from qarat.values.schemes import CacheScheme, LinearScheme, MatmulScheme, Scheme

INT8 = "w=int8/channel a=int8/token"
STATIC = "w=int8/channel a=int8/tensor/static"
PRODUCT = "l=int8/token r=int8/token"


def token_set(windows: int = 6, length: int = 16, seed: int = 4) -> TokenSet:
    ids = torch.randint(2, 40, (windows, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 0
    sources = tuple(f"text {i}" for i in range(windows))
    return TokenSet("selection", f"windows-{length}-bos", ids, sources, ("0" * 64,), ("text",))


def checkpoint(folder: Path, blocks: int) -> Path:
    return tiny_checkpoint(folder, hidden=16, blocks=blocks, heads=2, kv_heads=1, intermediate=24, vocabulary=48)


@pytest.fixture(scope="module")
def one_block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("models") / "one", 1)


@pytest.fixture(scope="module")
def three_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("models") / "three", 3)


def schemes(*spellings: str) -> list[Scheme]:
    return [parse_scheme(s) for s in spellings]


# ---------------------------------------------------------------- the gradients


def drawn_labels(log_probabilities: Tensor, seed: int) -> Tensor:
    """(windows, tokens) labels, drawn as the module says: a generator a window, the inverse of the distribution."""
    labels = []
    for index, window in enumerate(log_probabilities):
        generator = torch.Generator().manual_seed((seed * 2654435769 + index) % 2**32)
        uniform = torch.rand(len(window), 1, generator=generator, dtype=torch.float64)
        below = window.double().exp().cumsum(-1)
        labels.append((below <= uniform * below[:, -1:]).sum(-1))
    return torch.stack(labels)


def plain_int8(x: Tensor) -> Tensor:
    """Symmetric int8 with one scale a row (an output channel of a weight, a token of an input)."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round().clamp(-128, 127) * scale


def by_autograd(folder: Path, tokens: TokenSet, seed: int, first: int = 0) -> dict[str, tuple[float, float]]:
    """Projection to its int8 damage and standard error, by one ordinary backward pass through the whole model."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seen: dict[str, tuple[Any, Tensor, Tensor]] = {}

    def keep(name: str, module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        seen[name] = (module, args[0], output)

    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.register_forward_hook(lambda m, args, y, name=name: keep(name, m, args, y))
    log_probabilities = model(tokens.windows).logits.log_softmax(-1)
    labels = drawn_labels(log_probabilities.detach(), seed)
    log_probabilities.gather(-1, labels[..., None]).sum().backward()
    found = {}
    for name, (module, x, y) in seen.items():
        change = plain_int8(x.detach()) @ plain_int8(module.weight.detach()).T - y.detach()
        change[:, :first] = 0
        assert y.grad is not None
        windows = (y.grad * change).double().sum(-1).square().mean(-1) / 2
        found[name] = (float(windows.mean()), float(windows.std()) / math.sqrt(len(windows)))
    return found


@pytest.mark.parametrize("seed", [0, 7])
def test_damage_is_that_of_an_ordinary_backward_pass(three_blocks: Path, seed: int):
    tokens = token_set()
    menu = price(open_model(str(three_blocks)), tokens, schemes(INT8), seed=seed)
    wanted = by_autograd(three_blocks, tokens, seed)
    assert {e.site for e in menu.entries} == wanted.keys()
    assert len(wanted) == 3 * 7
    for entry in menu.entries:
        damage, error = wanted[entry.site]
        assert damage > 0
        assert entry.damage == pytest.approx(damage, rel=1e-3), entry.site
        assert entry.standard_error == pytest.approx(error, rel=1e-3), entry.site


def test_a_prefix_loses_nothing(three_blocks: Path):
    """Its tokens count in the mean, and have no part in a scale that all tokens of a window share."""
    tokens = token_set()
    tokens.windows[:, 1] = 5
    model = open_model(str(three_blocks))
    menu = price(model, tokens, schemes(INT8), prefix=(0, 5))
    assert menu.prefix == (0, 5)
    wanted = by_autograd(three_blocks, tokens, 0, first=2)
    for entry in menu.entries:
        assert (entry.damage, entry.standard_error) == pytest.approx(wanted[entry.site], rel=1e-3), entry.site
    with pytest.raises(UserError, match="do not begin with the prefix"):
        price(model, tokens, schemes(INT8), prefix=(0, 6))


# An input at the edge of a step rounds the other way where attention sums in another order: a step in some thousands.
@pytest.mark.parametrize(("low", "most"), [("w=int8/channel", 1e-4), (INT8, 1e-2)])
def test_seeing_the_attention_products_changes_no_projection(three_blocks: Path, low: str, most: float):
    model = open_model(str(three_blocks))
    alone = price(model, token_set(), schemes(low))
    both = price(model, token_set(), schemes(low, PRODUCT))
    for name, damage in alone.damages(low).items():
        assert both.damages(low)[name] == pytest.approx(damage, rel=most)


# ---------------------------------------------------------------- the second-order law


@torch.no_grad()
def log_probabilities(model: Model, tokens: TokenSet) -> Tensor:
    module: Any = model.module()
    return module(tokens.windows).logits.double().log_softmax(-1)


def measured_divergence(
    model: Model, tokens: TokenSet, changes: dict[str, Scheme], prefix: tuple[int, ...] = ()
) -> float:
    """Mean KL(float || quantized) in nats per token, when those sites use those schemes."""
    plan = assign(model.fingerprint, model.source_bits, model.sites(), "float", prefix=prefix)
    plan = plan.with_schemes(changes, "test")
    float_, quantized = log_probabilities(model, tokens), log_probabilities(quantize(model, plan), tokens)
    return float((float_.exp() * (float_ - quantized)).sum(-1).mean())


def average_menu(
    model: Model, tokens: TokenSet, wanted: Sequence[Scheme], seeds: int, prefix: tuple[int, ...] = ()
) -> dict[str, tuple[float, float]]:
    """Site and scheme to mean damage over the seeds, and the standard error of that mean."""
    menus = [price(model, tokens, wanted, prefix=prefix, seed=seed) for seed in range(seeds)]
    found = {}
    for entries in zip(*(menu.entries for menu in menus), strict=True):
        damages = torch.tensor([e.damage for e in entries], dtype=torch.float64)
        found[f"{entries[0].site} {entries[0].scheme}"] = (float(damages.mean()), float(damages.std()) / seeds**0.5)
    return found


def test_damage_is_the_divergence_of_each_site_alone(one_block: Path):
    """In expectation over labels; keys and values, whose tokens couple, are told apart below."""
    model, tokens = open_model(str(one_block)), token_set()
    averages = average_menu(model, tokens, schemes(INT8, PRODUCT), seeds=150)
    checked = 0
    for site in model.sites():
        if site.leaf in ("k_proj", "v_proj") or site.kind == "cache":
            continue
        spelling = PRODUCT if site.kind == "product" else INT8
        damage, error = averages[f"{site.name} {spelling}"]
        measured = measured_divergence(model, tokens, {site.name: parse_scheme(spelling)})
        # Four standard errors of the mean over seeds (each below 6 %), and 2 % for the third order.
        assert error < 0.06 * damage
        assert abs(damage - measured) < 4 * error + 0.02 * measured, site.name
        checked += 1
    assert checked == 7


def test_products_with_a_prefix_cost_their_divergence_too(one_block: Path):
    """Half of each window is prefix, so that it would show if it were priced."""
    model, tokens, product = open_model(str(one_block)), token_set(), "l=int6/tensor/dynamic r=int6/tensor/dynamic"
    tokens.windows[:] = torch.cat([tokens.windows[:1, :8].expand(6, -1), tokens.windows[:, 8:]], 1)
    prefix = tuple(tokens.windows[0, :8].tolist())
    averages = average_menu(model, tokens, schemes(product), seeds=60, prefix=prefix)
    for site in (s for s in model.sites() if s.kind == "product"):
        damage, error = averages[f"{site.name} {product}"]
        measured = measured_divergence(model, tokens, {site.name: parse_scheme(product)}, prefix)
        assert error < 0.1 * damage
        assert abs(damage - measured) < 4 * error + 0.02 * measured, site.name


def test_damages_add_up_to_the_divergence_of_the_whole_plan(three_blocks: Path):
    """What is left out, coupling of sites and of tokens, has either sign and mostly cancels: within a quarter."""
    model, tokens = open_model(str(three_blocks)), token_set(16)
    averages = average_menu(model, tokens, schemes(INT8), seeds=20)
    predicted = sum(damage for damage, _ in averages.values())
    everywhere = {s.name: parse_scheme(INT8) for s in model.sites() if s.kind == "projection"}
    measured = measured_divergence(model, tokens, everywhere)
    assert 0.75 < predicted / measured < 1.33


# ---------------------------------------------------------------- schemes


@pytest.mark.parametrize("nothing", [LinearScheme(), MatmulScheme(), CacheScheme()])
def test_a_scheme_that_changes_nothing_costs_exactly_nothing(three_blocks: Path, nothing: Scheme):
    menu = price(open_model(str(three_blocks)), token_set(), [nothing])
    assert len(menu.entries) == 3 * (7 if isinstance(nothing, LinearScheme) else 2)
    assert {e.damage for e in menu.entries} == {0.0}
    assert {e.standard_error for e in menu.entries} == {0.0}


def test_fewer_bits_cost_more_at_every_site(three_blocks: Path):
    spellings = [f"w=int{b}/channel a=int{b}/token" for b in (8, 4, 2)]
    products = [f"l=int{b}/token r=int{b}/token" for b in (8, 4, 2)]
    caches = [f"c=int{b}/token" for b in (8, 4, 2)]
    menu = price(open_model(str(three_blocks)), token_set(), schemes(*spellings, *products, *caches))
    for eight, four, two in (spellings, products, caches):
        for name, damage in menu.damages(eight).items():
            assert 0 < damage < menu.damages(four)[name] / 10
            assert menu.damages(four)[name] < menu.damages(two)[name]


def test_weight_and_input_are_priced_apart(three_blocks: Path):
    weight, both = "w=int4/channel", "w=int4/channel a=int8/token"
    menu = price(open_model(str(three_blocks)), token_set(), schemes(weight, "a=int8/token", both))
    for name, damage in menu.damages(both).items():
        # Nearly uncorrelated errors add; int8 tokens are small beside int4 weights.
        assert menu.damages("a=int8/token")[name] < damage
        assert damage == pytest.approx(menu.damages(weight)[name] + menu.damages("a=int8/token")[name], rel=0.3)


def test_every_scheme_is_priced_at_every_site_it_fits(three_blocks: Path):
    model = open_model(str(three_blocks))
    low = (INT8, "w=mxint4/g8 a=mxint4/g8", PRODUCT, "l=e4m3/g8 r=e4m3/g8", "c=int8/token", "c=int4/g8/past-only")
    menu = price(model, token_set(), schemes(*low))
    assert menu.metric == METRIC.name
    kinds = {site.name: site.kind for site in model.sites()}
    priced = [(e.site, e.scheme) for e in menu.entries]
    assert len(set(priced)) == len(priced) == 2 * len(kinds)
    letters = {"projection": "w", "product": "l", "cache": "c"}
    assert all(scheme.startswith(letters[kinds[site]]) for site, scheme in priced)


def test_many_schemes_at_once_cost_what_each_costs_alone(three_blocks: Path):
    """One pass for projections and products together; every price is the same number as with one scheme of each."""
    model, tokens = open_model(str(three_blocks)), token_set()
    linear = [INT8, "w=mxint4/g8 a=mxint4/g8", "w=int4/g8", "a=e4m3/token"]
    products = [PRODUCT, "l=mxint4/g8 r=mxint4/g8", "r=int4/token", "l=e4m3/token"]
    together = price(model, tokens, schemes(*linear, *products))
    assert len(together.entries) == 3 * (4 * 7 + 4 * 2)
    for one, other in zip(linear, products, strict=True):
        pair = price(model, tokens, schemes(one, other))
        assert together.damages(one) == pair.damages(one)
        assert together.damages(other) == pair.damages(other)


def test_static_schemes_use_the_stats(three_blocks: Path):
    model, tokens = open_model(str(three_blocks)), token_set()
    stats = observe(model, tokens)
    product = "l=int8/tensor/static r=int8/tensor/static"
    menu = price(model, tokens, schemes(STATIC, product, INT8), stats)
    assert menu.stats == content_hash(stats)
    assert len(menu.damages(STATIC)) == 3 * 7
    assert len(menu.damages(product)) == 3 * 2
    # A scale for all tokens is coarser than one for each.
    assert sum(menu.damages(STATIC).values()) > sum(menu.damages(INT8).values())
    assert price(model, tokens, schemes(INT8)).stats == ""


def test_a_static_scheme_without_stats_is_refused_before_any_work(three_blocks: Path):
    def never(*_: object) -> None:
        pytest.fail("began to work")

    model = open_model(str(three_blocks))
    with pytest.raises(UserError, match="stats"):
        price(model, token_set(), schemes(INT8, STATIC), progress=never)


def test_stats_of_another_model_are_refused(one_block: Path, three_blocks: Path):
    stats = observe(open_model(str(one_block)), token_set())
    with pytest.raises(UserError, match="another model"):
        price(open_model(str(three_blocks)), token_set(), schemes(STATIC), stats)


# ---------------------------------------------------------------- what may not change the prices


def test_the_same_seed_gives_the_same_menu(three_blocks: Path):
    menus = [price(open_model(str(three_blocks)), token_set(), schemes(INT8), seed=seed) for seed in (5, 5, 6)]
    assert content_hash(menus[0]) == content_hash(menus[1])
    assert menus[0].damages(INT8) != menus[2].damages(INT8)
    assert [m.provenance.seed for m in menus] == [5, 5, 6]


def test_batch_size_and_memory_change_nothing(three_blocks: Path):
    def menu(windows: int, memory: int) -> Menu:
        model = open_model(str(three_blocks), Runtime(batch_tokens=16 * windows, memory=memory))
        return price(model, token_set(), schemes(INT8, PRODUCT))

    whole = menu(64, 1 << 30)
    assert menu(64, 1) == whole
    for windows in (1, 4):
        for one, other in zip(menu(windows, 1 << 30).entries, whole.entries, strict=True):
            assert (one.site, one.scheme) == (other.site, other.scheme)
            assert one.damage == pytest.approx(other.damage, rel=1e-6)


def test_one_window_has_no_standard_error(one_block: Path):
    menu = price(open_model(str(one_block)), token_set(1), schemes(INT8))
    assert all(math.isnan(e.standard_error) and e.damage > 0 for e in menu.entries)


def test_nothing_stays_behind_after_an_exception(three_blocks: Path, monkeypatch: pytest.MonkeyPatch):
    model = open_model(str(three_blocks))
    price(model, token_set(), schemes(INT8, PRODUCT))

    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qarat.model.capture.WatchedProducts._multiply", broken)
    with pytest.raises(KeyboardInterrupt):
        price(model, token_set(), schemes(INT8, PRODUCT))
    for index in range(model.blocks):
        for name, module in model.block(index).named_modules():
            assert not module._forward_hooks
            assert not name.endswith(PRODUCTS)


def test_progress_counts_blocks_forward_and_backward(three_blocks: Path):
    calls: list[tuple[str, int, int]] = []
    price(open_model(str(three_blocks)), token_set(2), schemes(INT8), progress=lambda *call: calls.append(call))
    assert calls == [("damage", done, 6) for done in range(7)]

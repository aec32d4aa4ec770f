"""A prefix in float, against its definition: the float model's keys and values in front of a model without a prefix."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache

from qarat.ground.errors import UserError
from qarat.jobs.bench import make_meter
from qarat.jobs.protecting import profile
from qarat.maths.static_scales import check_static
from qarat.model.layers import QuantProducts
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.prefixes import PrefixedBlock, check_prefix, leading_tokens, prefix_of, shared_front
from qarat.model.reference_models import reference_models
from qarat.model.texts import bundled_documents
from qarat.model.tokens import TokenSet, make_token_set
from qarat.stages.export.base import check_export
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.observe import observe
from qarat.stages.quantize import build_block, quantize
from qarat.testing import tiny_checkpoint
from qarat.values.parsing import parse_scheme, parse_tensor_scheme
from qarat.values.plan_files import encode_plan
from qarat.values.plans import Plan, assign
from qarat.values.records.files import content_hash
from qarat.values.records.scores import paired_difference
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import MatmulScheme

NAIVE = "w=int6/channel a=int6/tensor/static"
LENGTH, SHARED = 20, 3
STATIC_PRODUCTS = [(f"*.{p}", "l=int8/tensor/static r=int8/tensor/static") for p in ("qk", "av")]
# Name to checkpoint and overrides.
CASES: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "llama": ({}, []),
    "products": ({}, STATIC_PRODUCTS),
    "a block in float": ({"blocks": 3}, [("model.layers.1.*_proj", "float")]),
    "the first block in float": ({}, [("model.layers.0.*_proj", "float")]),
    "sliding": ({"architecture": "mistral", "sliding_window": 8}, []),
    "qwen2": ({"architecture": "qwen2"}, STATIC_PRODUCTS),
    "qwen3": ({"architecture": "qwen3"}, STATIC_PRODUCTS),
    "gemma3": ({"architecture": "gemma3_text", "sliding_window": 8}, []),
    "opt": ({"architecture": "opt"}, STATIC_PRODUCTS),
}


def token_set(windows: int = 5, name: str = "calibration") -> TokenSet:
    """Windows that begin with the same three tokens."""
    ids = torch.randint(2, 98, (windows, LENGTH), generator=torch.Generator().manual_seed(3))
    ids[:, :SHARED] = torch.tensor([0, 50, 4])
    sources = tuple(f"text {i}" for i in range(windows))
    return TokenSet(name, f"windows-{LENGTH}-bos", ids, sources, ("0" * 64,), ("text",))


def plan_of(model: Model, stats: ActivationStats, rules: list[tuple[str, str]], low: str = NAIVE) -> Plan:
    return assign(model.fingerprint, 32, model.sites(), low, rules, content_hash(stats), stats.prefix)


@torch.no_grad()
def walked(model: Model, ids: Tensor) -> Tensor:
    """Logits by the walk."""
    hidden = model.embed(ids)
    for index, block in model.walk():
        hidden = model.run_block(index, block, hidden)
    return model.logits(hidden)


@torch.no_grad()
def token_by_token(module: nn.Module, ids: Tensor, cache: DynamicCache) -> Tensor:
    """Logits of tokens that follow what is in the cache."""
    return torch.cat([module(ids[:, t : t + 1], past_key_values=cache).logits for t in range(ids.shape[1])], 1)


@torch.no_grad()
def by_definition(model: Model, plan: Plan, stats: ActivationStats, ids: Tensor) -> Tensor:
    """transformers' own float model on the prefix, then a model without a prefix that goes on from its cache."""
    count = len(plan.prefix)
    float_: Any = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    cache = DynamicCache()
    front = float_(ids[:, :count], past_key_values=cache, use_cache=True).logits
    without = model.with_blocks(lambda index: build_block(model, index, plan.block(index), stats)).module()
    for module in without.modules():
        if isinstance(module, QuantProducts):
            module.prefix = count  # a product has no other way to know which keys are in float
    return torch.cat([front, token_by_token(without, ids[:, count:], cache)], 1)


# ---------------------------------------------------------------- the definition


@pytest.mark.parametrize("count", [1, SHARED])
@pytest.mark.parametrize("case", CASES)
def test_a_walk_is_what_a_cache_from_the_float_model_gives(case: str, count: int, tmp_path: Path):
    options, rules = CASES[case]
    model = open_model(str(tiny_checkpoint(tmp_path, **options)))
    stats = observe(model, token_set(), prefix=count)
    plan = plan_of(model, stats, rules)
    quantized = quantize(model, plan, stats)
    ids = token_set().windows
    found = walked(quantized, ids)
    scale = float(found.abs().max())
    assert float((found - by_definition(model, plan, stats, ids)).abs().max()) < 1e-5 * scale
    assert float((found - walked(model, ids)).abs().max()) > 1e-2 * scale  # there was something to lose
    module: Any = quantized.module()
    cache = DynamicCache(config=model.config)
    assert float((found - token_by_token(module, ids, cache)).abs().max()) < 1e-5 * scale
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        parts = [module(part, past_key_values=cache).logits for part in ids.split([2, 7, LENGTH - 9], 1)]
    assert float((found - torch.cat(parts, 1)).abs().max()) < 1e-5 * scale


def test_positions_of_the_prefix_are_those_of_the_float_model(tiny_model: Model):
    stats = observe(tiny_model, token_set(), prefix=2)
    quantized = quantize(tiny_model, plan_of(tiny_model, stats, []), stats)
    ids = token_set().windows
    torch.testing.assert_close(walked(quantized, ids)[:, :2], walked(tiny_model, ids)[:, :2], rtol=0, atol=1e-5)


def test_what_is_generated_is_the_likeliest_of_the_walk(tiny_model: Model):
    stats = observe(tiny_model, token_set(), prefix=2)
    quantized = quantize(tiny_model, plan_of(tiny_model, stats, STATIC_PRODUCTS), stats)
    prompt = token_set().windows[:1, :6]
    module: Any = quantized.module()
    whole = module.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=9, do_sample=False)
    for at in range(6, 15):
        assert int(whole[0, at]) == int(walked(quantized, whole[:, :at])[0, -1].argmax())
    # A prompt of nothing but the prefix, as when an engine begins from its cache alone.
    assert module.generate(prompt[:, :2], max_new_tokens=3, do_sample=False).shape == (1, 5)


def test_a_dynamic_scale_is_that_of_the_other_tokens(tiny_model: Model):
    """One scale per tensor, so it would show if the prefix had a part in it."""
    ids = token_set().windows
    plan = assign(tiny_model.fingerprint, 32, tiny_model.sites(), "a=int4/tensor/dynamic", prefix=(0, 50))
    seen: list[Tensor] = []
    block = quantize(tiny_model, plan).block(0)
    block.get_submodule("block.mlp.down_proj").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        tiny_model.run_block(0, block, tiny_model.embed(ids))
    assert [x.shape[:2] for x in seen] == [(5, LENGTH - 2)]


@pytest.mark.parametrize("spelling", ["l=int4/tensor/dynamic r=int4/tensor/dynamic", "l=int4/g4 r=int4/token"])
def test_products_with_keys_and_values_of_the_prefix_are_in_float(spelling: str):
    scheme = parse_scheme(spelling, "product")
    assert isinstance(scheme, MatmulScheme)
    products, without = (QuantProducts(scheme, scheme, {}, prefix) for prefix in (3, 0))
    q, k, v = (torch.randn(2, 4, tokens, 8, generator=torch.Generator().manual_seed(tokens)) for tokens in (5, 9, 10))
    k[:, :, :3] *= 100  # it would take every other key's scale
    scores = products.scores(q, k)
    assert torch.equal(scores[..., :3], q @ k[:, :, :3].mT)
    assert torch.equal(scores[..., 3:], without.scores(q, k[:, :, 3:]))
    p = torch.rand(2, 4, 5, 10)
    wanted = p[..., :3] @ v[:, :, :3] + without.mix(p[..., 3:], v[:, :, 3:])
    assert torch.equal(products.mix(p, v), wanted)


# ---------------------------------------------------------------- what may not change


def test_no_prefix_changes_no_bit(tiny_model: Model):
    stats = observe(tiny_model, token_set(), prefix=0)
    plan = plan_of(tiny_model, stats, STATIC_PRODUCTS)
    assert prefix_of(tiny_model, plan) is None
    assert "prefix" not in encode_plan(plan)
    assert not any(isinstance(m, PrefixedBlock) for m in quantize(tiny_model, plan, stats).module().modules())


def test_a_plan_in_float_changes_no_bit(tiny_model: Model):
    plan = assign(tiny_model.fingerprint, 32, tiny_model.sites(), "float", prefix=(0, 50))
    ids = token_set().windows
    assert torch.equal(walked(quantize(tiny_model, plan), ids), walked(tiny_model, ids))


def test_a_meter_measures_as_each_plan_does_alone(tmp_path: Path):
    model = open_model(str(tiny_checkpoint(tmp_path, blocks=3)))
    tokens = token_set(name="selection")
    stats = observe(model, token_set(), prefix=SHARED)
    prefix = prefix_of(model, plan_of(model, stats, []))
    meter = make_meter(model, tokens, stats, prefix=prefix)
    for rules in (
        [],
        [("2.down", "float")],
        [("*_proj", "float")],
        [("model.layers.0.*_proj", "float")],
        [("2.q", "w=int2/channel")],
    ):
        plan = plan_of(model, stats, rules)
        alone = measure_perplexity(quantize(model, plan, stats), tokens, label="x")
        assert meter.measure(plan, "x") == alone
        assert torch.tensor(alone.nats).isfinite().all()


# ---------------------------------------------------------------- refusals


def test_windows_that_begin_otherwise_are_refused(tiny_model: Model):
    stats = observe(tiny_model, token_set(), prefix=1)
    tokens = token_set(4)
    tokens.windows[2, 0] = 9
    for rules in ([], [("model.layers.0.*_proj", "float")]):
        quantized = quantize(tiny_model, plan_of(tiny_model, stats, rules), stats)
        with pytest.raises(UserError, match=r"1 of 4 sequences \(the first: 2\) do not begin with the 1 tokens"):
            measure_perplexity(quantized, tokens, label="x")
        module: Any = quantized.module()
        with pytest.raises(UserError, match="do not begin with"):
            module.generate(tokens.windows[2:3], max_new_tokens=2, do_sample=False)
    with pytest.raises(UserError, match=r"1 of 4 windows .* prefix \[0\] \(text 2\).*`prefix` 0"):
        check_prefix(tokens, (0,))
    with pytest.raises(UserError, match=r"5 of 5 windows .* \[0, 50, 5\].*`prefix` 2"):
        check_prefix(token_set(), (0, 50, 5))


def test_a_prefix_as_long_as_the_window_is_refused(tiny_model: Model):
    tokens = token_set(1)
    with pytest.raises(UserError, match=f"{LENGTH} tokens leaves nothing"):
        observe(tiny_model, tokens, prefix=LENGTH)
    stats = observe(tiny_model, tokens, prefix=LENGTH - 1)
    quantized = quantize(tiny_model, plan_of(tiny_model, stats, []), stats)
    assert measure_perplexity(quantized, tokens, label="x").nats[0] > 0
    with pytest.raises(UserError, match="no longer than the plan's prefix"):
        walked(quantized, tokens.windows[:, :-1])


def test_a_prefix_that_the_model_cannot_have_is_refused(tmp_path: Path):
    options: dict[str, Any] = {"architecture": "mistral", "sliding_window": 8}
    model = open_model(str(tiny_checkpoint(tmp_path, **options)))
    rules = [("0.qk", "l=int8/token r=int8/token")]
    plan = assign(model.fingerprint, 32, model.sites(), "w=int8/channel", rules, prefix=(0, 128, 500, *range(61)))
    with pytest.raises(UserError) as error:
        quantize(model, plan)
    for words in ("no token 128", "no token 500", "64 tokens leave nothing of the 64", "8 tokens", "0.self_attn.qk"):
        assert words in str(error.value)


def test_stats_with_another_prefix_give_no_scales(tiny_model: Model):
    stats = observe(tiny_model, token_set(), prefix=1)
    for prefix in ((), (0, 50), (7,)):
        plan = msgspec.structs.replace(plan_of(tiny_model, stats, []), prefix=prefix)
        with pytest.raises(UserError, match=rf"leave out \[0\]: profile again with `prefix` {len(prefix)}"):
            quantize(tiny_model, plan, stats)
    needed = [("model.layers.0.q", parse_tensor_scheme("int8/tensor/static", "a"))]
    check_static(needed, stats, tiny_model.fingerprint, (0,))


def test_no_other_format_takes_a_prefix(tiny_model: Model):
    plan = assign(tiny_model.fingerprint, 32, tiny_model.sites(), "w=int8/channel", prefix=(0,))
    with pytest.raises(UserError, match="first 1 tokens of a sequence are in float"):
        check_export(tiny_model, plan, "compressed-tensors")


# ---------------------------------------------------------------- leading tokens


def test_leading_tokens():
    tokens = token_set()
    assert shared_front(tokens) == SHARED
    assert leading_tokens(tokens, 2) == (0, 50)
    assert leading_tokens(tokens, 0) == ()
    assert shared_front(tokens.subset(1)) == LENGTH - 1  # something has to be left
    other = msgspec.structs.replace(tokens, windows=tokens.windows.clone())
    other.windows[0, 0] = 5
    assert shared_front(other) == 0


# ---------------------------------------------------------------- a model with spikes


def test_it_takes_the_spike_of_a_real_model():
    """The bundled model, which spikes at BOS: `auto` finds it, and INT8 everywhere loses little."""
    model = open_model(str(reference_models()["py-128"]))
    calibration, report = (
        make_token_set(name, bundled_documents(name)[:8], model.tokenizer, length=128, limit=8)
        for name in ("calibration", "report")
    )
    stats = {prefix: profile(model, calibration, prefix, attention=False) for prefix in (0, "auto")}
    assert stats["auto"].prefix == (0,)
    ratios = [max(s.ratio for s in seen.streams.values() if s.kind == "down_in") for seen in stats.values()]
    assert ratios[0] > 10 > 8 > ratios[1]
    before = measure_perplexity(model, report, label="float")
    low = "w=int8/channel a=int8/tensor/static"
    lost = {}
    for prefix, seen in stats.items():
        after = measure_perplexity(quantize(model, plan_of(model, seen, [], low), seen), report, label="x")
        lost[prefix] = paired_difference(after, before).nats
    assert lost[0] > 0.015
    assert abs(lost["auto"]) < lost[0] / 3

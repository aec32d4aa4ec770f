"""A model under a plan, against plain independent implementations of what the plan says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.maths.kernels import reference
from qarat.maths.tensors import QuantizedTensor
from qarat.model.attention import transformers_attention
from qarat.model.layers import QuantLinear, QuantProducts
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.observe import observe
from qarat.stages.quantize import WeightCache, build_block, check_stats, quantize
from qarat.stages.rounding.inputs import round_site
from qarat.testing import tiny_checkpoint
from qarat.values.parsing import parse_scheme
from qarat.values.plans import Plan, PlanError, assign
from qarat.values.records.files import content_hash
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import LinearScheme, MatmulScheme

PROJECTIONS = ("_proj", "fc1", "fc2")
NAIVE = "w=int8/channel a=int8/tensor/static"
LENGTH = 24
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied": {"tied": True},
    "llama-bfloat16": {"dtype": torch.bfloat16},
    "mistral-sliding": {"architecture": "mistral", "sliding_window": 8},
    "qwen2": {"architecture": "qwen2"},
    "qwen3": {"architecture": "qwen3"},
    "gemma2": {"architecture": "gemma2", "sliding_window": 8, "attn_logit_softcapping": 2.0},
    "gemma3": {"architecture": "gemma3_text", "sliding_window": 8},
    "opt": {"architecture": "opt"},
}


def token_set(windows: int = 6, seed: int = 5) -> TokenSet:
    ids = torch.randint(2, 98, (windows, LENGTH), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 0
    sources = tuple(f"text {i}" for i in range(windows))
    return TokenSet("calibration", f"windows-{LENGTH}-bos", ids, sources, ("0" * 64,), ("text",))


def some_tokens(windows: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(2, 98, (windows, length), generator=torch.Generator().manual_seed(6))


@pytest.fixture(scope="module")
def stats(tiny_llama: Path) -> ActivationStats:
    return observe(open_model(str(tiny_llama)), token_set())


def plan_of(
    model: Model, low: str, rules: Mapping[str, str] | None = None, stats: ActivationStats | None = None
) -> Plan:
    digest = content_hash(stats) if stats else ""
    return assign(model.fingerprint, model.source_bits, model.sites(), low, list((rules or {}).items()), digest)


@torch.no_grad()
def logits(model: Model, tokens: Tensor | None = None) -> Tensor:
    """By the walk."""
    hidden = model.embed(some_tokens() if tokens is None else tokens)
    for index, block in model.walk():
        hidden = model.run_block(index, block, hidden)
    return model.logits(hidden)


def linears(model: Model) -> dict[str, QuantLinear]:
    return {name: m for name, m in model.module().named_modules() if isinstance(m, QuantLinear)}


# ---------------------------------------------------------------- float


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_plan_that_leaves_everything_in_float_changes_no_bit(variant: str, tmp_path: Path):
    model = open_model(str(tiny_checkpoint(tmp_path, **VARIANTS[variant])))
    quantized = quantize(model, plan_of(model, "float"))
    assert torch.equal(logits(quantized), logits(model))
    with torch.no_grad():
        whole: Any = quantized.module()
        assert torch.equal(whole(some_tokens()).logits, logits(model))


def test_float_attention_products_stay_the_fused_kernel(tiny_model: Model):
    quantized = quantize(tiny_model, plan_of(tiny_model, "float", {"*.qk": "float", "*.av": "float"}))
    assert not any(isinstance(m, QuantProducts) for m in quantized.module().modules())
    # One of two quantized: the other is float all the same, and does what it did up to rounding.
    half = quantize(tiny_model, plan_of(tiny_model, "float", {"*.qk": "l=int8/token r=int8/token"}))
    products = half.block(0).get_submodule("self_attn.products")
    p, v = torch.rand(1, 4, 5, 5), torch.randn(1, 4, 5, 8)
    assert torch.equal(products.mix(p, v), p @ v)  # type: ignore[operator]


def test_the_float_model_is_left_as_it_was(tiny_model: Model, stats: ActivationStats):
    before = logits(tiny_model)
    blocks = [tiny_model.block(i) for i in range(tiny_model.blocks)]
    weights = [{k: v.clone() for k, v in block.state_dict().items()} for block in blocks]
    rules = {"*.qk": "l=int4/token r=int4/token", "1.v": "w=int2/g8"}
    quantized = quantize(tiny_model, plan_of(tiny_model, NAIVE, rules, stats), stats)
    assert not torch.equal(logits(quantized), before)
    quantized.module()
    for index, block in enumerate(blocks):
        assert tiny_model.block(index) is block
        assert not any(isinstance(m, QuantLinear | QuantProducts) for m in block.modules())
        assert all(torch.equal(v, weights[index][k]) for k, v in block.state_dict().items())
    assert torch.equal(logits(tiny_model), before)


def test_tensors_that_stay_in_float_are_shared(tiny_model: Model):
    model = open_model(str(tiny_model.folder), Runtime(memory=1 << 30))  # so that blocks are kept
    block = quantize(model, plan_of(model, "w=int8/channel", {"*.o": "float"})).block(0)
    source = model.block(0)
    kept = dict(block.named_parameters())
    assert set(kept) == {n for n, _ in source.named_parameters() if "o_proj" in n or "norm" in n}
    assert all(kept[n].data_ptr() == p.data_ptr() for n, p in source.named_parameters() if n in kept)


# ---------------------------------------------------------------- one projection


@pytest.mark.parametrize(
    "spelling",
    [
        NAIVE,
        "w=int8/channel a=int8/token",
        "w=int4/g8",
        "w=int3/g8/asymmetric a=int8/token/asymmetric",
        "w=e4m3/tensor a=e4m3/tensor/static",
        "w=mxfp4/g16 a=mxfp8/g16",
        "w=nvfp4 a=nvfp4",
        "w=int4/16x16 a=int8/g8/static",
        "a=int8/tensor/dynamic",
        "w=int4/channel a=int8/tensor/static/p99.9",
    ],
)
def test_every_projection_is_the_reference_kernel(tiny_model: Model, stats: ActivationStats, spelling: str):
    model = quantize(tiny_model, plan_of(tiny_model, spelling, stats=stats), stats)
    scheme = parse_scheme(spelling)
    assert isinstance(scheme, LinearScheme)
    found = linears(model)
    assert found.keys() == {s.name for s in model.sites() if s.kind == "projection"}
    for linear in found.values():
        assert linear.scheme == scheme
        weight = linear.value if linear.quantized is None else linear.quantized
        x = torch.randn(2, 5, linear.in_features, generator=torch.Generator().manual_seed(1))
        kept = x.clone()
        expected = reference.linear(x, weight, linear.bias, scheme.input, linear.input_scales)
        assert torch.equal(linear(x), expected)
        assert torch.equal(x, kept)


def test_biases_stay_in_float(tmp_path: Path):
    model = open_model(str(tiny_checkpoint(tmp_path, architecture="qwen2", dtype=torch.bfloat16)))
    found = linears(quantize(model, plan_of(model, "w=int4/channel")))
    for name, linear in found.items():
        source = model.module().get_submodule(name)
        assert (linear.bias is None) == (source.bias is None)
        assert linear.bias is None or torch.equal(linear.bias, source.bias)  # type: ignore[arg-type]
    assert sum(linear.bias is not None for linear in found.values()) == 2 * 3


def test_the_walks_dtype_is_kept_and_the_product_is_float32(tiny_llama: Path):
    model = open_model(str(tiny_llama), Runtime(dtype="bfloat16"))
    linear = next(iter(linears(quantize(model, plan_of(model, "w=int8/channel a=int8/token"))).values()))
    x = torch.randn(3, 32).bfloat16()
    scheme = parse_scheme("w=int8/channel a=int8/token")
    assert isinstance(scheme, LinearScheme)
    assert linear.quantized is not None
    assert torch.equal(linear(x), reference.linear(x, linear.quantized, None, scheme.input, None).bfloat16())


# ---------------------------------------------------------------- the whole model


@torch.no_grad()
def plainly(folder: Path, calibration: Tensor, tokens: Tensor, protected: set[str]) -> Tensor:
    """INT8 per channel and per tensor static with transformers, hooks and arithmetic alone; logits of `tokens`."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=transformers_attention(AutoConfig.from_pretrained(folder))
    )
    projections = {name: m for name, m in model.named_modules() if name.endswith(PROJECTIONS) and name not in protected}
    largest: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: largest.update({name: args[0].abs().max()}))
        for name, module in projections.items()
    ]
    model(calibration)
    for handle in handles:
        handle.remove()

    def fake(x: Tensor, scale: Tensor) -> Tensor:
        return (x / scale).round().clamp(-128, 127) * scale

    for name, module in projections.items():
        module.weight.copy_(fake(module.weight, module.weight.abs().amax(1, keepdim=True) / 127))
        module.register_forward_pre_hook(lambda _, args, scale=largest[name] / 127: (fake(args[0], scale),))
    return model(tokens).logits


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("protect", [False, True])
def test_everything_low_equals_a_plain_implementation(variant: str, protect: bool, tmp_path: Path):
    folder = tiny_checkpoint(tmp_path, **VARIANTS[variant])
    model, tokens = open_model(str(folder)), token_set()
    stats = observe(model, tokens, attention=False)
    protected = {model.sites()[i].name for i in (0, -1)} if protect else set()
    rules = dict.fromkeys(protected, "float")
    ours = logits(quantize(model, plan_of(model, NAIVE, rules, stats), stats))
    plain = plainly(folder, tokens.windows, some_tokens(), protected)
    assert (logits(model) - ours).abs().max() > 1e-2  # there is something to agree on
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6 * float(plain.abs().max()))


@torch.no_grad()
def test_the_next_block_sees_the_quantized_outputs(tiny_model: Model):
    only_first = quantize(tiny_model, plan_of(tiny_model, "float", {"model.layers.0.*_proj": "w=int3/channel"}))
    first = build_block(tiny_model, 0, plan_of(tiny_model, "w=int3/channel").block(0), None)
    hidden = tiny_model.run_block(0, first, tiny_model.embed(some_tokens()))
    expected = tiny_model.logits(tiny_model.run_block(1, tiny_model.block(1), hidden))
    assert torch.equal(logits(only_first), expected)
    assert not torch.equal(expected, logits(tiny_model))


@torch.no_grad()
def test_readers_share_an_input_that_none_of_them_writes_to(tiny_model: Model, stats: ActivationStats):
    spellings = {"*.q": NAIVE, "*.k": "w=int2/tensor a=int2/tensor/dynamic", "*.v": "a=mxint4/g8", "*.gate": NAIVE}
    plan = plan_of(tiny_model, "w=int4/channel a=e4m3/tensor/static", spellings, stats)
    block = quantize(tiny_model, plan, stats).block(0)
    seen: dict[str, Tensor] = {}
    before: dict[str, Tensor] = {}
    for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
        module = next(m for n, m in block.named_modules() if n.endswith(name))

        def keep(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            seen[name], before[name] = args[0], args[0].clone()

        module.register_forward_pre_hook(keep)
    tiny_model.run_block(0, block, tiny_model.embed(some_tokens()))
    assert seen["q_proj"] is seen["k_proj"] is seen["v_proj"]
    assert seen["gate_proj"] is seen["up_proj"]
    assert all(torch.equal(seen[name], before[name]) for name in seen)
    assert torch.equal(before["q_proj"], before["v_proj"])


def test_whatever_the_memory(tiny_llama: Path, stats: ActivationStats):
    found = []
    for memory in (1, 1 << 30):
        model = open_model(str(tiny_llama), Runtime(memory=memory))
        found.append(logits(quantize(model, plan_of(model, NAIVE, stats=stats), stats)))
    assert torch.equal(*found)


@pytest.mark.parametrize(("bound", "again"), [(1 << 30, 0), (5000, 3), (0, 7)])
def test_a_weight_cache_saves_what_its_bound_allows(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch, bound: int, again: int
):
    """A site of int4/g8 takes 1.5 bytes a weight: 1536 bytes of q and o, 768 of k and v, 3072 of the MLP's."""
    quantized: list[object] = []

    def count(*arguments: Any) -> QuantizedTensor:
        quantized.append(arguments)
        return round_site(*arguments)

    monkeypatch.setattr("qarat.stages.quantize.round_site", count)
    schemes = plan_of(tiny_model, "w=int4/g8").block(0)
    cache = WeightCache(bound)
    blocks = [build_block(tiny_model, 0, schemes, None, cache) for _ in range(2)]
    assert len(quantized) == 7 + again
    assert cache.held <= bound
    assert all(
        a.value.equal(b.value)
        for a, b in zip(*(block.modules() for block in blocks), strict=True)
        if isinstance(a, QuantLinear) and isinstance(b, QuantLinear)
    )


# ---------------------------------------------------------------- attention products


def plain_groups(x: Tensor, bits: int, group: int) -> Tensor:
    """Symmetric integers with one scale for each group along the last axis; a shorter last group is allowed."""
    top = 2 ** (bits - 1) - 1
    parts = []
    for part in x.split(group, dim=-1):
        scale = part.abs().amax(-1, keepdim=True) / top
        parts.append((part / torch.where(scale == 0, 1.0, scale)).round().clamp(-top - 1, top) * scale)
    return torch.cat(parts, -1)


@pytest.mark.parametrize("group", [4, 5, 1000])
def test_groups_run_along_the_axis_that_is_summed_over(tiny_model: Model, group: int):
    spelling = f"l=int4/g{group} r=int6/g{group}"
    block = quantize(tiny_model, plan_of(tiny_model, "float", {"*.qk": spelling, "*.av": spelling})).block(0)
    products = block.get_submodule("self_attn.products")
    assert isinstance(products, QuantProducts)
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, 4, 11, 8, generator=generator) for _ in range(3))
    scores = plain_groups(q, 4, group) @ plain_groups(k, 6, group).transpose(-1, -2)
    torch.testing.assert_close(products.scores(q, k), scores, rtol=1e-6, atol=1e-6)
    p = scores.softmax(-1)
    mixed = plain_groups(p, 4, group) @ plain_groups(v.transpose(-1, -2), 6, group).transpose(-1, -2)
    torch.testing.assert_close(products.mix(p, v), mixed, rtol=1e-6, atol=1e-6)


def test_static_attention_products(tiny_model: Model, stats: ActivationStats):
    spelling = "l=int8/tensor/static r=int8/tensor/static"
    plan = plan_of(tiny_model, "float", {"*.qk": spelling, "*.av": spelling}, stats)
    quantized = quantize(tiny_model, plan, stats)
    for index in range(2):
        products = quantized.block(index).get_submodule("self_attn.products")
        assert isinstance(products, QuantProducts)
        for operand in "qkpv":
            largest = stats.stream(f"model.layers.{index}.{operand}").maximum
            assert products.scales[operand].scale.tolist() == [[float(torch.tensor(largest) / 127)]]
    difference = (logits(quantized) - logits(tiny_model)).abs().max()
    assert 1e-4 < float(difference) < 0.2 * float(logits(tiny_model).abs().max())


def test_static_groups_of_queries_and_keys_run_along_channels(tiny_model: Model, stats: ActivationStats):
    plan = plan_of(tiny_model, "float", {"*.qk": "l=int8/g4/static r=int8/g4/static"}, stats)
    products = quantize(tiny_model, plan, stats).block(0).get_submodule("self_attn.products")
    assert isinstance(products, QuantProducts)
    seen = stats.stream("model.layers.0.k").arrays
    extremes = torch.maximum(-seen["channel_min"], seen["channel_max"]).view(2, 4).amax(1)
    assert torch.equal(products.scales["k"].scale, extremes[None] / 127)
    logits(quantize(tiny_model, plan, stats))


def test_static_groups_along_tokens_are_refused(tiny_model: Model, stats: ActivationStats):
    spelling = "l=int8/g8/static r=int8/g8/static"
    with pytest.raises(UserError, match="along tokens") as caught:
        quantize(tiny_model, plan_of(tiny_model, "float", {"*.av": spelling}, stats), stats)
    assert all(f"model.layers.{i}.{operand}: " in str(caught.value) for i in range(2) for operand in "pv")


# ---------------------------------------------------------------- generation


@pytest.mark.parametrize("variant", ["llama", "mistral-sliding", "qwen2", "qwen3", "gemma2", "gemma3", "opt"])
@pytest.mark.parametrize(
    ("low", "products"),
    [
        (NAIVE, "float"),
        ("w=int4/g8 a=int8/token", "l=int8/token r=int8/token"),
        (NAIVE, "l=int8/tensor/static r=int8/tensor/static"),
    ],
)
def test_generating_with_a_cache_is_the_greedy_loop_without(variant: str, low: str, products: str, tmp_path: Path):
    model = open_model(str(tiny_checkpoint(tmp_path, **VARIANTS[variant])))
    stats = observe(model, token_set())
    # A token's scale of V would run along channels: probabilities · V needs its own rows to stay causal.
    rules = {"*.qk": products, "*.av": products.replace("r=int8/token", "r=float")}
    quantized = quantize(model, plan_of(model, low, rules, stats), stats)
    whole: Any = quantized.module()
    prompt = some_tokens(2, 6)
    answer = whole.generate(prompt, max_new_tokens=16, do_sample=False, use_cache=True)
    ids = prompt
    with torch.no_grad():
        for _ in range(16):
            ids = torch.cat([ids, whole(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(answer, ids)
    floating: Any = model.module()
    assert len(set(answer[0].tolist())) > 3
    assert not torch.equal(whole(ids).logits, floating(ids).logits)


# ---------------------------------------------------------------- what is printed


def test_printing_the_module_shows_every_scheme(tiny_model: Model, stats: ActivationStats):
    low, product = "w=int4/g8 a=int8/token", "l=int8/token r=int8/g8"
    rules = {"1.down": "float", "0.o": NAIVE, "1.qk": product}
    text = str(quantize(tiny_model, plan_of(tiny_model, low, rules, stats), stats).module())
    assert text.count(f"QuantLinear(32 -> 32, {low})") + text.count(f"QuantLinear(32 -> 16, {low})") == 7
    assert text.count(f", {low})") == 12
    assert text.count(f"(o_proj): QuantLinear(32 -> 32, {NAIVE})") == 1
    assert text.count("(down_proj): Linear(") == 1
    assert text.count(f"(products): QuantProducts(qk: {product}, av: float)") == 1


# ---------------------------------------------------------------- what does not belong together


def test_missing_stats(tiny_model: Model):
    with pytest.raises(UserError, match=r"8 streams; run `qarat profile`"):
        quantize(tiny_model, plan_of(tiny_model, NAIVE))


def test_every_missing_stream_is_listed(tiny_model: Model):
    stats = observe(tiny_model, token_set(2), attention=False)
    product = "l=int8/tensor/static r=int8/tensor/static"
    with pytest.raises(UserError, match="lack streams") as caught:
        quantize(tiny_model, plan_of(tiny_model, NAIVE, {"*.qk": product, "1.av": product}, stats), stats)
    listed = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert listed == [f"model.layers.{name}" for name in ("0.k", "0.q", "1.k", "1.p", "1.q", "1.v")]


def test_stats_of_another_model(tiny_model: Model, tmp_path: Path):
    other = open_model(str(tiny_checkpoint(tmp_path, seed=1)))
    stats = observe(other, token_set(2), attention=False)
    with pytest.raises(UserError, match="another model"):
        quantize(tiny_model, plan_of(tiny_model, NAIVE), stats)


def test_stats_other_than_the_plan_was_made_with(tiny_model: Model, stats: ActivationStats):
    others = observe(tiny_model, token_set(3, seed=9))
    with pytest.raises(UserError, match="made with other stats"):
        check_stats(plan_of(tiny_model, NAIVE, stats=stats), others)
    check_stats(plan_of(tiny_model, NAIVE), others)  # a plan that does not say is not contradicted


def test_a_plan_of_another_model(tiny_model: Model, tmp_path: Path):
    same_shapes = open_model(str(tiny_checkpoint(tmp_path / "a", seed=1)))
    with pytest.raises(PlanError, match=r"made for the model .*…, this is"):
        quantize(tiny_model, plan_of(same_shapes, "w=int8/channel"))
    larger = open_model(str(tiny_checkpoint(tmp_path / "b", blocks=3, intermediate=96)))
    with pytest.raises(PlanError) as caught:
        quantize(tiny_model, plan_of(larger, "w=int8/channel"))
    assert str(caught.value).count("not in the model") == 11
    assert str(caught.value).count("shape") == 6


def test_a_plan_with_a_scheme_of_the_wrong_kind(tiny_model: Model):
    plan = plan_of(tiny_model, "w=int8/channel").with_schemes({"model.layers.0.mlp.up_proj": MatmulScheme()}, "")
    with pytest.raises(PlanError, match="float does not fit a projection"):
        quantize(tiny_model, plan)
    gap = msgspec.structs.replace(plan, assignments=plan.assignments[1:])
    with pytest.raises(PlanError, match="q_proj: missing from the plan"):
        quantize(tiny_model, gap)

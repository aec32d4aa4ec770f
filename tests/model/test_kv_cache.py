"""The cache of keys and values: attention that reads it, by definition and by loops; windows and generation agree."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from qarat.ground.errors import UserError
from qarat.maths.kernels import reference
from qarat.maths.static_scales import channel_scales
from qarat.maths.tensors import fake_quantize
from qarat.model.layers import QuantCache
from qarat.model.model import Model, Transform
from qarat.model.native import read_native, write_native
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.observe import observe
from qarat.stages.quantize import quantize
from qarat.stages.read_back.readback import logits_of
from qarat.testing import tiny_checkpoint
from qarat.testing.models import Architecture
from qarat.values.parsing import parse_scheme
from qarat.values.plans import assign
from qarat.values.schemes import CacheScheme, TensorScheme

PAST = "c=int4/token/past-only"
STATIC = "c=int8/g8/static/past-only"
TWO = "c=int4/g4/2d"
LENGTH = 20


def kept(spelling: str) -> TensorScheme:
    scheme = parse_scheme(spelling, "cache")
    assert isinstance(scheme, CacheScheme)
    assert scheme.kept is not None
    return scheme.kept


def token_set(windows: int = 4) -> TokenSet:
    ids = torch.randint(2, 90, (windows, LENGTH), generator=torch.Generator().manual_seed(7))
    ids[:, 0] = 0
    sources = tuple(f"text {i}" for i in range(windows))
    return TokenSet("calibration", f"windows-{LENGTH}-bos", ids, sources, ("0" * 64,), ("text",))


def with_caches(model: Model, *rules: tuple[str, str], prefix: tuple[int, ...] = ()) -> Model:
    stats = observe(model, token_set(), prefix=len(prefix))
    plan = assign(model.fingerprint, model.source_bits, model.sites(), "float", rules, prefix=prefix)
    return quantize(model, plan, stats)


# ---------------------------------------------------------------- what is read


def test_tokens_are_rows_of_all_heads_channels():
    x = torch.randn(2, 3, 5, 8)
    low = reference.kept(x, kept("c=int4/token"))
    rows = x.transpose(1, 2).reshape(2, 5, 24)
    assert low.transpose(1, 2).reshape(2, 5, 24).equal(fake_quantize(rows, kept("c=int4/token")))
    by_head = reference.kept(x, kept("c=int4/g8"))  # as wide as a head: a scale per token and head
    for head in range(3):
        assert by_head[:, head].equal(fake_quantize(x[:, head], kept("c=int4/token")))


def attention_by_loops(q: Tensor, k: Tensor, v: Tensor, scheme: TensorScheme, *, past_only: bool) -> Tensor:
    """One token after another, as they would be generated, (heads, tokens, channels); a key head for every head."""
    low_k, low_v = (reference.kept(x[None], scheme)[0] for x in (k, v))
    rows: list[Tensor] = []
    for t in range(q.shape[1]):
        keys, values = low_k[:, : t + 1].clone(), low_v[:, : t + 1].clone()
        if past_only:
            keys[:, t], values[:, t] = k[:, t], v[:, t]
        scores = (q[:, t, None] * keys).sum(-1) / q.shape[-1] ** 0.5
        rows.append((scores.softmax(-1)[..., None] * values).sum(1))
    return torch.stack(rows, 1)


@pytest.mark.parametrize("spelling", ["c=int4/token", PAST, "c=e4m3/g4", "c=int3/g8/asymmetric/past-only"])
def test_attention_reads_what_the_definition_says(spelling: str, tmp_path: Path):
    model = open_model(str(tiny_checkpoint(tmp_path, heads=2, kv_heads=2)))
    scheme = kept(spelling)
    block: Any = with_caches(model, ("*_cache", spelling)).block(0)
    seen: list[tuple[Tensor, ...]] = []
    cache = block.self_attn.kv_cache
    keys, values = cache.keys, cache.values
    cache.keys = lambda k: (seen.append((k,)), keys(k))[1]
    cache.values = lambda v: (seen.append((v,)), values(v))[1]
    home = block.self_attn
    queries: list[Tensor] = []
    home.q_proj.register_forward_hook(lambda _, __, y: queries.append(y))
    outputs: list[Tensor] = []
    home.o_proj.register_forward_pre_hook(lambda _, args: outputs.append(args[0]))
    hidden = model.embed(token_set(1).windows)
    model.run_block(0, block, hidden)
    (k,), (v,) = seen
    float_block: Any = model.block(0)
    assert v[0].transpose(0, 1).flatten(1).equal(float_block.self_attn.v_proj(float_block.input_layernorm(hidden))[0])
    cos, sin = model._entrance.arguments(0, (1, LENGTH))["position_embeddings"]
    q = queries[0].unflatten(-1, (2, -1)).transpose(1, 2)
    half = q.shape[-1] // 2
    q = q * cos + torch.cat([-q[..., half:], q[..., :half]], -1) * sin
    expected = attention_by_loops(q[0], k[0], v[0], scheme, past_only=scheme.past_only)
    torch.testing.assert_close(outputs[0][0], expected.transpose(0, 1).flatten(1), rtol=1e-5, atol=1e-5)


def test_keys_and_values_have_schemes_of_their_own(tiny_model: Model):
    cache: Any = with_caches(tiny_model, ("*.v_cache", PAST)).block(0)
    cache = cache.self_attn.kv_cache
    x = torch.randn(1, 2, 5, 8)
    read, own = cache.keys(x)
    assert read is own is x
    read, own = cache.values(x)
    assert own is x
    assert not read.equal(x)
    assert str(cache) == "QuantCache(k_cache: float, v_cache: c=int4/token/past-only)"


# ---------------------------------------------------------------- scales in two dimensions


def scaled_by_loops(x: Tensor, low: Tensor, high: Tensor, group: int, largest: float) -> Tensor:
    """(tokens, channels) float64, from the formula: shift and scale by channel, then one scale a token and group."""
    x, shift, half = x.double(), (high.double() + low.double()) / 2, (high.double() - low.double()) / 2
    level = (x - shift) / half
    out = torch.empty_like(level)
    for token in range(len(level)):
        for start in range(0, level.shape[1], group):
            part = level[token, start : start + group]
            scale = part.abs().max() / largest
            out[token, start : start + group] = (part / scale).round().clamp(-largest - 1, largest) * scale
    return out * half + shift


def grown(channels: int = 16, tokens: int = 60) -> Tensor:
    """Keys (1, heads, tokens, channels) of which one channel is a hundred times as large, and one lies far from 0."""
    x = torch.randn(1, 2, tokens, channels // 2, generator=torch.Generator().manual_seed(3))
    x[:, 0, :, 3] *= 100
    x[:, 1, :, 2] += 40
    return x


def test_two_dimensions_are_what_the_formula_says():
    x = grown()
    rows = x.transpose(1, 2).flatten(2)[0]
    low, high = rows.amin(0), rows.amax(0)
    scheme = kept(TWO)
    ours = reference.kept(x, scheme, channel_scales(low, high)).transpose(1, 2).flatten(2)[0]
    expected = scaled_by_loops(rows, low, high, 4, 7)
    # A value half-way between two steps may fall to either side in float32; none lies there by chance.
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-4)


def test_a_channel_a_hundred_times_as_large_starves_the_others_no_more():
    x, scheme = grown(), kept("c=int4/g8")
    rows = x.transpose(1, 2).flatten(2)[0]
    scales = channel_scales(rows.amin(0), rows.amax(0))

    def errors(low: Tensor) -> Tensor:
        """Of each channel, over its variance."""
        wrong = (low - x).transpose(1, 2).flatten(2)[0]
        return wrong.square().mean(0) / rows.var(0)

    plain, both = (
        errors(reference.kept(x, scheme)),
        errors(reference.kept(x, kept("c=int4/g8/2d"), scales)),
    )
    beside = [0, 1, 2, 4, 5, 6, 7]  # in the group of the large one
    assert plain[beside].mean() > 0.8  # hardly anything is left of them
    assert (both < plain / 10)[beside].all()


def test_a_model_with_a_large_value_channel_loses_far_less(tmp_path: Path):
    """Rows of v_proj times a hundred, columns of o_proj over it: the same function, and a cache with an outlier."""
    model = open_model(str(tiny_checkpoint(tmp_path, heads=2, kv_heads=2)))

    def grow(_: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        v, o = (state[f"self_attn.{leaf}_proj.weight"].clone() for leaf in "vo")
        v[3] *= 128
        o[:, 3] /= 128
        return state | {"self_attn.v_proj.weight": v, "self_attn.o_proj.weight": o}

    large, ids = model.with_transform(Transform("grown", grow)), token_set().windows
    before = logits_of(large, ids)
    torch.testing.assert_close(before, logits_of(model, ids), rtol=0, atol=1e-5)

    def error(spelling: str) -> float:
        return float((logits_of(with_caches(large, ("*.v_cache", spelling)), ids) - before).square().mean())

    assert error("c=int4/g8/2d") < error("c=int4/g8") / 10


def test_a_channel_that_never_changes_is_kept():
    x = torch.full((1, 1, 4, 8), 2.5)
    rows = x[0, 0]
    low = reference.kept(x, kept("c=int4/g8/2d"), channel_scales(rows.amin(0), rows.amax(0)))
    assert low.equal(x)


def test_channels_are_scaled_by_stats_alone(tiny_model: Model):
    plan = assign(tiny_model.fingerprint, 16, tiny_model.sites(), "float", [("*_cache", TWO)])
    with pytest.raises(UserError, match="static scales need stats, here of 4 streams"):
        quantize(tiny_model, plan)
    with pytest.raises(ValueError, match="comes from calibration"):
        reference.kept(torch.randn(1, 1, 2, 8), kept(TWO))
    stats = observe(tiny_model, token_set())
    block: Any = quantize(tiny_model, plan, stats).block(0)
    seen = stats.stream("model.layers.0.k_cache").arrays
    held = block.self_attn.kv_cache.scales["k_cache"]
    assert held.shift[0].equal((seen["channel_max"] + seen["channel_min"]) / 2)


# ---------------------------------------------------------------- exact laws


def test_a_cache_in_float_changes_no_bit(tiny_model: Model):
    ids = token_set().windows
    assert logits_of(with_caches(tiny_model, ("*_cache", "float")), ids).equal(logits_of(tiny_model, ids))


@pytest.mark.parametrize("spelling", ["c=int8/token", PAST, STATIC, "c=int4/g4/asymmetric", TWO])
def test_a_folder_holds_it_to_the_last_bit(tiny_model: Model, tmp_path: Path, spelling: str):
    stats = observe(tiny_model, token_set())
    rules = [("*.k_cache", spelling), ("0.v_cache", "c=e4m3/tensor/static")]
    plan = assign(tiny_model.fingerprint, tiny_model.source_bits, tiny_model.sites(), "w=int8/channel", rules)
    small = quantize(tiny_model, plan, stats)
    write_native(small, plan, tmp_path / "model")
    ids = token_set().windows
    assert logits_of(read_native(tmp_path / "model")[0], ids).equal(logits_of(small, ids))


def test_keys_and_values_of_a_prefix_stay_in_float(tiny_model: Model):
    cache = QuantCache({"k_cache": parse_scheme(PAST, "cache")}, {}, prefix=3)  # type: ignore[dict-item]
    x = torch.randn(1, 2, 7, 8)
    read, _ = cache.keys(x)
    assert read[:, :, :3].equal(x[:, :, :3])
    assert read[:, :, 3:].equal(reference.kept(x[:, :, 3:], kept(PAST)))


def test_a_first_token_in_float_is_a_prefix_of_one(tiny_model: Model):
    ids = token_set().windows
    first = with_caches(tiny_model, ("*_cache", "c=int2/token"), prefix=(0,))
    plain = with_caches(tiny_model, ("*_cache", "c=int2/token"))
    float_logits = logits_of(tiny_model, ids)
    torch.testing.assert_close(logits_of(first, ids)[:, 0], float_logits[:, 0], rtol=0, atol=1e-5)
    assert (logits_of(plain, ids)[:, 0] - float_logits[:, 0]).abs().max() > 0.01


# ---------------------------------------------------------------- generation


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3", "opt"])
@pytest.mark.parametrize(
    "spelling", ["c=int8/token", PAST, STATIC, "c=int4/g8/asymmetric/past-only", f"{TWO}/past-only"]
)
def test_token_by_token_it_is_the_window(spelling: str, architecture: Architecture, tmp_path: Path):
    model = open_model(str(tiny_checkpoint(tmp_path, architecture=architecture)))
    small = with_caches(model, ("*_cache", spelling))
    ids = token_set(2).windows
    whole = logits_of(small, ids)
    module: Any = small.module()
    cache = DynamicCache(config=module.config)
    with torch.no_grad():
        # A prompt of seven tokens, and then one after another.
        parts = [ids[:, :7], *ids[:, 7:].split(1, 1)]
        steps = torch.cat([module(part, past_key_values=cache, use_cache=True).logits for part in parts], 1)
    assert (logits_of(model, ids) - whole).abs().max() > 1e-3
    torch.testing.assert_close(steps, whole, rtol=0, atol=1e-4)


def test_what_is_generated_is_the_likeliest_of_the_walk(tiny_model: Model):
    small = with_caches(tiny_model, ("*_cache", PAST))
    module: Any = small.module()
    prompt = token_set(1).windows[:, :8]
    whole = module.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=9, do_sample=False)
    walked = logits_of(small, whole).argmax(-1)
    assert whole[0, 8:].equal(walked[0, 7:-1])


# ---------------------------------------------------------------- losses, bits, refusals


def test_past_only_loses_less_and_eight_bits_next_to_nothing():
    from qarat.model.token_sets import load_token_sets

    model = open_model("py-64")
    _, _, report = load_token_sets(model, samples=8, report_samples=8)
    before = sum(measure_perplexity(model, report, label="float").nats)

    def loss(spelling: str) -> float:
        plan = assign(model.fingerprint, model.source_bits, model.sites(), "float", [("*_cache", spelling)])
        after = measure_perplexity(quantize(model, plan), report, label=spelling)
        return (sum(after.nats) - before) / sum(after.predicted)

    four, past, eight = loss("c=int4/token"), loss(PAST), loss("c=int8/token")
    assert 0 < past < four
    assert abs(eight) < 0.1 * past


def test_bits_of_a_token(tiny_model: Model):
    sites = [site for site in tiny_model.sites() if site.kind == "cache"]
    width = sites[0].width
    assert width == tiny_model.config.num_key_value_heads * tiny_model.head_width

    def bits(*rules: tuple[str, str]) -> int:
        return assign("model", 16, tiny_model.sites(), "float", rules).cache_bits()

    assert bits() == len(sites) * width * 16
    assert bits(("*_cache", "c=int4/token")) == len(sites) * (width * 4 + 32)
    assert bits(("*_cache", "c=int4/g8/asymmetric")) == len(sites) * (width * 4 + width // 8 * (32 + 4))
    assert bits(("*_cache", "c=int4/g8/asymmetric/2d")) == bits(("*_cache", "c=int4/g8/asymmetric"))
    assert bits(("*_cache", "c=e4m3/tensor/static")) == len(sites) * width * 8  # its scale is no token's
    half = len(sites) // 2
    assert bits(("*.k_cache", "c=int8/token")) == half * (width * 8 + 32) + half * width * 16


@pytest.mark.parametrize(
    ("spelling", "why"),
    [
        ("c=int8/tensor/dynamic", "token by token"),
        ("c=int4/32x8", "token by token"),
        ("c=nvfp4", "token by token"),
        ("c=int8/tensor", "say static or dynamic"),
        ("c=int8/token/static", "cannot be static"),
        ("c=int8/channel", "does not fit the cache"),
        ("c=int4/g32/round-gptq", "belongs to a weight"),
        ("c=int4/g8/static/2d", "static ones of each channel are g1/static"),
        ("c=int4/tensor/dynamic/2d", "token by token"),
        ("a=int4/token/2d", "belongs to a cache"),
        ("w=int4/g32/past-only", "belongs to a cache"),
        ("l=int4/token/past-only", "belongs to a cache"),
        ("c=int8/token a=int8/token", "give one kind"),
    ],
)
def test_what_a_cache_cannot_have_is_refused(spelling: str, why: str):
    with pytest.raises(UserError, match=why):
        parse_scheme(spelling)


def test_a_scheme_of_projections_does_not_fit_a_cache(tiny_model: Model):
    with pytest.raises(UserError, match=r"matches model\.layers\.0\.self_attn\.k_cache, a cache"):
        assign("model", 16, tiny_model.sites(), "float", [("*_cache", "w=int8/channel")])


def test_static_scales_need_the_stats_of_the_cache(tiny_model: Model):
    plan = assign(tiny_model.fingerprint, 16, tiny_model.sites(), "float", [("*_cache", "c=int8/tensor/static")])
    with pytest.raises(UserError, match="static scales need stats, here of 4 streams"):
        quantize(tiny_model, plan)
    with pytest.raises(UserError, match="lack streams"):
        quantize(tiny_model, plan, observe(tiny_model, token_set(), attention=False))

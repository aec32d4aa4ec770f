"""Every statistic of a stream, against what plain hooks on the ordinary transformers model show."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.maths.histograms import EDGES
from qarat.model.attention import WATCHER
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.observe import observe
from qarat.testing import plant_spike, tiny_checkpoint
from qarat.values.records.files import encode_record
from qarat.values.records.streams import ActivationStats, StreamStats

WINDOWS, LENGTH = 19, 24  # more windows than the 16 that are sampled, an even number of tokens
PROJECTION_KINDS = ("attn_in", "o_in", "mlp_in", "down_in", "down_out", "block_out")
OPERAND_KINDS = ("q", "k", "p", "v", "k_cache", "v_cache")


def token_set(windows: int = WINDOWS, length: int = LENGTH, seed: int = 3) -> TokenSet:
    ids = torch.randint(2, 98, (windows, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 0
    sources = tuple(f"text {i}" for i in range(windows))
    return TokenSet("calibration", f"windows-{length}-bos", ids, sources, ("0" * 64,), ("text",))


@pytest.fixture(scope="module")
def spiky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with one dear channel."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("models") / "spiky")
    return plant_spike(folder, block=1, channel=5, factor=64.0)


@torch.no_grad()
def hooked(folder: Path, ids: Tensor, implementation: str) -> dict[str, Tensor]:
    """Stream name to (windows, tokens, …, channels), by plain hooks on the model as transformers loads it."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=implementation)
    seen: dict[str, Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        at = f"model.layers.{index}"
        for kind, module in {
            "attn_in": layer.self_attn.q_proj,
            "o_in": layer.self_attn.o_proj,
            "mlp_in": layer.mlp.up_proj,
            "down_in": layer.mlp.down_proj,
        }.items():
            module.register_forward_pre_hook(lambda _, args, name=f"{at}.{kind}": seen.update({name: args[0].clone()}))
        layer.mlp.down_proj.register_forward_hook(lambda _, __, y, name=f"{at}.down_out": seen.update({name: y}))
        layer.register_forward_hook(
            lambda _, __, y, name=f"{at}.block_out": seen.update({name: y[0] if isinstance(y, tuple) else y})
        )
        layer.self_attn.q_proj.register_forward_hook(lambda _, __, y, name=f"{at}.q": seen.update({name: y}))
    output = model(ids, use_cache=True, output_attentions=implementation == "eager")
    if implementation != "eager":
        return {name: x for name, x in seen.items() if not name.endswith(".q")}
    heads = model.config.num_attention_heads
    groups = heads // model.config.num_key_value_heads
    rotary = model.model.rotary_emb(seen["model.layers.0.attn_in"], torch.arange(ids.shape[1])[None])
    for index in range(len(model.model.layers)):
        at = f"model.layers.{index}"
        query = seen[f"{at}.q"].unflatten(-1, (heads, -1)).transpose(1, 2)
        seen[f"{at}.q"] = apply_rotary_pos_emb(query, query, *rotary)[0].transpose(1, 2)
        cached = output.past_key_values.layers[index]
        seen[f"{at}.k"] = cached.keys.repeat_interleave(groups, 1).transpose(1, 2)
        seen[f"{at}.v"] = cached.values.repeat_interleave(groups, 1).transpose(1, 2)
        seen[f"{at}.k_cache"] = cached.keys.transpose(1, 2).flatten(2)
        seen[f"{at}.v_cache"] = cached.values.transpose(1, 2).flatten(2)
        seen[f"{at}.p"] = output.attentions[index].transpose(1, 2)
    return seen


def lower_median(values: list[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2]


def check_counts(counts: Tensor, values: Tensor, *, near: float = 0.0) -> None:
    """Histogram counts of non-negative values; a value so near to an edge may be on either side of it."""
    values = values.flatten().double().clamp_max(float(EDGES[-1]) * 0.999)
    assert int(counts.sum()) == values.numel()

    def below(shift: float) -> Tensor:
        return torch.searchsorted(values.sort().values, EDGES[1:-1].double() + shift)

    at_most = counts.cumsum(0)[:-1]
    assert (below(-near) <= at_most).all()
    assert (at_most <= below(near)).all()


def check_stream(stream: StreamStats, x: Tensor, ids: Tensor, *, tolerance: float, first: int = 0) -> None:
    """All of a stream's statistics, by the book: loops over windows and tokens, from the first that counts."""
    x = x[:, first:, :, first:] if stream.kind == "p" else x[:, first:]
    ids = ids[:, first:]
    windows, length = ids.shape
    flat = x.reshape(windows, length, -1)
    maxima = [[float(token.abs().max()) for token in window] for window in flat]
    energies = [[float(token.double().square().mean()) for token in window] for window in flat]
    mean = lambda values: math.fsum(values) / len(values)  # noqa: E731
    near = lambda value: pytest.approx(value, rel=max(tolerance, 1e-6))  # noqa: E731

    assert stream.width == x.shape[-1]
    assert stream.tokens == windows * length
    assert stream.ratio == near(mean([max(m) / lower_median(m) for m in maxima]))
    assert stream.maximum == pytest.approx(max(map(max, maxima)), rel=tolerance)
    assert stream.typical_maximum == near(mean([lower_median(m) for m in maxima]))
    assert stream.median_energy == near(mean([lower_median(e) for e in energies]))
    profile = torch.tensor(maxima).double().mean(0).float()
    torch.testing.assert_close(stream.arrays["position_maxima"], profile, rtol=max(tolerance, 1e-6), atol=0)

    scale = float(flat.abs().max())
    check_counts(stream.arrays["token_maxima"], torch.tensor(maxima), near=tolerance * scale)
    check_counts(stream.arrays["token_energies"], torch.tensor(energies), near=max(tolerance, 1e-6) * max(energies[0]))
    sample = flat[:16].abs()
    check_counts(stream.arrays["histogram"], sample, near=tolerance * scale)
    # A bin is at most 6 % wide, and its centre stands for it.
    exact = float(sample.flatten().median())
    assert stream.element_median == pytest.approx(exact, rel=0.05) if exact > 1e-7 else stream.element_median == 0.0

    if stream.kind == "p":
        assert stream.arrays.keys() == {"histogram", "token_maxima", "token_energies", "position_maxima"}
    else:
        rows = x.reshape(-1, x.shape[-1])
        close: dict[str, Any] = {"rtol": tolerance, "atol": tolerance * scale}
        torch.testing.assert_close(stream.arrays["channel_min"], rows.min(0).values, **close)
        torch.testing.assert_close(stream.arrays["channel_max"], rows.max(0).values, **close)
        squares = rows.double().square().mean(0).float()
        torch.testing.assert_close(stream.arrays["channel_square"], squares, rtol=max(tolerance, 1e-6), atol=1e-12)

    check_peaks(stream, flat, maxima, ids, tolerance, first)


def check_peaks(
    stream: StreamStats, flat: Tensor, maxima: list[list[float]], ids: Tensor, tolerance: float, first: int
) -> None:
    places = [(-m, w, t + first) for w, window in enumerate(maxima) for t, m in enumerate(window)]
    wanted = sorted(places)[:8]
    assert len(stream.peaks) == 8
    assert stream.maximum == abs(stream.peaks[0].value)
    for peak, (magnitude, window, position) in zip(stream.peaks, wanted, strict=True):
        assert abs(peak.value) == pytest.approx(-magnitude, rel=tolerance)
        behind = peak.position - first
        assert float(flat[peak.window, behind, peak.channel]) == pytest.approx(peak.value, rel=tolerance)
        assert peak.token == int(ids[peak.window, behind])
        if tolerance == 0 or stream.kind not in OPERAND_KINDS:  # keys are the same at equal first tokens: ties
            assert (peak.window, peak.position) == (window, position)


# ---------------------------------------------------------------- the statistics


def test_projection_streams_exactly(spiky: Path):
    tokens = token_set()
    stats = observe(open_model(str(spiky), Runtime(batch_tokens=1 << 20)), tokens, attention=False)
    wanted = hooked(spiky, tokens.windows, "sdpa")
    assert stats.streams.keys() == wanted.keys()
    assert {s.kind for s in stats.streams.values()} == set(PROJECTION_KINDS)
    for name, x in wanted.items():
        check_stream(stats.streams[name], x, tokens.windows, tolerance=0.0)


def test_attention_operands(spiky: Path):
    tokens = token_set()
    stats = observe(open_model(str(spiky)), tokens)
    wanted = hooked(spiky, tokens.windows, "eager")
    assert stats.streams.keys() == wanted.keys()
    assert {s.kind for s in stats.streams.values()} == {*PROJECTION_KINDS, *OPERAND_KINDS}
    for name, x in wanted.items():
        check_stream(stats.streams[name], x, tokens.windows, tolerance=2e-5)


def test_tokens_in_front_can_be_left_out(spiky: Path):
    """As queries and as keys: a plan with that prefix computes both in float."""
    tokens = token_set()
    tokens.windows[:, :3] = torch.tensor([0, 60, 7])
    stats = observe(open_model(str(spiky)), tokens, prefix=3)
    assert stats.prefix == (0, 60, 7)
    for name, x in hooked(spiky, tokens.windows, "eager").items():
        check_stream(stats.streams[name], x, tokens.windows, tolerance=2e-5, first=3)
    with pytest.raises(UserError, match="do not begin with the prefix"):
        observe(open_model(str(spiky)), tokens, prefix=4)


def test_stats_of_all_tokens_do_not_speak_of_a_prefix(tiny_model: Model):
    """So that the hash of stats, by which plans know them, is what it was before there were prefixes."""
    assert b"prefix" not in encode_record(observe(tiny_model, token_set(2)))
    assert rb"\"prefix\":[0]" in encode_record(observe(tiny_model, token_set(2), prefix=1))


def test_operands_are_those_of_the_sites(tiny_model: Model):
    stats = observe(tiny_model, token_set(2))
    assert {name for site in tiny_model.sites() for name in site.streams} <= stats.streams.keys()
    for name, stream in stats.streams.items():
        assert name == stream.name == f"model.layers.{stream.block}.{stream.kind}"


def test_without_attention_its_operands_are_missing(tiny_model: Model):
    stats = observe(tiny_model, token_set(2), attention=False)
    assert {s.kind for s in stats.streams.values()} == set(PROJECTION_KINDS)
    with pytest.raises(UserError, match=r"no stream model\.layers\.0\.q"):
        stats.stream("model.layers.0.q")


def test_the_planted_channel_is_found(tiny_llama: Path, spiky: Path):
    tokens = token_set()
    before, after = (observe(open_model(str(f)), tokens).stream("model.layers.1.down_in") for f in (tiny_llama, spiky))
    assert {peak.channel for peak in after.peaks} == {5}
    assert all(peak.text == open_model(str(spiky)).tokenizer.decode([peak.token]) for peak in after.peaks)
    assert {peak.value for peak in after.peaks} & {-after.maximum, after.maximum}
    factor = torch.ones(64)
    factor[5] = 64
    for key in ("channel_min", "channel_max"):
        assert torch.equal(after.arrays[key], before.arrays[key] * factor)  # a power of two, so to the last bit


def test_what_the_record_says_of_the_pass(tiny_model: Model):
    tokens = token_set(5)
    stats = observe(tiny_model, tokens)
    assert (stats.windows, stats.length, stats.sampled_windows) == (5, LENGTH, 5)
    assert stats.provenance.model == tiny_model.fingerprint
    assert (stats.provenance.tokens, stats.provenance.convention) == (tokens.fingerprint, tokens.convention)
    assert observe(tiny_model, token_set(17)).sampled_windows == 16
    assert observe(tiny_model, tokens, sampled_windows=2).sampled_windows == 2


def test_a_stream_of_zeros_has_no_spike(tmp_path: Path):
    folder = tiny_checkpoint(tmp_path)
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.mlp.up_proj.weight"].zero_()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    stream = observe(open_model(str(folder)), token_set(3)).stream("model.layers.0.down_in")
    assert (stream.ratio, stream.maximum, stream.median_energy, stream.element_median) == (1.0, 0.0, 0.0, 0.0)


# ---------------------------------------------------------------- what may not change the record


def test_the_same_bytes_twice_and_whatever_the_memory(tiny_llama: Path):
    models = [open_model(str(tiny_llama), Runtime(memory=bytes_)) for bytes_ in (1 << 30, 1 << 30, 1)]
    assert len({encode_record(observe(model, token_set())) for model in models}) == 1


@pytest.mark.parametrize("attention", [True, False])
def test_the_same_bytes_for_every_batch_size(tiny_llama: Path, attention: bool):
    records = [
        observe(open_model(str(tiny_llama), Runtime(batch_tokens=windows * LENGTH)), token_set(), attention=attention)
        for windows in (1, 3, 16, 64)
    ]
    assert len({encode_record(stats) for stats in records}) == 1


def test_windows_are_seen_alike_whatever_the_pieces(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    """A window goes through its collector in pieces: here a token, or a head's token, at a time, and all at once."""
    whole = observe(open_model(str(tiny_llama)), token_set()).streams
    monkeypatch.setattr("qarat.stages.observe.collectors.PIECE", {"cpu": 1})
    for name, stream in observe(open_model(str(tiny_llama)), token_set()).streams.items():
        expected = whole[name]
        assert (stream.width, stream.tokens, stream.peaks) == (expected.width, expected.tokens, expected.peaks)
        assert stream.median_energy == pytest.approx(expected.median_energy, rel=1e-6)
        # Probabilities are computed in pieces too, so their last bits may differ.
        exact = stream.kind != "p"
        assert stream.ratio == pytest.approx(expected.ratio, rel=0 if exact else 1e-6)
        for key in ("histogram", "token_maxima"):
            moved = (stream.arrays[key] - expected.arrays[key]).abs().sum()
            assert stream.arrays[key].sum() == expected.arrays[key].sum()
            assert moved <= (0 if exact else 1e-4 * expected.arrays[key].sum())


def test_ties_among_peaks_go_to_the_first_place(tiny_llama: Path):
    # The same window over and over: every peak is tied with its copies.
    tokens = token_set(1)
    ids = tokens.windows.repeat(12, 1)
    many = TokenSet("calibration", tokens.convention, ids, ("text",) * 12, tokens.documents, tokens.document_sources)
    for windows in (1, 5, 12):
        stats = observe(open_model(str(tiny_llama), Runtime(batch_tokens=windows * LENGTH)), many, attention=False)
        assert all([p.window for p in s.peaks] == list(range(8)) for s in stats.streams.values())


# ---------------------------------------------------------------- hooks


def remains(model: Model) -> list[str]:
    """What an observing pass left behind in kept blocks."""
    left = []
    for index in range(model.blocks):
        for name, module in model.block(index).named_modules():
            hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
            left += [f"{index}.{name}: {hooks} hooks"] * bool(hooks)
            left += [f"{index}.{name}"] * name.endswith(WATCHER)
    return left


def test_nothing_stays_behind(tiny_model: Model):
    ids = token_set(2).windows
    with torch.no_grad():
        before: Any = tiny_model.module()(ids)
        observe(tiny_model, token_set())
        after: Any = tiny_model.module()(ids)
    assert remains(tiny_model) == []
    assert torch.equal(before.logits, after.logits)


@pytest.mark.parametrize("when", ["in a block", "in a collector"])
def test_nothing_stays_behind_after_an_exception(tiny_model: Model, when: str, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    if when == "in a block":
        monkeypatch.setattr(tiny_model.block(1).get_submodule("mlp.down_proj"), "forward", broken)
    else:
        monkeypatch.setattr("qarat.stages.observe.collectors.count_magnitudes", broken)
    with pytest.raises(KeyboardInterrupt):
        observe(tiny_model, token_set(2))
    assert remains(tiny_model) == []


def test_progress_is_told_of_every_block(tiny_model: Model):
    calls: list[tuple[str, int, int]] = []
    observe(tiny_model, token_set(2), progress=lambda *call: calls.append(call))
    assert calls == [("observe", 0, 2), ("observe", 1, 2), ("observe", 2, 2)]


# ---------------------------------------------------------------- NaN and Inf


def overflowing(folder: Path, token: int) -> Path:
    """A model whose `up_proj` of block 0 overflows at that token and nowhere else.

    Channel 0 of the residual stream is zero but for the token's embedding, and only it is multiplied by 1e38.
    """
    tiny_checkpoint(folder)
    state = load_file(folder / "model.safetensors")
    embedding = state["model.embed_tokens.weight"]
    embedding[:, 0] = 0
    embedding[token] = 0
    embedding[token, 0] = 100.0
    state["model.layers.0.self_attn.o_proj.weight"][0] = 0
    state["model.layers.0.post_attention_layernorm.weight"][0] = 1
    up = state["model.layers.0.mlp.up_proj.weight"]
    up[7] = 0
    up[7, 0] = 1e38
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_an_overflow_names_stream_window_and_token(tmp_path: Path, batch: int):
    folder = overflowing(tmp_path, token=99)
    tokens = token_set(4)
    tokens.windows[2, 13] = 99
    model = open_model(str(folder), Runtime(batch_tokens=batch * LENGTH))
    with pytest.raises(UserError, match=r"in the stream model\.layers\.0\.down_in, window 2, token 13 \(1 tokens"):
        observe(model, tokens)
    assert remains(model) == []
    stats = observe(model, token_set(4))  # without that token all is well
    assert isinstance(stats, ActivationStats)

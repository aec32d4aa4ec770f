import gc
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GenerationConfig

from qarat.ground.runtime import Runtime
from qarat.model.model import Model, Transform
from qarat.model.opening import open_model
from qarat.testing import tiny_checkpoint

LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied": {"tied": True},
    "llama-one-kv-head": {"kv_heads": 1},
    "llama-no-groups": {"kv_heads": 4},
    "llama-biases": {"attention_bias": True, "mlp_bias": True},
    "llama-scaled-rope": {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 16}},
    "llama-sharded": {"max_shard_size": "40KB"},
    "llama-sharded-tied": {"max_shard_size": "40KB", "tied": True},
    "llama-float16": {"dtype": torch.float16},
    "llama-bfloat16": {"dtype": torch.bfloat16},
    "llama-wide-heads": {"head_dim": 16},
    "mistral": {"architecture": "mistral"},
    "mistral-no-window": {"architecture": "mistral", "sliding_window": None},
    "mistral-sliding": {"architecture": "mistral", "sliding_window": 8},
    "qwen2": {"architecture": "qwen2"},
    "qwen2-tied": {"architecture": "qwen2", "tied": True},
    "qwen2-sliding": {
        "architecture": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
    },
    "qwen2-bfloat16": {"architecture": "qwen2", "dtype": torch.bfloat16},
    "qwen3": {"architecture": "qwen3"},
    "qwen3-wide-heads-tied": {"architecture": "qwen3", "head_dim": 16, "tied": True},
    "qwen3-biases": {"architecture": "qwen3", "attention_bias": True},
    "qwen3-sliding": {
        "architecture": "qwen3",
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
    },
}


def some_tokens(windows: int = 3, length: int = 40) -> Tensor:
    return torch.randint(2, 98, (windows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def walk(model: Model, tokens: Tensor) -> Tensor:
    """Logits by the walk."""
    hidden = model.embed(tokens)
    for index, block in model.walk():
        hidden = model.run_block(index, block, hidden)
    return model.logits(hidden)


def ordinary(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


@torch.no_grad()
def same_logits(folder: Path, tokens: Tensor) -> bool:
    return torch.equal(walk(open_model(str(folder)), tokens), ordinary(folder)(tokens).logits)


# ---------------------------------------------------------------- sites


@pytest.mark.parametrize("variant", ["llama", "llama-one-kv-head", "llama-wide-heads", "mistral", "qwen2", "qwen3"])
def test_macs_of_the_sites_are_what_torch_counts_in_the_blocks(variant: str, tmp_path: Path):
    """With attention written out, in which every product is a matrix product of its own."""
    folder = tiny_checkpoint(tmp_path, **VARIANTS[variant])
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(some_tokens(windows=1, length=24))
    counts = counter.get_flop_counts()
    for block in range(model.config.num_hidden_layers):
        sites = [s for s in open_model(str(folder)).sites() if s.block == block]
        (name,) = (name for name in counts if name.endswith(f"layers.{block}"))
        assert 2 * sum(s.macs(24) for s in sites) == sum(counts[name].values())


# ---------------------------------------------------------------- the walk is the model


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_walk_equals_transformers_to_the_last_bit(variant: str, tmp_path: Path):
    folder = tiny_checkpoint(tmp_path, **VARIANTS[variant])
    assert same_logits(folder, some_tokens())
    assert same_logits(folder, some_tokens(1, 64))


@pytest.mark.parametrize("variant", ["mistral-sliding", "qwen2-sliding", "qwen3-sliding"])
def test_a_sliding_window_matters_here(variant: str, tmp_path: Path):
    sliding = tiny_checkpoint(tmp_path / "a", **VARIANTS[variant])
    wide: dict[str, Any] = VARIANTS[variant] | {"sliding_window": 64}
    full = tiny_checkpoint(tmp_path / "b", **wide)
    logits = [walk(open_model(str(folder)), some_tokens()) for folder in (sliding, full)]
    assert torch.equal(logits[0][:, :8], logits[1][:, :8])
    assert (logits[0] - logits[1])[:, 8:].abs().amax(dim=(0, 2)).min() > 1e-3


def test_the_walk_in_bfloat16(tmp_path: Path):
    folder = tiny_checkpoint(tmp_path, dtype=torch.bfloat16)
    logits = walk(open_model(str(folder), Runtime(dtype="bfloat16")), some_tokens())
    with torch.no_grad():
        assert torch.equal(logits, ordinary(folder, torch.bfloat16)(some_tokens()).logits.float())


def test_a_real_model(stories260k: Path):
    assert same_logits(stories260k, some_tokens(2, 256))


def test_shards_and_one_file_are_the_same_model(tmp_path: Path, tiny_llama: Path):
    sharded = tiny_checkpoint(tmp_path, max_shard_size="40KB")
    assert torch.equal(walk(open_model(str(sharded)), some_tokens()), walk(open_model(str(tiny_llama)), some_tokens()))


# ---------------------------------------------------------------- what may not change results


def test_a_memory_bound_too_small_to_keep_blocks(tiny_llama: Path):
    bounded = open_model(str(tiny_llama), Runtime(memory=1))
    roomy = open_model(str(tiny_llama), Runtime(memory=1 << 30))
    assert torch.equal(walk(bounded, some_tokens()), walk(roomy, some_tokens()))
    assert bounded.block(0) is not bounded.block(0)
    assert roomy.block(0) is roomy.block(0)


def test_what_is_made_from_a_model_that_keeps_no_blocks_keeps_none(tiny_llama: Path):
    model = open_model(str(tiny_llama), Runtime(memory=1 << 30, dtype="bfloat16"))
    doubled = Transform("double", lambda _, state: state)
    for made in (model.with_transform(doubled), model.in_float32(), model.with_blocks(model.load_float_block)):
        assert made.block(0) is made.block(0)
    bare = model.unkept()
    for made in (bare.with_transform(doubled), bare.in_float32(), bare.with_blocks(model.load_float_block)):
        assert made.block(0) is not made.block(0)


def test_a_model_that_nobody_holds_is_gone_at_once_with_its_blocks(tiny_llama: Path):
    """Of several gigabytes the collector knows nothing, so it comes late or never."""
    gc.disable()
    try:
        model = open_model(str(tiny_llama)).with_transform(Transform("double", lambda _, state: state))
        walk(model, some_tokens())
        skeleton, block = weakref.ref(model._skeleton), weakref.ref(model.block(0))
        del model
        assert (skeleton(), block()) == (None, None)
    finally:
        gc.enable()


def test_block_bytes(tiny_model: Model):
    assert tiny_model.block_bytes() == sum(p.nbytes for p in tiny_model.block(0).parameters())


@torch.no_grad()
def test_batches_of_several_shapes_may_alternate(tiny_model: Model):
    batches = [some_tokens(2, 40), some_tokens(1, 40), some_tokens(2, 16), some_tokens(2, 40)]
    hidden = [tiny_model.embed(batch) for batch in batches]
    for index, block in tiny_model.walk():
        hidden = [tiny_model.run_block(index, block, h) for h in hidden]
    for states, batch in zip(hidden, batches, strict=True):
        assert torch.equal(tiny_model.logits(states), walk(tiny_model, batch))


@torch.no_grad()
def test_a_walk_may_begin_at_kept_hidden_states(tiny_llama: Path):
    first, second = open_model(str(tiny_llama)), open_model(str(tiny_llama))
    kept = first.run_block(0, first.block(0), first.embed(some_tokens()))
    (rest,) = second.walk(first=1)  # has never embedded anything
    assert torch.equal(second.logits(second.run_block(*rest, kept)), walk(first, some_tokens()))


def test_gradients_go_through_a_block(tiny_model: Model):
    hidden = tiny_model.embed(some_tokens()).requires_grad_()
    tiny_model.logits(tiny_model.run_block(1, tiny_model.block(1), hidden)).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()
    assert hidden.grad.any()


# ---------------------------------------------------------------- other blocks


def test_with_blocks_walks_the_other_blocks(tiny_model: Model):
    class Passing(nn.Module):
        def forward(self, hidden: Tensor, **_: object) -> Tensor:
            return hidden

    bare = tiny_model.with_blocks(lambda index: tiny_model.load_float_block(0) if index == 0 else Passing())
    assert bare.fingerprint == tiny_model.fingerprint
    with torch.no_grad():
        hidden = tiny_model.run_block(0, tiny_model.block(0), tiny_model.embed(some_tokens()))
        assert torch.equal(walk(bare, some_tokens()), tiny_model.logits(hidden))


# ---------------------------------------------------------------- the whole module


@pytest.mark.parametrize("variant", ["llama", "llama-tied", "mistral-sliding", "qwen2-sliding", "qwen3"])
def test_generate_equals_transformers(variant: str, tmp_path: Path):
    folder = tiny_checkpoint(tmp_path, **VARIANTS[variant])
    prompt = some_tokens(2, 6)
    whole: Any = open_model(str(folder)).module()
    for cache in (True, False):
        settings = {"max_new_tokens": 24, "do_sample": False, "use_cache": cache}
        assert torch.equal(whole.generate(prompt, **settings), ordinary(folder).generate(prompt, **settings))


def test_generate_follows_the_folders_generation_config(tiny_llama: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    GenerationConfig(max_new_tokens=7, repetition_penalty=5.0, bos_token_id=0).save_pretrained(folder)
    whole: Any = open_model(str(folder)).module()
    answer = whole.generate(some_tokens(1, 6))
    assert torch.equal(answer, ordinary(folder).generate(some_tokens(1, 6)))
    assert answer.shape == (1, 13)


def test_generate_on_a_real_model(stories260k: Path):
    model = open_model(str(stories260k))
    whole: Any = model.module()
    prompt = model.tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    answer = whole.generate(prompt, max_new_tokens=40, do_sample=False)
    assert torch.equal(answer, ordinary(stories260k).generate(prompt, max_new_tokens=40, do_sample=False))
    assert "there was a little" in model.tokenizer.decode(answer[0])


@torch.no_grad()
def test_the_module_leaves_the_walk_alone(tiny_model: Model):
    before = walk(tiny_model, some_tokens())
    whole: Any = tiny_model.module()
    assert torch.equal(whole(some_tokens()).logits, before)
    assert all(p.is_meta for p in tiny_model.empty_block(0).parameters())
    assert torch.equal(walk(tiny_model, some_tokens()), before)


# ---------------------------------------------------------------- sites


def test_sites_are_the_projections_products_and_caches_of_every_block(tiny_model: Model):
    sites = tiny_model.sites()
    whole = tiny_model.module()
    linears = {name for name, m in whole.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"}
    projections = [site for site in sites if site.kind == "projection"]
    assert len({site.name for site in sites}) == len(sites) == 2 * (7 + 2 + 2)
    assert {site.name for site in projections} == linears
    for site in projections:
        assert site.shape == tuple(whole.get_submodule(site.name).weight.shape)  # type: ignore[union-attr]
    assert [site.block for site in sites] == sorted(site.block for site in sites)
    assert {site.leaf for site in sites if site.kind == "product"} == {"qk", "av"}
    assert {site.leaf for site in sites if site.kind == "cache"} == {"k_cache", "v_cache"}
    assert all(len(site.streams) == (2 if site.kind == "product" else 1) for site in sites)


def test_ties_and_biases(tmp_path: Path):
    sites = open_model(str(tiny_checkpoint(tmp_path, architecture="qwen2"))).sites()
    ties: dict[str, set[str]] = {}
    for site in sites:
        if site.block == 0 and site.tie:
            ties.setdefault(site.tie, set()).add(site.leaf)
    assert sorted(map(sorted, ties.values())) == [["gate_proj", "up_proj"], ["k_proj", "q_proj", "v_proj"]]
    assert {site.leaf for site in sites if site.has_bias} == {"q_proj", "k_proj", "v_proj"}


def test_facts(tmp_path: Path):
    model = open_model(str(tiny_checkpoint(tmp_path, blocks=3, length=48, dtype=torch.float16)))
    assert (model.blocks, model.length, model.source_bits) == (3, 48, 16)
    assert {p.dtype for p in model.block(0).parameters()} == {torch.float32}

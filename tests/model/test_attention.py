from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qarat.model.attention import ATTENTION, PRODUCTS, WATCHER, capped
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.testing import tiny_checkpoint
from qarat.values.roles import Role

VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-one-kv-head": {"kv_heads": 1},
    "mistral": {"architecture": "mistral"},
    "mistral-sliding": {"architecture": "mistral", "sliding_window": 8},
    "qwen2": {"architecture": "qwen2"},
    "qwen2-sliding": {
        "architecture": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
    },
    "qwen3": {"architecture": "qwen3"},
    "gemma2": {"architecture": "gemma2", "sliding_window": 8, "attn_logit_softcapping": 2.0},
    "gemma3": {"architecture": "gemma3_text", "sliding_window": 8},
    "opt": {"architecture": "opt"},
}


class FloatProducts(nn.Module):
    """The two products, nothing quantized; remembers the operands' shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], ...]] = []

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        self.seen.append((tuple(q.shape), tuple(k.shape)))
        return q @ k.transpose(-1, -2)

    def mix(self, p: Tensor, v: Tensor) -> Tensor:
        assert torch.allclose(p.sum(-1), torch.ones(()))
        return p @ v


def with_products(model: Model) -> Any:
    """The whole model with float products in every attention."""
    whole = model.module()
    for name, module in list(whole.named_modules()):
        if name.endswith(f".{model.family.attention}"):
            module.add_module(PRODUCTS, FloatProducts())
    return whole


def some_tokens(windows: int = 2, length: int = 40) -> Tensor:
    return torch.randint(2, 98, (windows, length), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_float_products_equal_the_fused_kernel(variant: str, tmp_path: Path):
    folder = str(tiny_checkpoint(tmp_path, **VARIANTS[variant]))
    fused, split = open_model(folder).module(), with_products(open_model(folder))
    torch.testing.assert_close(split(some_tokens()).logits, fused(some_tokens()).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_generating_with_a_cache_equals_the_fused_kernel(variant: str, tmp_path: Path):
    folder = str(tiny_checkpoint(tmp_path, **VARIANTS[variant]))
    fused: Any = open_model(folder).module()
    split = with_products(open_model(folder))
    settings: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False, "output_logits": True}
    settings["return_dict_in_generate"] = True
    one, other = (whole.generate(some_tokens(2, 6), use_cache=True, **settings) for whole in (fused, split))
    assert torch.equal(one.sequences, other.sequences)
    torch.testing.assert_close(torch.stack(other.logits), torch.stack(one.logits), rtol=1e-5, atol=1e-5)
    uncached = split.generate(some_tokens(2, 6), use_cache=False, **settings)
    assert torch.equal(one.sequences, uncached.sequences)


@torch.no_grad()
def test_a_prompt_in_two_parts_with_a_cache(tmp_path: Path):
    folder = str(tiny_checkpoint(tmp_path))
    fused: Any = open_model(folder).module()
    split = with_products(open_model(folder))
    tokens = some_tokens()
    first = split(tokens[:, :25], use_cache=True)
    second = split(tokens[:, 25:], past_key_values=first.past_key_values, use_cache=True)
    logits = torch.cat([first.logits, second.logits], dim=1)
    torch.testing.assert_close(logits, fused(tokens).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_on_the_left(tmp_path: Path):
    folder = str(tiny_checkpoint(tmp_path))
    fused: Any = open_model(folder).module()
    split = with_products(open_model(folder))
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, :10] = 0
    one, other = (whole(some_tokens(), attention_mask=mask).logits for whole in (fused, split))
    torch.testing.assert_close(other[mask.bool()], one[mask.bool()], rtol=1e-5, atol=1e-5)
    assert not other[mask.bool()].isnan().any()


@torch.no_grad()
def test_products_see_every_query_head(tiny_model: Model):
    whole = with_products(tiny_model)
    whole(some_tokens())
    for block in whole.get_submodule(tiny_model.family.blocks):
        assert block.self_attn.products.seen == [((2, 4, 40, 8), (2, 4, 40, 8))]  # 2 KV heads are repeated


class RememberingWatcher(nn.Module):
    """Remembers the operands, and what they give by the protocol's own words."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: list[Tensor] = []

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, softcap: float | None) -> None:
        scores = capped(scaling * (q @ k.transpose(-1, -2)), softcap) + mask
        self.mixed.append((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_watcher_sees_the_operands_and_changes_nothing(variant: str, tmp_path: Path):
    model = open_model(str(tiny_checkpoint(tmp_path, **VARIANTS[variant])))
    whole = model.module()
    inputs: list[Tensor] = []
    plain = whole(some_tokens()).logits
    watchers = [RememberingWatcher() for _ in range(model.blocks)]
    output = model.family.reader(Role.ATTENTION_OUTPUT)
    for watcher, (_, block) in zip(watchers, model.walk(), strict=True):
        home = block.get_submodule(model.family.attention)
        home.add_module(WATCHER, watcher)
        block.get_submodule(output).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    assert torch.equal(whole(some_tokens()).logits, plain)
    for watcher, x in zip(watchers, inputs, strict=True):
        torch.testing.assert_close(watcher.mixed[0], x, rtol=1e-5, atol=1e-5)


def test_products_show_when_the_model_is_printed(tiny_model: Model):
    whole = with_products(tiny_model)
    assert "(products): FloatProducts()" in str(whole)
    assert whole.config._attn_implementation == ATTENTION

"""The recipes of the reference family: everything that decides the bytes of a model, except corpus and versions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from windows import VOCABULARY, WINDOW


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the bytes of a model, except the corpus and the library versions.

    Attributes:
        packed: Documents laid end to end, BOS only where a document begins, windows cut anywhere.
        keep_at: Shares of training at which a copy of the model is kept as well.
    """

    name: str
    hidden: int
    intermediate: int
    architecture: str = "llama"
    blocks: int = 8
    heads: int = 4
    packed: bool = False
    keep_at: tuple[float, ...] = ()
    steps: int = 3000
    batch: int = 16
    warmup: int = 100
    peak_rate_at_128: float = 6e-3
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0

    @property
    def peak_rate(self) -> float:
        return self.peak_rate_at_128 * 128 / self.hidden

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine to a tenth of the peak."""
        if step < self.warmup:
            return self.peak_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak_rate * (0.55 + 0.45 * math.cos(math.pi * progress))


# Widths and MLP sizes are multiples of 32, so that blocks of 32 divide every weight.
FAMILY = {
    recipe.name: recipe
    for recipe in (
        Recipe("py-64", 64, 160, keep_at=(0.12, 0.25, 0.5)),
        Recipe("py-96", 96, 256),
        Recipe("py-128", 128, 352),
        # A peak of 6e-3 at 128 is too high for these: they learned less than py-128 (LOG.md).
        Recipe("py-160", 160, 448, peak_rate_at_128=4e-3),
        Recipe("py-224", 224, 608, peak_rate_at_128=3.4e-3),
        Recipe("py-128-qwen2", 128, 352, architecture="qwen2"),
        Recipe("py-128-packed", 128, 352, packed=True),
    )
}


def build_model(recipe: Recipe) -> torch.nn.Module:
    shape: dict[str, Any] = dict(
        vocab_size=VOCABULARY,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.blocks,
        num_attention_heads=recipe.heads,
        max_position_embeddings=WINDOW,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
        # Eager attention compiles into fewer passes over memory than the CPU's flash kernel at these sizes.
        attn_implementation="eager",
    )
    if recipe.architecture == "qwen2":
        # Grouped queries, untied head, biases on q, k and v.
        return Qwen2ForCausalLM(Qwen2Config(**shape, num_key_value_heads=recipe.heads // 2, tie_word_embeddings=False))
    return LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=recipe.heads, tie_word_embeddings=True))


def build_optimizer(model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; only matrices decay. The rate is set at every step."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=True)

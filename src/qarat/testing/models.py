"""Tiny random models, texts that their tokenizer knows, and artificial spikes planted where none is.

Models are Hugging Face folders. The weights are random, so nothing here says anything about language models. What the
tiny models are good for is laws: that two ways of computing the same thing agree, and that what is wrong is refused.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors.torch import load_file, save
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as token_models
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from qarat.ground.disk import write_whole
from qarat.model.texts import Document

State = TypeVar("State", Path, dict[str, Tensor])
Architecture = Literal["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "opt"]
_BOS, _UNKNOWN = "<s>", "<unk>"
_SPACE, _NEWLINE = "Ġ", "Ċ"  # as byte-level BPE writes them
_CHARACTERS = [_SPACE, *string.ascii_lowercase, _NEWLINE, *string.ascii_uppercase, *string.digits, *string.punctuation]


def tiny_tokenizer(vocabulary: int = 128, *, bos: bool = True) -> PreTrainedTokenizerFast:
    """A character-level tokenizer for ASCII: BOS is id 0, anything it does not know is id 1.

    Args:
        vocabulary: At most so many ids; at least 29, for the lower-case letters and the space.
        bos: Whether it has a BOS and puts it in front of every text.
    """
    if vocabulary < 29:
        raise ValueError(f"a vocabulary of {vocabulary} has no room for the 26 letters, space, BOS and unknown")
    words = [_BOS, _UNKNOWN, *_CHARACTERS][:vocabulary]
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(token_models.BPE(vocab=ids, merges=[], unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    if bos:
        template = processors.TemplateProcessing(single=f"{_BOS} $A", special_tokens=[(_BOS, 0)])
        tokenizer.post_processor = template  # type: ignore[assignment]
    special = {"bos_token": _BOS} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=_UNKNOWN, **special)


def tiny_checkpoint(
    folder: Path,
    *,
    architecture: Architecture = "llama",
    hidden: int = 32,
    blocks: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 64,
    vocabulary: int = 128,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    max_shard_size: int | str | None = None,
    length: int = 64,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a Hugging Face folder with a tiny random model and a character-level tokenizer.

    Weights are larger than an untrained model's, norms are not all ones and biases not all zeros, so that logits are
    lively and a forgotten norm or bias shows.

    Args:
        folder: Where to; made if need be.
        architecture: The model type, as in ``config.json``.
        hidden: Width of the residual stream.
        blocks: Decoder layers.
        heads: Query heads.
        kv_heads: Key and value heads; divides ``heads``.
        intermediate: Width of the MLP.
        vocabulary: Rows of the embedding.
        tied: Whether the head is the embedding.
        dtype: Of the weights in the file.
        max_shard_size: In bytes or such as ``"20KB"``; None writes one file.
        length: Tokens the model takes at once.
        seed: For the weights.
        **config: Further fields of the config, e.g. ``attention_bias=True`` or ``sliding_window=8``.

    Returns:
        The folder.
    """
    fields: dict[str, Any] = dict(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        intermediate_size=intermediate,
        max_position_embeddings=length,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
    )
    if architecture == "opt":  # which has names of its own
        fields |= {"ffn_dim": intermediate, "word_embed_proj_dim": hidden, "pad_token_id": 1}
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **(fields | config)))
    _draw_weights(model, torch.Generator().manual_seed(seed))
    shards = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    model.to(dtype).save_pretrained(folder, **shards)
    tiny_tokenizer(vocabulary).save_pretrained(folder)
    return folder


@torch.no_grad()
def _draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight of a model anew, norms around one and biases around zero."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            parameter.copy_(1 + 0.2 * noise)
        elif parameter.ndim == 1:
            parameter.copy_(0.2 * noise)
        else:
            parameter.copy_(1.5 * noise / parameter.shape[1] ** 0.5)


def tiny_documents(count: int, seed: int = 0, *, characters: int = 400) -> tuple[Document, ...]:
    """Random words that `tiny_tokenizer` knows; no two documents are alike.

    Args:
        count: How many documents.
        seed: For the words.
        characters: Length of each, which is also its length in tokens.
    """
    generator = random.Random(seed)

    def word() -> str:
        return "".join(generator.choices(string.ascii_lowercase, k=generator.randint(1, 9)))

    def text() -> str:
        words = [word() for _ in range(characters)]
        return " ".join(words)[:characters].strip().ljust(characters, "x")

    return tuple(Document(f"tiny/{seed}/{number}", text()) for number in range(count))


def plant_spike(target: State, block: int, channel: int, factor: float) -> State:
    """Plant an artificial spike at the input of a ``down_proj`` that leaves the model's function as it is.

    Row ``channel`` of ``up_proj`` (and its bias) is multiplied by ``factor``, column ``channel`` of ``down_proj``
    divided by it. For unit tests of detectors only: no published figure rests on it. Real spikes are a few *tokens*
    that tower over the rest; this one is a channel that does.

    Args:
        target: A checkpoint's folder, rewritten in place, or a state dict, which is left alone.
        block: Index of the decoder layer.
        channel: Index along the MLP's width.
        factor: By how much; exact for powers of two.

    Returns:
        The folder, or a new state dict.
    """
    if isinstance(target, dict):
        return _planted(target, block, channel, factor)
    index = target / "model.safetensors.index.json"
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    for name in sorted(names):
        planted = _planted(load_file(target / name), block, channel, factor)
        # Not in place: an open model's weights may be maps of the old file.
        write_whole(target / name, save(planted, metadata={"format": "pt"}))
    return target


def _planted(state: Mapping[str, Tensor], block: int, channel: int, factor: float) -> dict[str, Tensor]:
    """The state dict with whatever part of the spike belongs to tensors that it holds."""
    mlp = f"model.layers.{block}.mlp"
    changed = {name: tensor.clone() for name, tensor in state.items()}
    for name in (f"{mlp}.up_proj.weight", f"{mlp}.up_proj.bias"):
        if name in changed:
            changed[name][channel] *= factor
    if f"{mlp}.down_proj.weight" in changed:
        changed[f"{mlp}.down_proj.weight"][:, channel] /= factor
    return changed

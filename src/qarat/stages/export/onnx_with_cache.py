"""An ONNX decoder graph with a KV cache, for ONNX Runtime GenAI and OpenVINO to generate with.

The graph of `qarat.stages.export.onnx`, with the keys and values of earlier tokens going in and those of all tokens
coming out, under the names that optimum gave them: ``past_key_values.N.key`` and ``present.N.key``, each (batch, heads,
tokens, width) in float32. The first step has a past of no tokens. ``genai_config.json`` says the same to ONNX Runtime
GenAI.

What is given up: the cache grows by a copy each step, and attention is ONNX's plain operators; engines with a fused
attention of their own are faster. A sliding window is in the mask alone: the cache keeps what lies behind it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from qarat.ground.runtime import Progress
from qarat.model.model import Model
from qarat.stages.export import onnx
from qarat.values.plans import Plan

EXTRA = onnx.EXTRA
NEEDS = onnx.NEEDS
CONFIG = "genai_config.json"
ACCURACY = "session.qdq_matmulnbits_accuracy_level"
"""ONNX Runtime's name for how inputs of weights that are quantized alone are computed: 1 is float32, 4 its default."""
_INPUTS = ("input_ids", "attention_mask", "position_ids")
_PAST, _PRESENT = "past_key_values", "present"

check = onnx.check


def write(model: Model, plan: Plan, folder: Path, *, progress: Progress) -> Sequence[str]:
    """Write graph, tokenizer and settings (protocol `qarat.stages.export.base.Exporter`)."""
    batch, length, past = 2, 3, 5  # any but 0 and 1, which a tracer takes for constants
    free = {name: torch.export.Dim(name) for name in ("batch", "length", "past", "total")}
    tokens = {0: free["batch"], 1: free["length"]}
    held = [torch.zeros(batch, _kv_heads(model), past, model.head_width) for _ in _names(model, _PAST)]
    example = {
        "input_ids": torch.zeros(batch, length, dtype=torch.long),
        "attention_mask": torch.ones(batch, past + length, dtype=torch.long),
        "position_ids": torch.arange(past, past + length).repeat(batch, 1),
        "past": held,
    }
    sizes = {
        "input_ids": tokens,
        "attention_mask": {0: free["batch"], 1: free["total"]},
        "position_ids": tokens,
        "past": [{0: free["batch"], 2: free["past"]} for _ in held],
    }
    names = ([*_INPUTS, *_names(model, _PAST)], ["logits", *_names(model, _PRESENT)])
    onnx.write_graph(model, _Decoder, example, sizes, names, folder, progress)
    (folder / CONFIG).write_text(json.dumps(_settings(model), indent=2) + "\n", encoding="utf-8")
    note = f"{onnx.FILE}: a decoder whose cache is {_PAST}.N.(key|value) and {_PRESENT}.N.(key|value), in float32"
    return (note, *onnx.NOTES)


class _Decoder(nn.Module):
    """Ids and what is cached to logits and what is cached then."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        cache = DynamicCache()
        for index, (keys, values) in enumerate(zip(past[::2], past[1::2], strict=True)):
            cache.update(keys, values, index)
        whole = self.whole(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        layers: list[Any] = whole.past_key_values.layers
        return (whole.logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values)))


def _names(model: Model, prefix: str) -> list[str]:
    return [f"{prefix}.{index}.{part}" for index in range(model.blocks) for part in ("key", "value")]


def _kv_heads(model: Model) -> int:
    return getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads


def _settings(model: Model) -> dict[str, Any]:
    """What ONNX Runtime GenAI asks of a model's folder."""
    config = model.config
    decoder = {
        "session_options": {ACCURACY: "1"},
        "filename": onnx.FILE,
        "head_size": model.head_width,
        "hidden_size": config.hidden_size,
        "inputs": {name: name for name in _INPUTS} | _cached("past", _PAST),
        "outputs": {"logits": "logits"} | _cached("present", _PRESENT),
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": model.blocks,
        "num_key_value_heads": _kv_heads(model),
    }
    marks = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    known = {name: value for name, value in marks.items() if value is not None}
    sizes = {"context_length": model.length, "vocab_size": config.vocab_size}
    whole = {"type": config.model_type, **sizes, **known, "decoder": decoder}
    return {"model": whole, "search": {"max_length": model.length, "past_present_share_buffer": False}}


def _cached(kind: str, prefix: str) -> dict[str, str]:
    return {f"{kind}_{part}_names": f"{prefix}.%d.{part}" for part in ("key", "value")}

"""Gemma 3 (text): Gemma 2's norms, norms on queries and keys, five sliding layers to one that sees everything."""

from msgspec.structs import replace

from qarat.model.families import gemma2
from qarat.model.families.base import Gguf

FAMILY = replace(
    gemma2.FAMILY,
    architectures=("Gemma3ForCausalLM",),
    gguf=Gguf(
        "gemma3",
        "gemma3_text",
        fields={"sliding_window": "attention.sliding_window"},
        query_width={62: 168},  # 27B, by its blocks
    ),
)

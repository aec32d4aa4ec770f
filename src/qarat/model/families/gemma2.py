"""Gemma 2: four norms a block whose weights add to one, softly capped scores and logits, every other layer sliding."""

from msgspec.structs import replace

from qarat.model.families import llama
from qarat.model.families.base import Gguf
from qarat.values.roles import Role

STREAMS = tuple(
    replace(stream, source="pre_feedforward_layernorm") if stream.role == Role.MLP_INPUT else stream
    for stream in llama.FAMILY.streams
)
"""LLaMA's, but for the name of the norm in front of the MLP."""

FAMILY = replace(
    llama.FAMILY,
    architectures=("Gemma2ForCausalLM",),
    streams=STREAMS,
    norm_offset=1.0,
    gguf=Gguf(
        "gemma2",
        "gemma2",
        fields={
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
            "sliding_window": "attention.sliding_window",
        },
        query_width={46: 144},  # 27B, by its blocks
    ),
)

"""Mistral: LLaMA's wiring with an optional sliding window (the mask comes from transformers)."""

from msgspec.structs import replace

from qarat.model.families import llama
from qarat.model.families.base import Gguf

FAMILY = replace(
    llama.FAMILY,
    architectures=("MistralForCausalLM",),
    gguf=Gguf("llama", "mistral", named="mistral", paired_rows=True, fixed={"sliding_window": None}),
)

"""Mistral: LLaMA's wiring with an optional sliding window (the mask comes from transformers)."""

from msgspec.structs import replace

from qarat.model.families import llama

FAMILY = replace(llama.FAMILY, architectures=("MistralForCausalLM",))

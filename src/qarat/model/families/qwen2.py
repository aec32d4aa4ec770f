"""Qwen2 and Qwen1.5: LLaMA's wiring with biases on q, k and v (kept in float)."""

from msgspec.structs import replace

from qarat.model.families import llama

FAMILY = replace(llama.FAMILY, architectures=("Qwen2ForCausalLM",))

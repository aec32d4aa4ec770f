"""Qwen3: LLaMA's wiring with norms on queries and keys (kept in float)."""

from msgspec.structs import replace

from qarat.model.families import llama

FAMILY = replace(llama.FAMILY, architectures=("Qwen3ForCausalLM",))

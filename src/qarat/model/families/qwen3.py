"""Qwen3: LLaMA's wiring with norms on queries and keys (kept in float)."""

from msgspec.structs import replace

from qarat.model.families import llama
from qarat.model.families.base import Gguf

FAMILY = replace(llama.FAMILY, architectures=("Qwen3ForCausalLM",), gguf=Gguf("qwen3", "qwen3"))

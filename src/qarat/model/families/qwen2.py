"""Qwen2 and Qwen1.5: LLaMA's wiring with biases on q, k and v (kept in float)."""

from msgspec.structs import replace

from qarat.model.families import llama
from qarat.model.families.base import Gguf

FAMILY = replace(llama.FAMILY, architectures=("Qwen2ForCausalLM",), gguf=Gguf("qwen2", "qwen2"))

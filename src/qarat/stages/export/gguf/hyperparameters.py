"""What llama.cpp must know of a model beside its tensors, and what of it llama.cpp could not be told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qarat.ground.errors import UserError
from qarat.model.model import Model

if TYPE_CHECKING:
    from gguf import GGUFWriter


_ROTARY = ("default", "linear", "llama3")
_REMEDY = "convert the model with llama.cpp's convert_hf_to_gguf.py and quantize it there (`format` llama-cpp)"


def check_hyperparameters(model: Model) -> None:
    """Check that GGUF has words for the model.

    Raises:
        UserError: Listing what it has none for.
    """
    config = model.config
    rotary = config.rope_parameters["rope_type"]
    reasons: list[str] = []
    if rotary not in _ROTARY:
        reasons.append(f"rotary embedding of type {rotary} (known: {', '.join(_ROTARY)})")
    elif rotary != "default" and config.model_type not in ("llama", "mistral"):
        reasons.append(f"rotary embedding of type {rotary} in {config.model_type}: its frequencies have no place there")
    if "sliding_attention" in (getattr(config, "layer_types", None) or []) or _slides(model):
        reasons.append("a sliding attention window")
    if config.hidden_act != "silu":
        reasons.append(f"the activation {config.hidden_act}")
    if reasons:
        raise UserError(f"{model.path} has what this GGUF export has no words for: {'; '.join(reasons)}; {_REMEDY}")


def _slides(model: Model) -> bool:
    """Whether a window shorter than what the model takes at once hides tokens."""
    config = model.config
    window = getattr(config, "sliding_window", None)
    used = getattr(config, "use_sliding_window", config.model_type == "mistral")
    return bool(used and window is not None and window < model.length)


def add_hyperparameters(writer: GGUFWriter, model: Model) -> None:
    """Write sizes, heads and rotary embedding.

    Args:
        writer: Not opened yet.
        model: That `check_hyperparameters` has passed.
    """
    config = model.config
    head: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(model.path.stem if model.path.is_file() else model.path.name)
    writer.add_block_count(model.blocks)
    writer.add_context_length(model.length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])

"""What a GGUF file says of a model, as transformers' config says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from qarat.ground.errors import UserError
from qarat.model.families import Family, known_families
from qarat.model.families.base import Gguf
from qarat.model.gguf.file import FLOATS, GgufFile

ROPE = "rope_freqs.weight"
"""Factors of the rotary frequencies; in transformers they follow from the config."""
_FIELDS = {  # of a config to what stands behind the architecture's name
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_SPECIAL = ("bos_token_id", "eos_token_id")
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}  # quantized tensors count as the first
# LLaMA 3.1 to 3.3: of what their converter multiplies into rope_freqs, only the factor differs.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def family_in(file: GgufFile) -> tuple[Family, Gguf]:
    """The family of the model in a file, and how files hold it.

    Raises:
        UserError: An architecture that is not supported, or a mixture of experts.
    """
    architecture = file.values.get("general.architecture")
    readable = [(family, family.gguf) for family in known_families().values() if family.gguf is not None]
    of_file = [(family, gguf) for family, gguf in readable if gguf.architecture == architecture]
    if not of_file:
        known = ", ".join(dict.fromkeys(gguf.architecture for _, gguf in readable))
        raise UserError(f"{file.path}: unsupported architecture: {architecture or 'none given'}; supported: {known}")
    if file.values.get(f"{architecture}.expert_count"):
        raise UserError(f"{file.path}: a mixture of experts is not supported; give a model with one MLP a block")
    name = " ".join(str(file.values.get(f"general.{key}", "")) for key in ("name", "basename")).lower()
    # Those that are known by their names first: what is left is the architecture's own.
    of_file.sort(key=lambda pair: not pair[1].named)
    return next(pair for pair in of_file if pair[1].named in name)


def translate_config(file: GgufFile) -> PreTrainedConfig:
    """The config of the model in a file.

    Raises:
        UserError: As `family_in`; no embedding; numbers that are missing or make no sense; a rotary embedding that is
            not supported.
    """
    family, gguf = family_in(file)
    try:
        config = _translated(file, family, gguf)
        return _with_factors(file, config) if ROPE in file.tensors else config
    except UserError:
        raise
    except Exception as error:  # whatever stumbles first over a number that makes no sense
        raise UserError(f"{file.path} describes no model: {error!r}; fetch it again") from error


def _translated(file: GgufFile, family: Family, gguf: Gguf) -> PreTrainedConfig:
    """The config, but for what the factors of the rotary frequencies say."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise UserError(f"{file.path} holds no token_embd.weight, so it is no language model; give one that is")
    values = _values(file, gguf.architecture)
    fields = _sizes(file, values, _FIELDS | gguf.fields)
    matrices = (tensor.tensor_type.name for tensor in file.tensors.values() if len(tensor.shape) > 1)
    floats = {kind if kind in FLOATS else "BF16" for kind in matrices}
    fields |= {
        "vocab_size": int(embedding.shape[1]),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": next(dtype for kind, dtype in _DTYPES.items() if kind in floats),
        "rope_theta": values.get("rope.freq_base", 10000.0),
        "rope_scaling": _linear_scaling(file, values),
    }
    fields |= gguf.fixed
    if "blk.0.attn_output.bias" in file.tensors:  # where it may be there or not; Qwen 2 has the others always
        fields["attention_bias"] = True
    if gguf.query_width:
        fields["query_pre_attn_scalar"] = gguf.query_width.get(fields["num_hidden_layers"], fields["head_dim"])
    special = ((name, file.values.get(f"tokenizer.ggml.{name}")) for name in _SPECIAL)
    fields |= {name: index for name, index in special if index is not None}
    return AutoConfig.for_model(gguf.model_type, architectures=list(family.architectures[:1]), **fields)


def _values(file: GgufFile, architecture: str) -> dict[str, Any]:
    """What is said of the architecture, by what stands behind its name; floats as short as float32 allows."""
    prefix = f"{architecture}."
    values = {name.removeprefix(prefix): value for name, value in file.values.items() if name.startswith(prefix)}
    return {name: float(str(np.float32(v))) if isinstance(v, float) else v for name, v in values.items()}


def _sizes(file: GgufFile, values: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, Any]:
    """The config's numbers."""
    if missing := [key for key in named.values() if key not in values]:
        raise UserError(f"{file.path} does not say: {', '.join(missing)}; fetch it again")
    fields = {name: values[key] for name, key in named.items()}
    heads = fields["num_attention_heads"]
    fields["num_key_value_heads"] = values.get("attention.head_count_kv", heads)
    fields["head_dim"] = values.get("attention.key_length", fields["hidden_size"] // heads)
    if fields["num_hidden_layers"] > len(file.tensors):  # before so many are built
        raise UserError(
            f"{file.path} describes {fields['num_hidden_layers']} blocks, and there are but {len(file.tensors)} tensors"
        )
    if values.get("rope.dimension_count", fields["head_dim"]) != fields["head_dim"]:
        raise UserError(f"{file.path}: a rotary embedding of a part of every head is not supported")
    return fields


def _linear_scaling(file: GgufFile, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Scaled positions, as configs say it."""
    kind = values.get("rope.scaling.type", "linear")  # llama.cpp's default, and the only one before there was a type
    if kind not in ("none", "linear"):
        raise UserError(f"{file.path}: a rotary embedding of type {kind} is not supported; supported: linear, llama3")
    factor = values.get("rope.scaling.factor", values.get("rope.scale_linear", 1.0))
    return {"rope_type": "linear", "factor": factor} if kind == "linear" and factor not in (0, 1) else None


def _with_factors(file: GgufFile, config: PreTrainedConfig) -> PreTrainedConfig:
    """The config with the rotary embedding that the file's factors are those of.

    Raises:
        UserError: If they are neither all equal, as of scaled positions, nor LLaMA 3's.
    """
    factors = torch.from_numpy(np.array(file.tensors[ROPE].data, np.float32))
    theta = config.rope_parameters["rope_theta"]
    if torch.allclose(factors, factors[:1].expand_as(factors), rtol=1e-6):
        config.rope_parameters = {"rope_type": "linear", "rope_theta": theta, "factor": float(factors[0])}
        return config
    scaled = {"rope_type": "llama3", "rope_theta": theta, "factor": round(float(factors.max()), 3), **_LLAMA3}
    config.rope_parameters = scaled
    if not torch.allclose(rope_factors(config), factors, rtol=1e-3):
        raise UserError(f"{file.path}: the factors in {ROPE} are not those of LLaMA 3, nor all equal: not supported")
    return config


def rope_factors(config: PreTrainedConfig) -> Tensor:
    """By what each rotary frequency is divided, (head / 2,) float32."""
    parameters = config.rope_parameters
    inverse, _ = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"))
    steps = torch.arange(inverse.numel(), dtype=torch.float32) / inverse.numel()
    return parameters["rope_theta"] ** -steps / inverse

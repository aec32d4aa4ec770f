"""Which GGUF type comes nearest to a scheme, and what GGUF calls a tensor.

GGUF's types are its own: blocks of 32 (or superblocks of 256) weights along a row, each with a float16 scale, inputs
rounded by llama.cpp itself at run time. A scheme of ours is therefore *translated to the nearest type*, and the
exporters say so: the narrowest type that has at least as many bits an element. Nothing is ever translated to fewer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from qarat.ground.errors import UserError
from qarat.model.model import Model
from qarat.stages.export.recipes import UnsayableError, by_entry, translate
from qarat.values.engines import FILE_ENGINES
from qarat.values.plans import Assignment, Plan
from qarat.values.schemes import Granularity, LinearScheme, TensorScheme
from qarat.values.sites import short_name

BLOCK, SUPERBLOCK = 32, 256

FLOAT_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""Dtype to GGUF type."""

_ARCHITECTURES = {  # as config.json names them
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_LEAVES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}

_ALTERNATIVES = "GGUF's types are blocks of 32 weights along a row; leave these sites in float, or use another `format`"


def architecture_of(model: Model) -> str:
    """What GGUF calls the model's architecture.

    Raises:
        UserError: If it has no name here.
    """
    names = model.config.architectures or []
    for name in names:
        if name in _ARCHITECTURES:
            return _ARCHITECTURES[name]
    raise UserError(f"no GGUF export for {', '.join(names)}; there is one for {', '.join(_ARCHITECTURES)}")


def float_type(model: Model, name: str = "") -> str:
    """What a matrix left in float is written as: the dtype that the checkpoint keeps it in.

    Args:
        model: The model.
        name: Of the matrix; empty for the model as a whole. The embedding's dtype stands for that, and for a site of
            which there are only codes: the checkpoint's narrowest may be a scale's.
    """
    known = name if name in model.checkpoint else f"{model.family.embedding}.weight"
    return FLOAT_TYPES[model.checkpoint.dtype_of(known)]


def tensor_name(name: str) -> str:
    """GGUF's name of a parameter: ``blk.1.ffn_down.weight`` for ``model.layers.1.mlp.down_proj.weight``.

    Raises:
        KeyError: For a parameter that none of the supported architectures has.
    """
    module, _, kind = name.rpartition(".")
    if module in _OUTSIDE:
        return f"{_OUTSIDE[module]}.{kind}"
    _, _, rest = module.partition("model.layers.")
    index, _, inner = rest.partition(".")
    return f"blk.{index}.{_LEAVES[inner]}.{kind}"


def nearest_type(weight: TensorScheme, cols: int, *, superblocks: bool) -> str:
    """The GGUF type nearest to a weight's scheme: the narrowest with at least its bits an element.

    Args:
        weight: The scheme.
        cols: Input channels.
        superblocks: Whether types of 256 weights (K-quants) can be made: llama.cpp's own quantizer does, the ``gguf``
            package does not.

    Raises:
        UnsayableError: If a row is no whole number of blocks.
    """
    if cols % BLOCK:
        raise UnsayableError(f"rows of {cols} weights are no whole number of blocks of {BLOCK}")
    bits, symmetric = weight.number_format.bits, weight.symmetric
    if weight.format == "e2m1" and weight.scale == "e8m0" and weight.granularity == Granularity(1, BLOCK):
        return "MXFP4"
    if superblocks and cols % SUPERBLOCK == 0:
        by_bits = {2: "Q2_K", 3: "Q3_K", 4: "Q4_0" if symmetric else "Q4_K", 5: "Q5_K", 6: "Q6_K"}
        return by_bits.get(max(bits, 2), "Q8_0")
    if bits <= 4:
        return "Q4_0" if symmetric else "Q4_1"
    if bits == 5:
        return "Q5_0" if symmetric else "Q5_1"
    return "Q8_0"


def type_of_sites(model: Model, plan: Plan, tool: str, *, superblocks: bool) -> dict[str, str]:
    """Full name of every projection to its GGUF type, in model order.

    Args:
        model: Whose plan it is.
        plan: Any.
        tool: For the message.
        superblocks: As in `nearest_type`.

    Raises:
        UserError: An architecture that GGUF export does not know, or listing every site that GGUF cannot hold.
    """
    plain = {s.name: float_type(model, f"{s.name}.weight") for s in plan.sites if s.kind == "projection"}

    def say(a: Assignment, scheme: LinearScheme) -> str:
        if scheme.weight is None:
            return plain[a.site.name]
        return nearest_type(scheme.weight, a.site.shape[1], superblocks=superblocks)

    return plain | translate(plan, tool, say, _ALTERNATIVES)


def describe_types(plan: Plan, types: Mapping[str, str]) -> list[str]:
    """What became of the plan's schemes, a line for each, with the sites of all but the most frequent.

    Args:
        plan: The plan.
        types: From `type_of_sites`.
    """
    schemes = plan.schemes
    groups = by_entry({name: (str(schemes[name]), kind) for name, kind in types.items()})
    most = max(len(names) for _, names in groups)
    lines: list[str] = []
    for (scheme, kind), names in groups:
        sites = f"{len(names)} sites" if len(names) == most else ", ".join(map(short_name, names))
        lines.append(f"{scheme} → {kind}: {sites}")
    return [*lines, "types are the nearest, not the plan's own", *FILE_ENGINES["llama.cpp"].notes]

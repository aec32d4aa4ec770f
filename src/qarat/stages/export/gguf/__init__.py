"""A GGUF file for llama.cpp, with the type nearest to the plan for every projection.

Written with the ``gguf`` package, block by block, so that no more than one block is in memory. Weights are rounded to
GGUF's types from the float checkpoint where that is what was opened: rounding what is rounded already would lose
twice. Rows of q and k are put in the order of llama.cpp's rotary embedding for the LLaMA architecture, as llama.cpp's
own converter does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from qarat.ground.runtime import Progress
from qarat.model.folders import copy_licence
from qarat.model.gguf.config import ROPE, rope_factors
from qarat.model.layers import QuantLinear
from qarat.model.model import Model
from qarat.stages.export.gguf.hyperparameters import add_hyperparameters, check_hyperparameters
from qarat.stages.export.gguf.tokenizer import add_tokenizer, check_tokenizer
from qarat.stages.export.gguf.types import (
    FLOAT_TYPES,
    architecture_of,
    describe_types,
    float_type,
    tensor_name,
    type_of_sites,
)
from qarat.values.plans import Plan

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["EXTRA", "FILE", "NEEDS", "check", "write"]

EXTRA = "gguf"
NEEDS: tuple[str, ...] = ("gguf",)
FILE = "model.gguf"


def check(model: Model, plan: Plan) -> None:
    """Refuse what GGUF cannot hold (protocol `qarat.stages.export.base.Exporter`)."""
    architecture_of(model)
    check_hyperparameters(model)
    check_tokenizer(model)
    type_of_sites(model, plan, "GGUF", superblocks=False)


def write(model: Model, plan: Plan, folder: Path, *, progress: Progress) -> Sequence[str]:
    """Write the file (protocol `qarat.stages.export.base.Exporter`)."""
    from gguf import GGUFWriter

    types = type_of_sites(model, plan, "GGUF", superblocks=False)
    writer = GGUFWriter(folder / FILE, architecture_of(model))
    try:
        add_hyperparameters(writer, model)
        add_tokenizer(writer, model)
        for name, shape in _shapes(model).items():
            _announce(writer, name, shape, _type(model, name, shape, types))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, value in _tensors(model, progress):
            writer.write_tensor_data(_encoded(value, _type(model, name, tuple(value.shape), types)))
    finally:
        writer.close()
    copy_licence(model, folder)
    rounded_twice = [name for name, kind in types.items() if kind not in FLOAT_TYPES.values() and not _has(model, name)]
    notes = [f"{len(rounded_twice)} sites are rounded a second time: only their codes were at hand"]
    return [*describe_types(plan, types), *(notes if rounded_twice else [])]


def _has(model: Model, site: str) -> bool:
    """Whether the checkpoint holds a site's weight in float."""
    return f"{site}.weight" in model.checkpoint


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Name, in the model, of every tensor of the file to its shape, in the order they are written in."""
    shapes = {name: tuple(value.shape) for name, value in _outside(model)}
    for index in range(model.blocks):
        prefix = f"{model.family.blocks}.{index}."
        shapes |= {prefix + name: tuple(value.shape) for name, value in model.empty_block(index).named_parameters()}
    return shapes


def _outside(model: Model) -> Iterator[tuple[str, Tensor]]:
    """The tensors outside the blocks; a tied head is not repeated, which llama.cpp understands."""
    for name, value in model.outside().items():
        if not (model.config.tie_word_embeddings and name == f"{model.family.head}.weight"):
            yield name, value
    if model.config.rope_parameters["rope_type"] != "default":
        yield ROPE, rope_factors(model.config)


def _tensors(model: Model, progress: Progress) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the file, float32, in the order of `_shapes`."""
    for name, value in _outside(model):
        yield name, value.float()
    for index in range(model.blocks):
        prefix = f"{model.family.blocks}.{index}."
        block = _float_block(model, index)
        for name, _ in model.empty_block(index).named_parameters():
            yield prefix + name, _ordered(model, name, block[name].float())
        progress("write", index + 1, model.blocks)


def _float_block(model: Model, index: int) -> dict[str, Tensor]:
    """Name to value of one block's parameters: the float model's, or where it has only codes, what they stand for."""
    prefix = f"{model.family.blocks}.{index}."
    wanted = [name for name, _ in model.empty_block(index).named_parameters()]
    if all(prefix + name in model.checkpoint for name in wanted):
        return dict(model.load_float_block(index).named_parameters())
    block = model.block(index)
    values: dict[str, Tensor] = {}
    for name in wanted:
        home, _, leaf = name.rpartition(".")
        module = block.get_submodule(home)
        if isinstance(module, QuantLinear):
            values[name] = module.value if leaf == "weight" else cast(Tensor, module.bias)
        else:
            values[name] = cast(nn.Parameter, getattr(module, leaf))
    return values


def _ordered(model: Model, name: str, value: Tensor) -> Tensor:
    """Rows of q and k from halves (transformers) to pairs (GGUF's llama), so that rotary embedding means the same."""
    if architecture_of(model) != "llama":
        return value  # the other architectures are read with halves
    heads = {
        "self_attn.q_proj": model.config.num_attention_heads,
        "self_attn.k_proj": model.config.num_key_value_heads,
    }.get(name.rpartition(".")[0])
    if heads is None:
        return value
    return value.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(value.shape)


def _type(model: Model, name: str, shape: tuple[int, ...], types: dict[str, str]) -> str:
    """GGUF type of a tensor: vectors are float32, as llama.cpp asks; matrices outside the sites keep their dtype."""
    if len(shape) == 1:
        return "F32"
    return types.get(name.removesuffix(".weight"), float_type(model, name))


def _announce(writer: GGUFWriter, name: str, shape: tuple[int, ...], kind: str) -> None:
    """Say in the file's head what will follow."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    qtype = GGMLQuantizationType[kind]
    block, size = GGML_QUANT_SIZES[qtype]
    count = torch.Size(shape).numel() // block * size
    # float32 stands for "the shape is that of elements"; what is stored is told by raw_dtype.
    writer.add_tensor_info(_name(name), shape, np.dtype(np.float32), count, raw_dtype=qtype)


def _encoded(value: Tensor, kind: str):
    """The array that is written of a tensor, as the gguf package rounds it."""
    from gguf import GGMLQuantizationType, quants

    return quants.quantize(value.contiguous().cpu().numpy(), GGMLQuantizationType[kind])


def _name(name: str) -> str:
    return name if name == ROPE else tensor_name(name)

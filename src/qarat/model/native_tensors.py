"""What lies in a native folder (`qarat.model.native`) of a block: its layers as tensors, written, described and read.

A folder is checked against its plan from headers alone. What it should hold is not described a second time: the layers
of the plan are made without numbers, on the meta device, and asked for the tensors that would be written of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.maths.packing import pack, unpack
from qarat.maths.scales import SCALE_DTYPES
from qarat.maths.sparse import Sparse
from qarat.maths.static_scales import static_operands
from qarat.maths.tensors import QuantizedTensor
from qarat.maths.tiles import Scales
from qarat.model.attention import CACHE, PRODUCTS
from qarat.model.checkpoints import Checkpoint
from qarat.model.families import family_of
from qarat.model.layers import QuantCache, QuantLinear, QuantProducts, attention_layers, fill_block
from qarat.model.model import Model
from qarat.model.prefixes import BlockPrefix, PrefixedBlock
from qarat.values.plans import Plan
from qarat.values.roles import CACHES, OPERANDS
from qarat.values.schemes import LinearScheme, TensorScheme
from qarat.values.sites import Site


def site_bytes(scheme: TensorScheme, rows: int, cols: int) -> int:
    """Bytes of one weight's tensors in this layout: packed rows of whole bytes, scales, zero points of a byte.

    Args:
        scheme: Of the weight.
        rows: Output channels.
        cols: Input channels.
    """
    return sum(tensor.nbytes for tensor in _pack_weight("", QuantizedTensor.empty(scheme, rows, cols)).values())


def expected_tensors(plan: Plan, wanted: Mapping[str, Tensor], config: PreTrainedConfig) -> dict[str, Tensor]:
    """Every tensor of a folder, on the meta device; the dtype of a float one may be another float's.

    Args:
        plan: That the folder was written under.
        wanted: Name to a tensor of every tensor of the float model.
        config: Of the model.
    """
    expected = dict(wanted)
    head: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for a in plan.assignments:
        name, scheme = a.site.name, a.scheme
        if scheme.weight is not None:
            expected.pop(f"{name}.weight", None)
            expected |= _pack_weight(f"{name}.", QuantizedTensor.empty(scheme.weight, *a.site.shape))
        for stream, static in static_operands(a.site.streams, scheme):
            place, cols = _scales_place(a.site, stream.rpartition(".")[2], head)
            expected |= _pack_scales(place, Scales.empty(static, 1, cols), static)
    if plan.prefix:
        count, blocks = len(plan.prefix), family_of(list(config.architectures or [])).blocks
        keys = torch.empty(1, config.num_key_value_heads, count, head, device="meta")
        prefix = BlockPrefix(keys, keys, torch.empty(1, count, config.hidden_size, device="meta"), None)
        for index in range(config.num_hidden_layers):
            expected |= prefix_tensors(prefix, f"{blocks}.{index}.")
    return expected


def _scales_place(site: Site, operand: str, head: int) -> tuple[str, int]:
    """How names of a static operand's scales begin, and how many columns they are for; ``head``: a head's channels."""
    home = site.name.rpartition(".")[0]
    if site.kind == "projection":
        return f"{site.name}.input_", site.shape[1]
    child, cols = (PRODUCTS, head) if site.kind == "product" else (CACHE, site.width)
    return f"{home}.{child}.{operand}_", cols


def block_tensors(block: nn.Module, prefix: str, source: Checkpoint) -> dict[str, Tensor]:
    """Name to tensor of everything that is written of a block."""
    tensors: dict[str, Tensor] = {}
    floats: dict[str, Tensor] = {}
    for inner, module in block.named_modules(prefix=prefix.removesuffix(".")):
        if isinstance(module, QuantLinear):
            if module.quantized is None:
                floats[f"{inner}.weight"] = module.value
            else:
                tensors |= _pack_weight(f"{inner}.", module.quantized)
            if module.bias is not None:
                floats[f"{inner}.bias"] = module.bias
            if module.input_scales is not None and module.scheme.input is not None:
                tensors |= _pack_scales(f"{inner}.input_", module.input_scales, module.scheme.input)
        elif isinstance(module, QuantProducts):
            schemes = (module.qk.left, module.qk.right, module.av.left, module.av.right)
            for operand, scheme in zip(OPERANDS, schemes, strict=True):
                scales = module.scales.get(operand)
                if scales is not None and scheme is not None:
                    tensors |= _pack_scales(f"{inner}.{operand}_", scales, scheme)
        elif isinstance(module, QuantCache):
            for name, scales in module.scales.items():
                scheme = module.schemes[name].kept
                assert scheme is not None  # what has scales is quantized
                tensors |= _pack_scales(f"{inner}.{name}_", scales, scheme)
        else:
            floats |= {f"{inner}.{leaf}": value for leaf, value in module.named_parameters(recurse=False)}
    return tensors | {name: value.to(source.dtype_of(name)) for name, value in floats.items()}


def prefix_tensors(prefix: BlockPrefix, home: str) -> dict[str, Tensor]:
    """Without the axis of windows."""
    kept = {"keys": prefix.keys, "values": prefix.values, "states": prefix.states}
    return {f"{home}prefix_{name}": value[0].float() for name, value in kept.items()}


def _take_prefix(tensors: dict[str, Tensor], model: Model, plan: Plan, index: int) -> BlockPrefix:
    """What the prefix leaves in a block, taken out of the block's tensors."""
    names = ("prefix_keys", "prefix_values", "prefix_states")
    keys, values, states = (tensors.pop(name).to(model.runtime.torch_dtype).unsqueeze(0) for name in names)
    return BlockPrefix(keys, values, states, None if index else model.embed(torch.tensor([plan.prefix])))


def _pack_weight(prefix: str, weight: QuantizedTensor) -> dict[str, Tensor]:
    codes = pack(weight.codes, weight.scheme.number_format)
    tensors = {f"{prefix}codes": codes, **_pack_scales(prefix, weight.scales, weight.scheme)}
    if weight.sparse is not None:
        tensors |= {f"{prefix}sparse_{name}": part for name, part in weight.sparse._asdict().items()}
    return tensors


def _pack_scales(prefix: str, scales: Scales, scheme: TensorScheme) -> dict[str, Tensor]:
    if scales.table is not None:
        return {f"{prefix}table": scales.table}
    if scales.shift is not None:
        return {f"{prefix}scale": scales.scale, f"{prefix}shift": scales.shift}
    tensors = {f"{prefix}scale": scales.scale.to(SCALE_DTYPES[scheme.scale])}
    if scales.zero_point is not None:
        tensors[f"{prefix}zero_point"] = scales.zero_point.to(torch.int8)
    if scales.tensor_scale is not None:
        tensors[f"{prefix}tensor_scale"] = scales.tensor_scale
    return tensors


def _unpack_scales(tensors: dict[str, Tensor], prefix: str) -> Scales | None:
    table = tensors.pop(f"{prefix}table", None)
    if table is not None:
        return Scales.of_tables(table)
    scale = tensors.pop(f"{prefix}scale", None)
    if scale is None:
        return None
    zero_point = tensors.pop(f"{prefix}zero_point", None)
    tensor_scale, shift = tensors.pop(f"{prefix}tensor_scale", None), tensors.pop(f"{prefix}shift", None)
    return Scales(scale.float(), None if zero_point is None else zero_point.float(), tensor_scale, shift=shift)


def _unpack_sparse(tensors: dict[str, Tensor], prefix: str, cols: int) -> Sparse | None:
    if f"{prefix}sparse_values" not in tensors:
        return None
    sparse = Sparse(*(tensors.pop(f"{prefix}sparse_{name}") for name in Sparse._fields))
    sparse.check(cols)
    return sparse


def read_block(model: Model, plan: Plan, index: int) -> nn.Module:
    """One block; that every tensor is there and of its shape was checked when the folder was opened."""
    prefix = f"{model.family.blocks}.{index}."
    tensors = model.checkpoint.read_raw(prefix, model.runtime.device)
    block = model.empty_block(index)
    kept = _take_prefix(tensors, model, plan, index) if plan.prefix else None
    layers: dict[str, nn.Module] = {}
    for name, scheme in plan.block(index).items():
        inner = name.removeprefix(prefix)
        if isinstance(scheme, LinearScheme) and not scheme.is_float:
            cols = cast(nn.Linear, block.get_submodule(inner)).in_features
            try:
                layers[inner] = _read_linear(tensors, f"{inner}.", scheme, cols, model.runtime)
            except ValueError as error:
                raise UserError(f"{model.folder}: {name} is damaged: {error}; quantize again") from error
    home = model.family.attention
    places = {operand: f"{home}.{PRODUCTS}.{operand}_" for operand in OPERANDS}
    places |= {name: f"{home}.{CACHE}.{name}_" for name in CACHES}
    scales = {name: scale for name, place in places.items() if (scale := _unpack_scales(tensors, place)) is not None}
    leaves = {name.rpartition(".")[2]: scheme for name, scheme in plan.block(index).items()}
    layers |= attention_layers(home, leaves, scales, len(plan.prefix))
    floats = {name: value.to(model.runtime.torch_dtype) for name, value in tensors.items()}
    block = fill_block(block, layers, floats)
    return block if kept is None else PrefixedBlock(block, index, kept)


def _read_linear(
    tensors: dict[str, Tensor], prefix: str, scheme: LinearScheme, cols: int, runtime: Runtime
) -> QuantLinear:
    weight: QuantizedTensor | Tensor
    if scheme.weight is None:
        weight = tensors.pop(f"{prefix}weight").to(runtime.torch_dtype)
    else:
        codes = unpack(tensors.pop(f"{prefix}codes"), scheme.weight.number_format, cols)
        scales = _unpack_scales(tensors, prefix)
        assert scales is not None  # the layout says so
        weight = QuantizedTensor(codes, scales, scheme.weight, _unpack_sparse(tensors, prefix, cols))
    bias = tensors.pop(f"{prefix}bias", None)
    input_scales = _unpack_scales(tensors, f"{prefix}input_")
    bias = None if bias is None else bias.to(runtime.torch_dtype)
    return QuantLinear(weight, bias, scheme, input_scales, runtime.kernels)

"""A quantized folder as a model that can be walked, so that it is measured like any other.

Codes are unpacked by the compressed-tensors library's own compressors, asked with every scale set to one; scales come
straight from the file. So a weight is code × scale in float32, as kernels compute it. The library's own product is
rounded to the dtype the scale is stored in, which is what transformers runs; the two are compared on logits instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import cast

import msgspec
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationScheme
from torch import Tensor, nn

from qarat.ground.errors import NotJudgedError
from qarat.ground.runtime import Runtime
from qarat.maths.kernels import reference
from qarat.maths.rounding import encode, round_to_format
from qarat.maths.scales import E4M3_SMALLEST
from qarat.maths.tensors import QuantizedTensor
from qarat.maths.tiles import Scales, as_matrices, to_tiles
from qarat.model.attention import CACHE
from qarat.model.layers import QuantCache, QuantLinear, fill_block
from qarat.model.model import Model
from qarat.stages.read_back.folders import StoredFolder
from qarat.stages.read_back.matching import Match
from qarat.stages.read_back.stored import ConfigGroup
from qarat.values.formats import FORMATS
from qarat.values.roles import CACHES
from qarat.values.schemes import CacheScheme, Granularity, LinearScheme, TensorScheme

CACHE_SCALES = ("k_scale", "v_scale")
"""Of keys and values, in the attention module."""


class _LocalLinear(QuantLinear):
    """A projection whose input has dynamic scales in groups under one static scale, as NVFP4 engines compute it.

    Attributes:
        above: The static scale, (1, 1, 1) float32; the file keeps its reciprocal.
    """

    above: Tensor

    def __init__(self, weight: QuantizedTensor | Tensor, bias: Tensor | None, scheme: LinearScheme, stored: Tensor):
        super().__init__(weight, bias, scheme, None)
        self.register_buffer("above", 1 / stored.float().reshape(1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out), dtype of ``x``."""
        scheme = self.scheme.input
        assert scheme is not None
        tiles = to_tiles(as_matrices(x), scheme.granularity)
        ideal = tiles.abs().amax(dim=(2, 4)) / scheme.number_format.largest / self.above
        scale = round_to_format(ideal, FORMATS["e4m3"]).clamp_(min=E4M3_SMALLEST)
        scales = Scales(scale, None, self.above.expand(len(scale), 1, 1))
        return reference.linear(x, self.value, self.bias, scheme, scales).to(x.dtype)


def open_stored(folder: StoredFolder, matches: Mapping[str, Match], runtime: Runtime) -> Model:
    """A folder's model under the groups that an engine gives its modules.

    Args:
        folder: Opened, and without errors.
        matches: Module's name to what the engine makes of it.
        runtime: Device, dtype and limits.

    Raises:
        NotJudgedError: A group quantizes outputs, or the input of the head; weights are transformed or sparse.
        UserError: Something outside the blocks is missing or damaged.
    """
    groups = {name: match.group for name, match in matches.items() if match.group is not None}
    outside = {name: groups[name] for name in (folder.family.embedding, folder.family.head) if name in groups}
    reasons = [f"{name} quantizes outputs" for name in sorted({g.name for g in groups.values() if g.outputs})]
    reasons += [f"the input of {name} is quantized" for name, group in outside.items() if group.inputs is not None]
    reasons += ["transform_config changes what weights stand for"] if folder.config.transforms else []
    reasons += [f"weights are sparse ({folder.config.sparse})"] if folder.config.sparse else []
    if reasons:
        raise NotJudgedError(f"{folder.path}: not computed: {'; '.join(reasons)}")
    for name, group in outside.items():
        if folder.modules[name].is_quantized:
            folder.checkpoint.unpacked[f"{name}.weight"] = partial(_unpacked, folder, name, group)
    model = Model(folder.checkpoint, runtime)
    return model.with_blocks(lambda index: _read_block(model, folder, matches, index))


def _unpacked(folder: StoredFolder, name: str, group: ConfigGroup) -> Tensor:
    """A quantized weight outside the blocks as numbers, (out, in) float32."""
    weight = weight_of(folder.checkpoint.read_raw(f"{name}.", "cpu"), group, folder.config.format_of(group))
    return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight


def group_order(tensors: Mapping[str, Tensor], cols: int, group: ConfigGroup) -> Tensor | None:
    """The group of every column where a file says so, (cols,) int64; None where groups lie side by side.

    Args:
        tensors: What lies under a module's name, by the rest of it.
        cols: Input channels.
        group: Of the module, with weights.
    """
    assert group.weights is not None
    stored = tensors.get("weight_g_idx")
    if stored is None or bool((stored == -1).all()):
        return None
    plain = torch.arange(cols) // (group.weights.group_size or cols)
    return None if stored.long().cpu().equal(plain) else stored.long()


def weight_of(tensors: Mapping[str, Tensor], group: ConfigGroup, format: str) -> QuantizedTensor | Tensor:
    """A stored weight as codes and scales; as numbers, (out, in) float32, where its groups do not lie side by side.

    Args:
        tensors: What lies under the module's name, by the rest of it.
        group: With weights.
        format: Of the group's tensors.
    """
    assert group.weights is not None
    scheme = group.weights.scheme("weights")
    codes = raw_codes(tensors, group, format)
    scales = _weight_scales(tensors, codes, scheme, format)
    if (order := group_order(tensors, codes.shape[1], group)) is not None:
        zeros = 0.0 if scales.zero_point is None else scales.zero_point[:, order]
        return (codes - zeros) * scales.scale[:, order]
    return QuantizedTensor(encode(codes, scheme.number_format), scales, scheme)


def raw_codes(tensors: Mapping[str, Tensor], group: ConfigGroup, format: str) -> Tensor:
    """The stored codes as numbers of the format, (out, in) float32; zero points are not subtracted.

    Args:
        tensors: What lies under the module's name, by the rest of it.
        group: With weights.
        format: Of the group's tensors.
    """
    state: dict[str, Tensor | None] = {
        leaf: t for leaf, t in tensors.items() if leaf.startswith("weight") and leaf != "weight_zero_point"
    }
    for leaf in ("weight_scale", "weight_global_scale"):
        if leaf in state:
            state[leaf] = _ones(tensors[leaf])
    assert group.weights is not None
    fields = {**msgspec.structs.asdict(group.weights), "symmetric": True, "actorder": None}
    scheme = QuantizationScheme.model_validate({"targets": [], "format": format, "weights": fields})
    decompressed = BaseCompressor.get_value_from_registry(format).decompress(state, scheme)
    return cast(Tensor, decompressed["weight"]).float()


def input_scales(tensors: Mapping[str, Tensor], scheme: TensorScheme | None) -> Scales | None:
    """The static scales of a stored input; None if it is dynamic or in float."""
    if scheme is None or not scheme.static:
        return None
    scale = tensors["input_scale"].float().reshape(1, -1)
    zero_point = tensors.get("input_zero_point")
    return Scales(scale, None if scheme.symmetric or zero_point is None else zero_point.float().reshape(1, -1))


def _ones(scale: Tensor) -> Tensor:
    """Scales of one in the kind that they are stored in; an e8m0 byte of 127 is 2⁰."""
    if scale.dtype == torch.uint8:
        return torch.full_like(scale, 127)
    return torch.ones_like(scale, dtype=torch.float32 if scale.dtype == torch.float64 else scale.dtype)


def _weight_scales(tensors: Mapping[str, Tensor], codes: Tensor, scheme: TensorScheme, format: str) -> Scales:
    rows, cols = codes.shape
    shape = scheme.granularity.scale_shape(rows, cols)
    stored = tensors["weight_scale"]
    if stored.dtype == torch.uint8:
        scale = torch.ldexp(torch.ones_like(stored, dtype=torch.float32), stored.int() - 127)
    else:
        scale = stored.float()
    zero_point = None
    if not scheme.symmetric:
        zeros = tensors["weight_zero_point"]
        if format == "pack-quantized" and zeros.dtype == torch.int32:
            zeros = unpack_from_int32(zeros, scheme.number_format.bits, torch.Size(shape), packed_dim=0)
        zero_point = zeros.float().reshape(shape)
    # The library divides by the global scale, qarat multiplies by it.
    above = 1 / tensors["weight_global_scale"].float().reshape(1, 1) if "weight_global_scale" in tensors else None
    return Scales(scale.reshape(shape), zero_point, above)


def cache_of(folder: StoredFolder) -> CacheScheme | None:
    """How a folder keeps keys and values; None where it does not say so, or in words that have no scheme here.

    Read are a static, symmetric ``kv_cache_scheme`` per tensor or head, and its ``k_scale`` and ``v_scale`` in every
    block.
    """
    args = folder.config.kv_cache
    if args is None or args.dynamic or not args.symmetric or args.num_bits != 8:
        return None
    config = folder.checkpoint.config
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    grain = {"tensor": Granularity(), "attn_head": Granularity(None, width)}.get(args.kind)
    places = (f"{folder.family.blocks}.{i}.{folder.family.attention}." for i in range(config.num_hidden_layers))
    if grain is None or any(place + leaf not in folder.cache_scales for place in places for leaf in CACHE_SCALES):
        return None
    return CacheScheme(TensorScheme("int8" if args.type == "int" else "e4m3", grain, static=True))


def _read_cache(scheme: CacheScheme, tensors: dict[str, Tensor], home: str, width: int) -> QuantCache:
    """A block's cache, its scales taken out of the block's tensors; ``width`` is that of all key heads together."""
    assert scheme.kept is not None
    _, wide = scheme.kept.granularity.scale_shape(1, width)
    stored = (tensors.pop(f"{home}.{leaf}").float().reshape(1, -1).expand(1, wide) for leaf in CACHE_SCALES)
    scales = {name: Scales(scale) for name, scale in zip(CACHES, stored, strict=True)}
    return QuantCache(dict.fromkeys(CACHES, scheme), scales)


def _read_block(model: Model, folder: StoredFolder, matches: Mapping[str, Match], index: int) -> nn.Module:
    prefix = f"{model.family.blocks}.{index}."
    tensors = model.checkpoint.read_raw(prefix, model.runtime.device)
    layers: dict[str, nn.Module] = {}
    for inner in model.family.projections:
        match = matches[prefix + inner]
        own = {leaf: tensors.pop(f"{inner}.{leaf}") for leaf in folder.modules[prefix + inner].tensors}
        if match.group is None:
            tensors |= {f"{inner}.{leaf}": tensor for leaf, tensor in own.items()}
            continue
        layers[inner] = _read_linear(own, match.group, folder.config.format_of(match.group), model.runtime)
    if (cache := cache_of(folder)) is not None:
        home, width = model.family.attention, model.config.num_key_value_heads * model.head_width
        layers[f"{home}.{CACHE}"] = _read_cache(cache, tensors, home, width)
    floats = {name: value.to(model.runtime.torch_dtype) for name, value in tensors.items()}
    return fill_block(model.empty_block(index), layers, floats)


def _read_linear(tensors: Mapping[str, Tensor], group: ConfigGroup, format: str, runtime: Runtime) -> QuantLinear:
    scheme: LinearScheme = group.scheme
    weight: QuantizedTensor | Tensor
    if group.weights is None:
        weight = tensors["weight"].to(runtime.torch_dtype)
    else:
        weight = weight_of(tensors, group, format)
    bias = tensors["bias"].to(runtime.torch_dtype) if "bias" in tensors else None
    if group.inputs is not None and group.inputs.dynamic == "local":
        return _LocalLinear(weight, bias, scheme, tensors["input_global_scale"])
    return QuantLinear(weight, bias, scheme, input_scales(tensors, scheme.input), runtime.kernels)

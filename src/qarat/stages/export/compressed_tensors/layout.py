"""Which tensors of which dtype and shape a plan comes to, from shapes alone.

The files' headers are written before the tensors, and so need to know them; and what a checkpoint will weigh can be
said before it is made. The writer holds the library's compressors to it.
"""

from __future__ import annotations

import math

import torch
from compressed_tensors.quantization import QuantizationScheme

from qarat.model.model import Model
from qarat.values.plans import Plan
from qarat.values.schemes import LinearScheme, ScaleKind, TensorScheme

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Name of a tensor to its dtype and shape, in the model's order."""

SCALES: dict[ScaleKind, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "e8m0": torch.bfloat16,  # holds every power of two that e8m0 does; only the MX formats themselves store exponents
    "e4m3": torch.float8_e4m3fn,
}
"""What a weight's scale is stored as, save in the MX formats: there as the exponent, uint8."""

_MX = ("mxfp4-pack-quantized", "mxfp6-pack-quantized", "mxfp8-quantized")


def layout_of(model: Model, plan: Plan, groups: dict[str, QuantizationScheme]) -> Layout:
    """Every tensor of the export.

    Args:
        model: Whose plan it is.
        plan: For every site.
        groups: Name of every quantized projection to its config group.
    """
    schemes, shapes = plan.schemes, {site.name: site.shape for site in plan.sites}
    layout: Layout = {}
    for name, shape in model.tensor_shapes().items():
        module, _, leaf = name.rpartition(".")
        scheme = schemes.get(module)
        if leaf == "weight" and module in groups and isinstance(scheme, LinearScheme) and scheme.weight is not None:
            layout |= _projection(f"{module}.", scheme, scheme.weight, str(groups[module].format), *shapes[module])
        else:
            layout[name] = model.checkpoint.dtype_of(name), shape
    return layout


def layout_bytes(layout: Layout) -> int:
    """Bytes of all the tensors, file headers aside."""
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in layout.values())


def _projection(prefix: str, scheme: LinearScheme, weight: TensorScheme, kind: str, rows: int, cols: int) -> Layout:
    bits, scale_shape = weight.number_format.bits, scale_shape_of(weight, rows, cols)
    scale_dtype = torch.uint8 if kind in _MX else SCALES[weight.scale]
    layout: Layout = {}
    if kind == "pack-quantized":
        layout[f"{prefix}weight_packed"] = torch.int32, (rows, -(-cols * bits // 32))
        layout[f"{prefix}weight_shape"] = torch.int64, (2,)
    elif kind in ("mxfp4-pack-quantized", "mxfp6-pack-quantized", "nvfp4-pack-quantized"):
        layout[f"{prefix}weight_packed"] = torch.uint8, (rows, cols * bits // 8)
    else:
        dtype = torch.int8 if weight.number_format.is_integer else torch.float8_e4m3fn
        layout[f"{prefix}weight"] = dtype, (rows, cols)
    layout[f"{prefix}weight_scale"] = scale_dtype, scale_shape
    if weight.scale == "e4m3":
        layout[f"{prefix}weight_global_scale"] = torch.float32, (1,)
    if not weight.symmetric:
        packs = kind == "pack-quantized" and len(scale_shape) == 2
        packed = (-(-rows * bits // 32), scale_shape[-1])
        layout[f"{prefix}weight_zero_point"] = (torch.int32, packed) if packs else (torch.int8, scale_shape)
    if scheme.input is not None and scheme.input.static:
        layout[f"{prefix}input_scale"] = torch.float32, (1,)
        if not scheme.input.symmetric:
            layout[f"{prefix}input_zero_point"] = torch.int8, (1,)
    return layout


def scale_shape_of(scheme: TensorScheme, rows: int, cols: int) -> tuple[int, ...]:
    """Shape of the scales of a (rows, cols) weight: (1,) per tensor, (rows, 1) per channel, else the grid of tiles."""
    grain = scheme.granularity
    return (1,) if (grain.rows, grain.cols) == (None, None) else grain.scale_shape(rows, cols)

"""The tensors of a projection as the compressed-tensors library makes them, and what they will be before they are made.

The files' headers are written before the tensors, and so need to know dtypes and shapes; and what a checkpoint will
weigh can be said before it is made. Both are asked of the library's own compressors, given layers without numbers (on
the meta device), so that nothing here knows the formats a second time; the writer holds the real tensors to it.
"""

from __future__ import annotations

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from torch import Tensor

from qarat.maths.packing import to_wire
from qarat.maths.tensors import QuantizedTensor
from qarat.maths.tiles import Scales
from qarat.model.layers import QuantLinear
from qarat.model.model import Model
from qarat.stages.export.compressed_tensors.shards import Layout
from qarat.values.plans import Plan
from qarat.values.schemes import LinearScheme, ScaleKind

SCALES: dict[ScaleKind, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "e8m0": torch.bfloat16,  # holds every power of two that e8m0 does; only the MX formats themselves store exponents
    "e4m3": torch.float8_e4m3fn,
}
"""What a weight's scale is stored as, save in the MX formats: there as the exponent, uint8."""

WHOLE_BYTES = ("int-quantized", "float-quantized", "naive-quantized")
"""Formats in which a code has a byte of its own, which is written as it is."""


def layout_of(model: Model, plan: Plan, groups: dict[str, QuantizationScheme]) -> Layout:
    """Every tensor of the export.

    Args:
        model: Whose plan it is.
        plan: For every site.
        groups: Name of every quantized projection to its config group.
    """
    schemes = plan.projections
    layout: Layout = {}
    for name, shape in model.tensor_shapes().items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and module in groups:
            linear = _empty_linear(schemes[module], *shape)
            tensors = tensors_of(linear, groups[module])
            layout |= {f"{module}.{leaf}": (tensor.dtype, tuple(tensor.shape)) for leaf, tensor in tensors.items()}
        else:
            layout[name] = model.checkpoint.dtype_of(name), shape
    return layout


def tensors_of(linear: QuantLinear, group: QuantizationScheme) -> dict[str, Tensor]:
    """The tensors of a projection but its bias, by the last part of their names, as the library compresses them."""
    quantized = linear.quantized
    assert quantized is not None  # a scheme that quantizes the input only is refused
    scales, scheme = quantized.scales, quantized.scheme
    rows, cols = quantized.codes.shape
    grain, format = scheme.granularity, str(group.format)
    shape = (1,) if grain.rows is grain.cols is None else grain.scale_shape(rows, cols)
    exponents = group.weights is not None and group.weights.scale_dtype is not None  # the compressor stores them itself
    scale = scales.scale if exponents else scales.scale.to(SCALES[scheme.scale])
    state: dict[str, Tensor | None] = {"weight_scale": scale.reshape(shape)}
    if scales.tensor_scale is not None:
        state["weight_global_scale"] = scales.tensor_scale.reshape(1).reciprocal()  # it divides there
    if scales.zero_point is not None:
        state["weight_zero_point"] = scales.zero_point.reshape(shape).to(torch.int8)
    if linear.input_scales is not None:
        state["input_scale"] = linear.input_scales.scale.reshape(1)
        if linear.input_scales.zero_point is not None:
            state["input_zero_point"] = linear.input_scales.zero_point.reshape(1).to(torch.int8)
    if format in WHOLE_BYTES:
        state["weight"] = _bytes(quantized)
    else:
        state["weight"] = linear.value
        state = BaseCompressor.get_value_from_registry(format).compress(state, group)
        if scales.zero_point is not None and scale.is_meta and len(shape) == 2:
            # Packed along the rows; of tensors without numbers the library (0.20) leaves that out.
            words = -(-rows * scheme.number_format.bits // 32)
            state["weight_zero_point"] = torch.empty(words, shape[1], dtype=torch.int32, device="meta")
    return {leaf: value for leaf, value in state.items() if value is not None}


def _empty_linear(scheme: LinearScheme, rows: int, cols: int) -> QuantLinear:
    """A projection that holds no numbers."""
    assert scheme.weight is not None
    given = Scales.empty(scheme.input, 1, cols) if scheme.input is not None and scheme.input.static else None
    return QuantLinear(QuantizedTensor.empty(scheme.weight, rows, cols), None, scheme, given)


def _bytes(quantized: QuantizedTensor) -> Tensor:
    """Codes as int8 or float8, shape of the weight."""
    fmt = quantized.scheme.number_format
    if not fmt.is_integer:
        return to_wire(quantized.codes, fmt).view(torch.float8_e4m3fn)
    # An integer is its index above the lowest; adding that in bytes wraps round to its two's complement.
    return quantized.codes.add(int(fmt.values[0]) & 0xFF).view(torch.int8)

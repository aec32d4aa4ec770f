"""An ONNX prefill graph with static INT8 matrix products, for ONNX Runtime and accelerators that take QDQ models.

Token ids in, logits out; batch and length are free. transformers' own forward is traced by `torch.onnx`; every
quantized projection becomes QuantizeLinear and DequantizeLinear with our static scale around a MatMul whose weight is
our codes behind a DequantizeLinear: the form that runtimes fuse into an INT8 product. Sites left in float stay
float32.

Inputs are written as uint8 with 128 added to code and zero point: the same numbers. ONNX Runtime (1.31, x86) turns
int8 inputs into these by itself, but not where several projections read one quantized stream, and q, k, v would run
in float.

Every matrix product of a projection is a node that has the projection's name, which is how engines report it.

What is given up: tracing holds the whole model in memory, unlike the other exporters; without a KV cache
(`qarat.stages.export.onnx_with_cache`) a token more is all of them once more.
"""

from __future__ import annotations

import ast
import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qarat.ground.runtime import Progress
from qarat.maths.rounding import decode
from qarat.maths.tensors import QuantizedTensor
from qarat.maths.tiles import Scales
from qarat.model.folders import copy_beside
from qarat.model.layers import QuantLinear
from qarat.model.model import Model
from qarat.stages.export.recipes import UnsayableError, translate
from qarat.values.engines import FILE_ENGINES
from qarat.values.plans import Assignment, Plan
from qarat.values.schemes import Granularity, LinearScheme

EXTRA = "onnx"
NEEDS: tuple[str, ...] = ("onnx", "onnxscript")
FILE = "model.onnx"
OPSET = 18  # what torch's exporter writes of itself; a later one only converts it
_ENGINES = [engine for engine in FILE_ENGINES.values() if engine.format == "onnx"]
NOTES = tuple(note for engine in _ENGINES for note in (engine.on_cpu, *engine.notes))
_SCOPES = "pkg.torch.onnx.name_scopes"  # modules around a node, from the outside in, and the function
_WEIGHTS = ("int7", "int8")  # both stored as int8; sums of products with int7 fit where those with int8 saturate
_ALTERNATIVES = (
    "the graph holds w=(int8|int7)/(tensor|channel) with a=int8/tensor/static, or alone; change these sites in the "
    "plan (`rules`), leave them in float, or use another `format`"
)


def check(model: Model, plan: Plan) -> None:
    """Refuse what the graph cannot hold (protocol `qarat.stages.export.base.Exporter`)."""
    translate(plan, "ONNX", _check_site, _ALTERNATIVES)


def write(model: Model, plan: Plan, folder: Path, *, progress: Progress) -> Sequence[str]:
    """Write graph and tokenizer (protocol `qarat.stages.export.base.Exporter`)."""
    example = {"input_ids": torch.zeros(2, min(8, model.length), dtype=torch.long)}
    sizes = {"input_ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=model.length)}}
    write_graph(model, _Prefill, example, sizes, (["input_ids"], ["logits"]), folder, progress)
    return (
        f"{FILE}: input_ids (batch, length) to logits; int8 inputs are written as uint8 with zero point 128",
        *NOTES,
    )


def write_graph(
    model: Model,
    graph: Callable[[nn.Module], nn.Module],
    example: dict[str, Any],
    sizes: dict[str, Any],
    names: tuple[list[str], list[str]],
    folder: Path,
    progress: Progress,
) -> None:
    """Trace a quantized model, and write what comes of it, with config and tokenizer.

    Args:
        model: Its plan checked.
        graph: Makes of the transformers module, projections replaced, the module that is traced.
        example: What it is called with, by name.
        sizes: Which sizes of that are free, as `torch.export` takes them.
        names: Of the graph's inputs, and of its outputs.
        folder: Where to.
        progress: Called before and behind it.
    """
    progress("trace", 0, 1)
    whole = model.with_blocks(lambda index: _with_nodes(model.block(index))).module()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about transformers' code
        program = torch.onnx.export(
            graph(whole).eval(),
            kwargs=example,
            dynamo=True,
            dynamic_shapes=sizes,
            input_names=names[0],
            output_names=names[1],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # as always with dynamo=True
    _name_products(program.model.graph, {*(site.name for site in model.sites()), model.family.head})
    program.save(folder / FILE, external_data=True)
    copy_beside(model, folder)
    progress("trace", 1, 1)


def _name_products(graph: Any, names: set[str]) -> None:
    """Give each projection's product its name, and drop what the tracer noted of every node: paths of this machine."""
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        module = scopes[-2].partition(".")[2] if len(scopes) > 1 else ""
        if node.op_type in ("MatMul", "Gemm") and module in names:
            node.name = module
        node.metadata_props.clear()


def _check_site(assignment: Assignment, scheme: LinearScheme) -> None:
    weight, given = scheme.weight, scheme.input
    if weight is None:
        raise UnsayableError("an input is quantized only with its weight")
    if weight.format not in _WEIGHTS or weight.granularity not in (Granularity(), Granularity(1, None)):
        raise UnsayableError(f"w={weight.spell('w')}: weights are int8 or int7 per tensor or channel")
    if weight.nests_scales:
        raise UnsayableError(f"w={weight.spell('w')}: a scale is a number there, not one in units of another")
    if given is not None and (given.format != "int8" or given.granularity != Granularity() or not given.static):
        raise UnsayableError(f"a={given.spell('a')}: inputs are int8 with one static scale per tensor")


class _Prefill(nn.Module):
    """Ids to logits, all positions."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.whole(input_ids=input_ids, use_cache=False).logits


def _with_nodes(module: nn.Module) -> nn.Module:
    """A copy that shares all tensors, its quantized projections replaced by what is written of them."""
    if isinstance(module, QuantLinear):
        return _QdqLinear(module)
    clone = copy.copy(module)
    clone._modules = {name: None if child is None else _with_nodes(child) for name, child in module._modules.items()}
    return clone


class _QdqLinear(nn.Module):
    """A projection as ONNX nodes."""

    codes: Tensor
    weight_scale: Tensor
    weight_zero: Tensor
    input_scale: Tensor
    input_zero: Tensor
    bias: Tensor | None

    def __init__(self, linear: QuantLinear) -> None:
        super().__init__()
        assert linear.quantized is not None  # checked with the plan
        for name, value in _weight_buffers(linear.quantized).items():
            self.register_buffer(name, value)
        self.has_input = linear.input_scales is not None
        if linear.input_scales is not None:
            self.register_buffer("input_scale", linear.input_scales.scale.reshape(()))
            self.register_buffer("input_zero", _zero_point(linear.input_scales).add(128).to(torch.uint8).reshape(()))
        self.register_buffer("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.has_input:
            given = (self.input_scale, self.input_zero)
            codes = _node("QuantizeLinear", (x, *given), torch.uint8, x.shape)
            x = _node("DequantizeLinear", (codes, *given), torch.float32, x.shape)
        weight = (self.codes, self.weight_scale, self.weight_zero)
        axis = {"axis": 1} if self.weight_scale.dim() else {}
        product = x @ _node("DequantizeLinear", weight, torch.float32, self.codes.shape, **axis)
        return product if self.bias is None else product + self.bias


def _weight_buffers(weight: QuantizedTensor) -> dict[str, Tensor]:
    """Codes (in, out) int8; scale and zero point, (out,) or a scalar."""
    shape = () if weight.scheme.granularity == Granularity() else (-1,)
    return {
        "codes": decode(weight.codes, weight.scheme.number_format).to(torch.int8).t().contiguous(),
        "weight_scale": weight.scales.scale.float().reshape(shape),
        "weight_zero": _zero_point(weight.scales).to(torch.int8).reshape(shape),
    }


def _zero_point(scales: Scales) -> Tensor:
    return torch.zeros_like(scales.scale) if scales.zero_point is None else scales.zero_point


def _node(
    kind: str,
    inputs: tuple[Tensor, ...],
    dtype: torch.dtype,
    shape: Sequence[int],
    **attributes: int,
) -> Tensor:
    """One ONNX node of the standard operators."""
    return torch.onnx.ops.symbolic(kind, inputs, {**attributes}, dtype=dtype, shape=shape, version=OPSET)

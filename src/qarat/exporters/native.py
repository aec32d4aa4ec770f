"""The native folder: everything a plan can say, as plain safetensors beside the source's config and tokenizer.

A float tensor keeps its name and the source's dtype. A quantized projection becomes ``NAME.codes`` (packed, little-endian
in bits), ``NAME.scale``, and where the scheme has them ``NAME.zero_point``, ``NAME.tensor_scale``, ``NAME.input_scale``
and ``NAME.input_zero_point``. ``plan.json`` says what they mean. One file a block, so that writing and reading need the
memory of one. No engine loads this format; it is what `qarat` itself measures, and what exports are compared with.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from qarat.attention import PRODUCTS
from qarat.checkpoints import Checkpoint
from qarat.errors import UserError
from qarat.models import Model
from qarat.modules import QuantLinear, QuantProducts
from qarat.packing import pack, packed_bytes, unpack
from qarat.plans import Plan, read_plan
from qarat.scales import SCALE_DTYPES
from qarat.schemes import LinearScheme, MatmulScheme, TensorScheme
from qarat.tensors import QuantizedTensor, Scales
from qarat.workspace import Progress, Runtime, explained, no_progress

__all__ = ["is_native", "read_native", "site_bytes", "write_native"]

PLAN = "plan.json"
INDEX = "model.safetensors.index.json"
OPERANDS = ("q", "k", "p", "v")


def is_native(folder: Path) -> bool:
    """Whether a folder is one of ours."""
    return (folder / PLAN).is_file() and (folder / "config.json").is_file()


def site_bytes(scheme: TensorScheme, rows: int, cols: int) -> int:
    """Bytes of one weight's tensors in this layout: packed rows of whole bytes, scales, zero points of a byte."""
    tall, wide = scheme.granularity.scale_shape(rows, cols)
    size = rows * packed_bytes(cols, scheme.number_format) + tall * wide * SCALE_DTYPES[scheme.scale].itemsize
    return size + (4 if scheme.scale == "e4m3" else 0) + (0 if scheme.symmetric else tall * wide)


def write_native(model: Model, plan: Plan, folder: Path, *, progress: Progress = no_progress) -> None:
    """Write a quantized model, beside its place and then renamed.

    Args:
        model: From `qarat.conversion.quantize`.
        plan: That it was quantized with.
        folder: To be made; replaced if it is there.
        progress: Called after every block.

    Raises:
        UserError: If it cannot be written.
    """
    partial = folder.with_name(folder.name + ".partial")
    with explained(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        where: dict[str, str] = {}
        dtype = model.checkpoint.dtype
        _write(partial / "outside.safetensors", _outside(model, dtype), where)
        progress("write", 0, model.blocks)
        for index, block in model.walk():
            prefix = f"{model.family.blocks}.{index}."
            tensors = {prefix + name: value for name, value in _block_tensors(block, dtype).items()}
            _write(partial / f"block-{index:03d}.safetensors", tensors, where)
            progress("write", index + 1, model.blocks)
        _copy_beside(model.folder, partial)
        (partial / PLAN).write_text(plan.to_json())
        index_file = {"metadata": {"format": "qarat-native/1"}, "weight_map": dict(sorted(where.items()))}
        (partial / INDEX).write_text(json.dumps(index_file, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)


def read_native(folder: Path, runtime: Runtime | None = None) -> tuple[Model, Plan]:
    """Open a native folder; its model is walked, evaluated and generates like any other.

    Raises:
        UserError: Damaged or contradictory files.
    """
    plan = read_plan((folder / PLAN).read_bytes())
    runtime = runtime or Runtime()
    model = Model(_NativeCheckpoint(folder, plan), runtime)
    plan.check(plan.model, model.sites())
    return model.with_blocks(lambda index: _read_block(model, plan, index)), plan


class _NativeCheckpoint(Checkpoint):
    """A native folder, whose blocks hold codes; it goes by the fingerprint of the float model it was made from."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        super().__init__(folder)
        self.plan = plan

    @property
    def fingerprint(self) -> str:
        return self.plan.model

    def check(self, wanted: Mapping[str, Tensor], optional: Collection[str] = ()) -> None:
        """Nothing here: each block is checked against the plan when it is read."""


def _outside(model: Model, dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything that lies outside the blocks, in the source's dtype; a tied head is not repeated."""
    state = model.outside()
    if model.config.tie_word_embeddings:
        state.pop(f"{model.family.head}.weight", None)
    return {name: value.to(dtype) for name, value in state.items()}


def _block_tensors(block: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensor names inside a block to what is written."""
    found: dict[str, Tensor] = {}
    for name, module in block.named_modules():
        if isinstance(module, QuantLinear):
            if module.quantized is None:
                found[f"{name}.weight"] = module.value.to(dtype)
            else:
                fmt = module.quantized.scheme.number_format
                found[f"{name}.codes"] = pack(module.quantized.codes, fmt)
                found |= _pack_scales(name, module.quantized.scales, module.quantized.scheme)
            if module.bias is not None:
                found[f"{name}.bias"] = module.bias.to(dtype)
            if module.input_scales is not None and module.scheme.input is not None:
                found |= _pack_scales(f"{name}.input", module.input_scales, module.scheme.input, "_")
        elif isinstance(module, QuantProducts):
            operands = dict(zip(OPERANDS, (module.qk.left, module.qk.right, module.av.left, module.av.right), strict=True))
            for operand, scales in module.scales.items():
                scheme = operands[operand]
                if scheme is not None:
                    found |= _pack_scales(f"{name}.{operand}", scales, scheme, "_")
        else:
            found |= {f"{name}.{leaf}": value.to(dtype) for leaf, value in module.named_parameters(recurse=False)}
    return found


def _pack_scales(name: str, scales: Scales, scheme: TensorScheme, separator: str = ".") -> dict[str, Tensor]:
    found = {f"{name}{separator}scale": scales.scale.to(SCALE_DTYPES[scheme.scale])}
    if scales.zero_point is not None:
        found[f"{name}{separator}zero_point"] = scales.zero_point.to(torch.int8)
    if scales.tensor_scale is not None:
        found[f"{name}{separator}tensor_scale"] = scales.tensor_scale
    return found


def _unpack_scales(tensors: dict[str, Tensor], name: str, separator: str = ".") -> Scales | None:
    scale = tensors.pop(f"{name}{separator}scale", None)
    if scale is None:
        return None
    zero_point = tensors.pop(f"{name}{separator}zero_point", None)
    tensor_scale = tensors.pop(f"{name}{separator}tensor_scale", None)
    return Scales(scale.float(), None if zero_point is None else zero_point.float(), tensor_scale)


def _read_block(model: Model, plan: Plan, index: int) -> nn.Module:
    prefix = f"{model.family.blocks}.{index}."
    tensors = model.checkpoint.read_raw(prefix, model.runtime.device)
    block = model.empty_block(index)
    products: dict[str, MatmulScheme] = {}
    for name, scheme in plan.block(index).items():
        inner = name.removeprefix(prefix)
        if isinstance(scheme, MatmulScheme):
            products[name.rpartition(".")[2]] = scheme
        elif scheme != LinearScheme():
            parent, _, leaf = inner.rpartition(".")
            setattr(block.get_submodule(parent), leaf, _read_linear(tensors, inner, scheme, plan, name, model.runtime))
    if any(scheme != MatmulScheme() for scheme in products.values()):
        home = f"{model.family.attention}.{PRODUCTS}"
        scales = {operand: _unpack_scales(tensors, f"{home}.{operand}", "_") for operand in OPERANDS}
        known = {operand: s for operand, s in scales.items() if s is not None}
        block.get_submodule(model.family.attention).add_module(
            PRODUCTS, QuantProducts(products["qk"], products["av"], known)
        )
    rest = {name: value.to(model.runtime.torch_dtype) for name, value in tensors.items()}
    wanted = {n for n, _ in block.named_parameters()}
    if rest.keys() != wanted:
        offences = [f"{prefix}{n}: missing" for n in sorted(wanted - rest.keys())]
        offences += [f"{prefix}{n}: not in the plan" for n in sorted(rest.keys() - wanted)]
        raise UserError(f"{model.folder}: plan and tensors disagree:\n  " + "\n  ".join(offences))
    block.load_state_dict(rest, assign=True, strict=False)
    return block.eval().requires_grad_(False)


def _read_linear(
    tensors: dict[str, Tensor], inner: str, scheme: LinearScheme, plan: Plan, name: str, runtime: Runtime
) -> QuantLinear:
    rows, cols = next(s.shape for s in plan.sites if s.name == name)
    try:
        if scheme.weight is None:
            weight: QuantizedTensor | Tensor = tensors.pop(f"{inner}.weight").to(runtime.torch_dtype)
        else:
            codes = unpack(tensors.pop(f"{inner}.codes"), scheme.weight.number_format, cols)
            scales = _unpack_scales(tensors, inner)
            if scales is None or codes.shape != (rows, cols):
                raise ValueError(f"codes of shape {tuple(codes.shape)} or scales do not fit the plan's {rows} × {cols}")
            weight = QuantizedTensor(codes, scales, scheme.weight)
    except (KeyError, ValueError) as error:
        raise UserError(f"{name}: the folder does not hold what its plan says: {error}") from error
    bias = tensors.pop(f"{inner}.bias", None)
    input_scales = _unpack_scales(tensors, f"{inner}.input", "_")
    if scheme.input is not None and scheme.input.static and input_scales is None:
        raise UserError(f"{name}: the plan says static input scales, the folder holds none")
    return QuantLinear(weight, None if bias is None else bias.to(runtime.torch_dtype), scheme, input_scales)


def _write(path: Path, tensors: dict[str, Tensor], where: dict[str, str]) -> None:
    # Through Python's own write: its errors name their cause (no space, read-only), those of safetensors' writer do not.
    path.write_bytes(save({name: value.contiguous().cpu() for name, value in tensors.items()}, {"format": "pt"}))
    where |= dict.fromkeys(tensors, path.name)


def _copy_beside(source: Path, target: Path) -> None:
    """Config, tokenizer and generation config, as they lie in the source."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in (".json", ".txt", ".model", ".jinja") and path.name not in (INDEX, PLAN, "training.json"):
            shutil.copyfile(path, target / path.name)

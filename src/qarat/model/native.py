"""The native folder: everything a plan can say, as plain safetensors beside the source's config and tokenizer.

A float tensor keeps its name and the source's dtype. A quantized projection becomes ``NAME.codes`` (packed,
little-endian in bits), ``NAME.scale``, and where the scheme has them ``NAME.zero_point``, ``NAME.tensor_scale``,
``NAME.input_scale`` and ``NAME.input_zero_point``. ``plan.json`` says what they mean; the index keeps its hash, so that
neither changes alone. One file a block, so that writing and reading need the memory of one. No engine loads this
format; it is what `qarat` itself measures, and what exports are compared with.

Of a plan with a prefix, ``prefix.safetensors`` holds what an engine's cache would begin with: for every block
``BLOCK.prefix_keys`` (position embeddings in them) and ``BLOCK.prefix_values``, (key heads, tokens, head width); and
``BLOCK.prefix_states``, (tokens, hidden) behind the block, of which the last block's give the first prediction.
All are float32.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast

import msgspec
import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedConfig

from qarat.ground.disk import check_folder, new_folder
from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, Runtime, no_progress
from qarat.maths.packing import pack, packed_bytes, unpack
from qarat.maths.scales import SCALE_DTYPES
from qarat.maths.static_scales import static_operands
from qarat.maths.tensors import QuantizedTensor
from qarat.maths.tiles import Scales
from qarat.model.attention import PRODUCTS
from qarat.model.checkpoints import Checkpoint
from qarat.model.families import family_of
from qarat.model.layers import QuantLinear, QuantProducts
from qarat.model.model import Model, Transform
from qarat.model.prefixes import BlockPrefix, PrefixedBlock
from qarat.values.fingerprints import source_of, transforms_of
from qarat.values.plan_files import encode_plan
from qarat.values.plans import Plan
from qarat.values.records.files import content_hash, decode_record
from qarat.values.roles import OPERANDS
from qarat.values.schemes import LinearScheme, MatmulScheme, TensorScheme

MARK = "qarat-plan.json"
"""The plan beside every export; it is also how an export is known as ours."""
PLAN = "plan.json"
INDEX = "model.safetensors.index.json"
FORMAT = "qarat-native/1"
PREFIX = "prefix.safetensors"
BESIDE = (".json", ".txt", ".model", ".jinja")  # kinds of the files that are copied from the source
NOT_BESIDE = ("model.safetensors.index.json", PLAN, MARK, "training.json")  # ours, or of the source's weights
SOURCES = "source_map"  # which tensors lay together in the float checkpoint: an export keeps them together


def is_native(folder: Path) -> bool:
    """Whether a folder is one of ours."""
    return (folder / PLAN).is_file() and (folder / "config.json").is_file()


def check_place(folder: Path, *, overwrite: bool) -> None:
    """Check, before any work, that a native folder can be written.

    Raises:
        UserError: If something is in its place that may not be replaced, or no permission.
    """
    check_folder(folder, PLAN, overwrite=overwrite)
    if folder.exists() and any(folder.iterdir()) and not is_native(folder):  # a run's folder holds a plan as well
        raise UserError(f"{folder} is no quantized folder, so `overwrite` leaves it; give another `out`")


def site_bytes(scheme: TensorScheme, rows: int, cols: int) -> int:
    """Bytes of one weight's tensors in this layout: packed rows of whole bytes, scales, zero points of a byte.

    Args:
        scheme: Of the weight.
        rows: Output channels.
        cols: Input channels.
    """
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in _weight_layout("", scheme, rows, cols).values())


def write_native(model: Model, plan: Plan, folder: Path, *, progress: Progress = no_progress) -> None:
    """Write a quantized model, beside its place and then renamed.

    Args:
        model: From `qarat.stages.quantize.quantize`; computed in float32, or in the dtype of its checkpoint.
        plan: That it was quantized with.
        folder: To be made; one that was written by this function before is replaced.
        progress: Called after every block.

    Raises:
        UserError: If it cannot be written, something else is in its place, or the model was rounded when it was read.
    """
    require_exact(model)
    check_place(folder, overwrite=True)
    with new_folder(folder, PLAN) as partial:
        (partial / PLAN).write_text(encode_plan(plan))  # first, as the mark of what is ours
        where: dict[str, str] = {}
        prefix: dict[str, Tensor] = {}
        _write(partial / "outside.safetensors", _outside(model), where)
        progress("write", 0, model.blocks)
        for index, block in model.walk():
            home = f"{model.family.blocks}.{index}."
            if isinstance(block, PrefixedBlock):
                prefix |= _prefix_tensors(block.prefix, home)
                block = block.block
            tensors = _block_tensors(block, home, model.checkpoint)
            _write(partial / f"block-{index:03d}.safetensors", tensors, where)
            progress("write", index + 1, model.blocks)
        if prefix:
            _write(partial / PREFIX, prefix, where)
        metadata = {"format": FORMAT, "plan": content_hash(plan)}
        weight_map, source_map = dict(sorted(where.items())), dict(sorted(model.checkpoint.files.items()))
        index_file = {"metadata": metadata, "weight_map": weight_map, SOURCES: source_map}
        (partial / INDEX).write_text(json.dumps(index_file, indent=1) + "\n")
        copy_beside(model.folder, partial)


def read_native(folder: Path, runtime: Runtime | None = None) -> tuple[Model, Plan]:
    """Open a native folder; its model is walked, evaluated and generates like any other.

    Args:
        folder: As `write_native` wrote it.
        runtime: Device, dtype and limits; default CPU, float32.

    Raises:
        UserError: Damaged or contradictory files.
    """
    if not is_native(folder):
        raise UserError(f"{folder} is no quantized folder of qarat: {PLAN} or config.json is missing; quantize again")
    plan = decode_record(folder / PLAN, Plan)
    _check_index(folder, plan)
    runtime = runtime or Runtime()
    transforms = tuple(Transform(word) for word in transforms_of(plan.model))
    model = Model(_NativeCheckpoint(folder, plan), runtime, transforms=transforms)
    plan.check(plan.model, model.sites())
    return model.with_blocks(lambda index: _read_block(model, plan, index)), plan


def _check_index(folder: Path, plan: Plan) -> None:
    """Check that the tensors were written in this format and under this plan."""
    try:
        metadata: dict[str, str] = json.loads((folder / INDEX).read_text())["metadata"]
        found, written_under = metadata["format"], metadata["plan"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / INDEX} is missing or damaged ({error!r}); quantize again") from error
    if found != FORMAT:
        raise UserError(f"{folder} is written as {found}, this qarat reads {FORMAT}; quantize again")
    if written_under != content_hash(plan):
        raise UserError(
            f"{folder / PLAN} is not the plan that these tensors were written under; quantize again with it"
        )


class _NativeCheckpoint(Checkpoint):
    """A native folder, whose blocks hold codes; it goes by the fingerprint of the float model it was made from."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        super().__init__(folder)
        self.plan = plan

    @property
    def fingerprint(self) -> str:
        return source_of(self.plan.model)

    @property
    def files(self) -> dict[str, str]:
        """Name of every tensor of the *float* checkpoint to that of the file it lay in.

        Raises:
            UserError: A damaged index.
        """
        try:
            index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
            return msgspec.convert(index[SOURCES], dict[str, str])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.folder / INDEX} is missing or damaged ({error!r}); quantize again") from error

    def check(self, wanted: Mapping[str, Tensor], optional: Collection[str] = ()) -> None:
        """Check from the headers alone that the tensors are those of the plan.

        Args:
            wanted: Name to a tensor (on any device) of the shape that the config asks for.
            optional: Names that may be there as well.

        Raises:
            UserError: Listing every tensor that is missing, surplus, or of another shape or kind.
        """
        layout, found = _layout(self.plan, wanted, self.config), self.headers
        offences = [f"{name}: missing" for name in layout.keys() - found.keys()]
        offences += [f"{name}: not in the plan" for name in found.keys() - layout.keys() - set(optional)]
        for name in layout.keys() & found.keys():
            dtype, shape = layout[name]
            kinds = _FLOAT_KINDS if name in wanted else (_KINDS[dtype],)
            if found[name][0] not in kinds or found[name][1] != shape:
                offences.append(f"{name}: {found[name]} in the file, {(kinds[0], shape)} by the plan")
        if offences:
            listed = "\n  ".join(sorted(offences))
            raise UserError(f"{self.folder}: plan and tensors disagree:\n  {listed}\nquantize again")


_FLOAT_KINDS = ("F32", "F16", "BF16")
_KINDS = {  # as safetensors spells them
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fn: "F8_E4M3",
}
_Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def _layout(plan: Plan, wanted: Mapping[str, Tensor], config: PreTrainedConfig) -> _Layout:
    """Name to dtype and shape of every tensor in the folder; the dtype of a float tensor may be another float's."""
    layout: _Layout = {name: (torch.float32, tuple(value.shape)) for name, value in wanted.items()}
    head: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for a in plan.assignments:
        name, scheme = a.site.name, a.scheme
        if scheme.weight is not None:
            layout.pop(f"{name}.weight", None)
            layout |= _weight_layout(f"{name}.", scheme.weight, *a.site.shape)
        for stream, static in static_operands(a.site.streams, scheme):
            if isinstance(scheme, LinearScheme):
                layout |= _scales_layout(f"{name}.input_", static, a.site.shape[1])
            else:
                home, operand = name.rpartition(".")[0], stream.rpartition(".")[2]
                layout |= _scales_layout(f"{home}.{PRODUCTS}.{operand}_", static, head)
    if plan.prefix:
        count, blocks = len(plan.prefix), family_of(list(config.architectures or [])).blocks
        kept = {"keys": (config.num_key_value_heads, count, head), "states": (count, config.hidden_size)}
        for index in range(config.num_hidden_layers):
            for name, shape in (kept | {"values": kept["keys"]}).items():
                layout[f"{blocks}.{index}.prefix_{name}"] = torch.float32, shape
    return layout


def _weight_layout(prefix: str, scheme: TensorScheme, rows: int, cols: int) -> _Layout:
    codes = torch.uint8, (rows, packed_bytes(cols, scheme.number_format.bits))
    return {f"{prefix}codes": codes, **_scales_layout(prefix, scheme, cols, rows)}


def _scales_layout(prefix: str, scheme: TensorScheme, cols: int, rows: int = 1) -> _Layout:
    shape = scheme.granularity.scale_shape(rows, cols)
    layout: _Layout = {f"{prefix}scale": (SCALE_DTYPES[scheme.scale], shape)}
    if not scheme.symmetric:
        layout[f"{prefix}zero_point"] = torch.int8, shape
    if scheme.scale == "e4m3":
        layout[f"{prefix}tensor_scale"] = torch.float32, (1, 1)
    return layout


def _outside(model: Model) -> dict[str, Tensor]:
    """Everything that lies outside the blocks, in the source's dtypes; a tied head is not repeated."""
    state = model.outside()
    if model.config.tie_word_embeddings:
        state.pop(f"{model.family.head}.weight", None)
    return {name: value.to(model.checkpoint.dtype_of(name)) for name, value in state.items()}


def _block_tensors(block: nn.Module, prefix: str, source: Checkpoint) -> dict[str, Tensor]:
    """Name to tensor of everything that is written of a block."""
    found: dict[str, Tensor] = {}
    floats: dict[str, Tensor] = {}
    for inner, module in block.named_modules(prefix=prefix.removesuffix(".")):
        if isinstance(module, QuantLinear):
            if module.quantized is None:
                floats[f"{inner}.weight"] = module.value
            else:
                fmt = module.quantized.scheme.number_format
                found[f"{inner}.codes"] = pack(module.quantized.codes, fmt)
                found |= _pack_scales(f"{inner}.", module.quantized.scales, module.quantized.scheme)
            if module.bias is not None:
                floats[f"{inner}.bias"] = module.bias
            if module.input_scales is not None and module.scheme.input is not None:
                found |= _pack_scales(f"{inner}.input_", module.input_scales, module.scheme.input)
        elif isinstance(module, QuantProducts):
            schemes = (module.qk.left, module.qk.right, module.av.left, module.av.right)
            for operand, scheme in zip(OPERANDS, schemes, strict=True):
                scales = module.scales.get(operand)
                if scales is not None and scheme is not None:
                    found |= _pack_scales(f"{inner}.{operand}_", scales, scheme)
        else:
            floats |= {f"{inner}.{leaf}": value for leaf, value in module.named_parameters(recurse=False)}
    return found | {name: value.to(source.dtype_of(name)) for name, value in floats.items()}


def _prefix_tensors(prefix: BlockPrefix, home: str) -> dict[str, Tensor]:
    """Without the axis of windows."""
    kept = {"keys": prefix.keys, "values": prefix.values, "states": prefix.states}
    return {f"{home}prefix_{name}": value[0].float() for name, value in kept.items()}


def _take_prefix(tensors: dict[str, Tensor], model: Model, plan: Plan, index: int) -> BlockPrefix:
    """What the prefix leaves in a block, taken out of the block's tensors."""
    names = ("prefix_keys", "prefix_values", "prefix_states")
    keys, values, states = (tensors.pop(name).to(model.runtime.torch_dtype).unsqueeze(0) for name in names)
    return BlockPrefix(keys, values, states, None if index else model.embed(torch.tensor([plan.prefix])))


def _pack_scales(prefix: str, scales: Scales, scheme: TensorScheme) -> dict[str, Tensor]:
    found = {f"{prefix}scale": scales.scale.to(SCALE_DTYPES[scheme.scale])}
    if scales.zero_point is not None:
        found[f"{prefix}zero_point"] = scales.zero_point.to(torch.int8)
    if scales.tensor_scale is not None:
        found[f"{prefix}tensor_scale"] = scales.tensor_scale
    return found


def _unpack_scales(tensors: dict[str, Tensor], prefix: str) -> Scales | None:
    scale = tensors.pop(f"{prefix}scale", None)
    if scale is None:
        return None
    zero_point = tensors.pop(f"{prefix}zero_point", None)
    tensor_scale = tensors.pop(f"{prefix}tensor_scale", None)
    return Scales(scale.float(), None if zero_point is None else zero_point.float(), tensor_scale)


def _read_block(model: Model, plan: Plan, index: int) -> nn.Module:
    """One block; that every tensor is there and of its shape was checked when the folder was opened."""
    prefix = f"{model.family.blocks}.{index}."
    tensors = model.checkpoint.read_raw(prefix, model.runtime.device)
    block = model.empty_block(index)
    kept = _take_prefix(tensors, model, plan, index) if plan.prefix else None
    products: dict[str, MatmulScheme] = {}
    for name, scheme in plan.block(index).items():
        inner = name.removeprefix(prefix)
        if isinstance(scheme, MatmulScheme):
            products[name.rpartition(".")[2]] = scheme
        elif not scheme.is_float:
            parent, _, leaf = inner.rpartition(".")
            cols = cast(nn.Linear, block.get_submodule(inner)).in_features
            try:
                linear = _read_linear(tensors, f"{inner}.", scheme, cols, model.runtime)
            except ValueError as error:
                raise UserError(f"{model.folder}: {name} is damaged: {error}; quantize again") from error
            setattr(block.get_submodule(parent), leaf, linear)
    if not all(scheme.is_float for scheme in products.values()):
        home = f"{model.family.attention}.{PRODUCTS}"
        scales = {operand: _unpack_scales(tensors, f"{home}.{operand}_") for operand in OPERANDS}
        known = {operand: s for operand, s in scales.items() if s is not None}
        block.get_submodule(model.family.attention).add_module(
            PRODUCTS, QuantProducts(products["qk"], products["av"], known, len(plan.prefix))
        )
    rest = {name: value.to(model.runtime.torch_dtype) for name, value in tensors.items()}
    block.load_state_dict(rest, assign=True, strict=False)
    block = block.eval().requires_grad_(False)
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
        weight = QuantizedTensor(codes, scales, scheme.weight)
    bias = tensors.pop(f"{prefix}bias", None)
    input_scales = _unpack_scales(tensors, f"{prefix}input_")
    bias = None if bias is None else bias.to(runtime.torch_dtype)
    return QuantLinear(weight, bias, scheme, input_scales, runtime.kernels)


def _write(path: Path, tensors: dict[str, Tensor], where: dict[str, str]) -> None:
    # Python's own write: its errors name their cause (no space, read-only), those of safetensors' writer do not.
    path.write_bytes(save({name: value.contiguous().cpu() for name, value in tensors.items()}, {"format": "pt"}))
    where |= dict.fromkeys(tensors, path.name)


def require_exact(model: Model) -> None:
    """Refuse to write a model whose numbers were rounded when they were read.

    Raises:
        UserError: If it was opened in a dtype that does not hold what its checkpoint does.
    """
    computed = model.runtime.torch_dtype
    stored = {model.checkpoint.dtype_of(name) for name in model.tensor_shapes() if name in model.checkpoint}
    if computed != torch.float32 and not stored <= {computed}:
        raise UserError(f"{model.folder} was opened in {model.runtime.dtype}, which rounds it; open it in float32")


def copy_beside(source: Path, target: Path) -> None:
    """Copy config, tokenizer, chat template and generation config as they lie in the source.

    Args:
        source: A model's folder.
        target: Another, which exists.
    """
    for path in sorted(source.iterdir()):
        if path.suffix in BESIDE and path.name not in NOT_BESIDE and path.is_file():
            shutil.copyfile(path, target / path.name)

"""Which tensors a group asks for on disk, and what is wrong with those that are there, from headers alone."""

from __future__ import annotations

from typing import NamedTuple

from qarat.stages.read_back.folders import FLOAT_KINDS, READ, StoredModule
from qarat.stages.read_back.stored import Args, ConfigGroup

_PLAIN = ("int-quantized", "float-quantized", "naive-quantized", "mxfp8-quantized")
_PACKED = ("pack-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp6-pack-quantized")


class Expected(NamedTuple):
    """One tensor that a group asks for.

    Attributes:
        kinds: What it may be kept as.
        shapes: What shape it may have.
        needed: Whether engines fail without it.
    """

    kinds: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    needed: bool = True


def layout_offences(module: StoredModule, group: ConfigGroup, format: str) -> list[str]:
    """What is wrong with a module's tensors under a group, in words; empty if nothing is."""
    if format not in (*_PLAIN, *_PACKED):
        return [f"format {format!r} is none that is known here"]
    expected = expected_tensors(module.shape, group, format)
    reasons = [f"{leaf} is missing" for leaf, e in expected.items() if e.needed and leaf not in module.tensors]
    reasons += _cut_groups(module.shape[1], group)
    for leaf, (kind, shape) in module.tensors.items():
        if leaf not in expected:
            if leaf.startswith(READ):
                reasons.append(f"{leaf} is there, and {group.name} does not ask for it")
            continue
        kinds, shapes, _ = expected[leaf]
        if kind not in kinds:
            reasons.append(f"{leaf} is {kind}, {group.name} asks for {' or '.join(kinds)}")
        if shape not in shapes:
            reasons.append(f"{leaf} is {shape}, {group.name} asks for {' or '.join(map(str, shapes))}")
    return reasons


def float_offences(module: StoredModule) -> list[str]:
    """What is wrong with a module that has no group; empty if it is plainly in float."""
    weight = module.tensors.get("weight")
    if module.is_quantized:
        stored = ", ".join(f"{leaf} {kind}" for leaf, (kind, _) in sorted(module.tensors.items()))
        return [f"stored quantized ({stored})"]
    if weight is None:
        return ["weight is missing"]
    return [f"weight is {weight[1]}, the model asks for {module.shape}"] if weight[1] != module.shape else []


def expected_tensors(shape: tuple[int, int], group: ConfigGroup, format: str) -> dict[str, Expected]:
    """Leaf to what a group asks for, for a weight of shape (out, in); ``bias`` belongs to the model, not to the group.

    From compressed-tensors 0.20.0: initialize_qparams (shapes), each compressor's ``compress`` (kinds).
    """
    rows, cols = shape
    weights, tensors = group.weights, dict[str, Expected]()
    if weights is None:
        tensors["weight"] = Expected(FLOAT_KINDS, (shape,))
    elif format in _PLAIN:
        tensors["weight"] = Expected(("I8",) if weights.type == "int" else ("F8_E4M3",), (shape,))
    elif format == "pack-quantized":
        tensors["weight_packed"] = Expected(("I32",), ((rows, _words(cols, weights.num_bits)),))
        tensors["weight_shape"] = Expected(("I64", "I32"), ((2,),))
        # Without it engines that reorder take whatever lies in the memory that they made for it.
        tensors["weight_g_idx"] = Expected(("I32",), ((cols,),), needed=weights.reorders and weights.kind == "group")
    else:
        tensors["weight_packed"] = Expected(("U8",), ((rows, -(-cols * weights.num_bits // 8)),))
    if weights is not None:
        tensors |= _weight_scales(shape, weights, format)
    if group.inputs is not None:
        tensors |= _input_scales(cols, group.inputs)
    return tensors


def _cut_groups(cols: int, group: ConfigGroup) -> list[str]:
    """Groups along a row that its channels do not fill, which the library refuses, and every kernel."""
    sizes = {
        args.group_size for args in (group.weights, group.inputs) if args and args.kind in ("group", "tensor_group")
    }
    return [
        f"its {cols} input channels are no whole number of groups of {size}" for size in sizes if size and cols % size
    ]


def _weight_scales(shape: tuple[int, int], weights: Args, format: str) -> dict[str, Expected]:
    rows, cols = shape
    kinds = FLOAT_KINDS
    if format.startswith("mxfp"):
        kinds = ("U8",)
    elif format == "nvfp4-pack-quantized":
        kinds = ("F8_E4M3",)
    shapes = _scale_shapes(rows, cols, weights)
    tensors = {"weight_scale": Expected(kinds, shapes)}
    if format == "nvfp4-pack-quantized":
        tensors["weight_global_scale"] = Expected(("F32",), ((1,), ()))
    if not weights.symmetric:
        packed = format == "pack-quantized" and weights.kind in ("group", "channel")
        zeros = tuple((_words(s[0], weights.num_bits), *s[1:]) for s in shapes) if packed else shapes
        tensors["weight_zero_point"] = Expected(("I32",) if packed else ("I8",), zeros)
    return tensors


def _input_scales(cols: int, inputs: Args) -> dict[str, Expected]:
    if inputs.kind == "tensor_group" and inputs.dynamic is not True:
        tensors = {"input_global_scale": Expected(("F32",), ((1,), ()))}
        return (
            tensors if inputs.dynamic else tensors | {"input_scale": Expected(FLOAT_KINDS, ((_groups(cols, inputs),),))}
        )
    if inputs.dynamic:
        return {}
    shapes = ((1,), ()) if inputs.kind == "tensor" else ((_groups(cols, inputs),),)
    tensors = {"input_scale": Expected(FLOAT_KINDS, shapes)}
    if not inputs.symmetric:
        tensors["input_zero_point"] = Expected(("I8", "I32"), shapes)
    return tensors


def _scale_shapes(rows: int, cols: int, args: Args) -> tuple[tuple[int, ...], ...]:
    if args.kind == "tensor":
        return (1,), ()
    if args.kind == "channel":
        return ((rows, 1),)
    if args.kind == "block" and args.block:
        tall, wide = args.block
        return ((-(-rows // tall), -(-cols // wide)),)
    return ((rows, _groups(cols, args)),)


def _groups(cols: int, args: Args) -> int:
    return -(-cols // (args.group_size or cols))


def _words(codes: int, bits: int) -> int:
    """32-bit words that so many codes fill, densely packed."""
    return -(-codes * bits // 32)

"""A Hugging Face folder of quant_method compressed-tensors, for transformers, vLLM and SGLang.

Every projection is named in full, in just one place: as a target of the one group that has its scheme, or in
``ignore``. Patterns are shorter, but engines try them in different orders and against fused names as well, which is how
mixed checkpoints break elsewhere; a full name matches first, or as a part of a fused layer, in every one of them.

Codes that share bytes are packed by the compressed-tensors library itself, one block at a time, from the numbers they
stand for; dividing those by their own scale gives the codes back exactly. A code with a byte of its own is written as
it is: the library would make the same byte of it, at the price of four more a weight and a third of the export's time.
``docs/exporting.md`` says what is held, what engines make of it, and where their arithmetic differs from ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import compressed_tensors
import torch
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, QuantizationStatus
from torch import Tensor, nn

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.maths.tiles import Scales
from qarat.model.folders import copy_beside, write_config
from qarat.model.layers import QuantCache, QuantLinear
from qarat.model.model import Model
from qarat.stages.export.compressed_tensors.cache import cache_args, cache_layout, cache_offences, cache_tensors
from qarat.stages.export.compressed_tensors.schemes import group_of, offences
from qarat.stages.export.compressed_tensors.shards import ShardWriter, shard_names, size_of
from qarat.stages.export.compressed_tensors.tensors import layout_of, tensors_of
from qarat.values.plans import Assignment, Plan, PlanError
from qarat.values.schemes import LinearScheme, TensorScheme
from qarat.values.sites import Site

__all__ = ["EXTRA", "NEEDS", "check", "quantization_config", "tensor_bytes", "write"]

EXTRA = ""
NEEDS = ()
MIXED = "mixed-precision"


def check(model: Model, plan: Plan) -> None:
    """Refuse a plan that the format cannot hold, before any work.

    Raises:
        UserError: Listing every site with what is wrong and what to use instead.
    """
    wrong = [f"{a.site.name}: {offence}" for a in plan.assignments for offence in _offences(a)]
    wrong += cache_offences(plan)
    if wrong:
        raise UserError(
            "compressed-tensors cannot hold this plan:\n  "
            + "\n  ".join(wrong)
            + "\nplan again with other schemes (`low`, `protect`, `rules`); qarat's own folder holds any plan"
        )
    if not _groups(plan):
        raise UserError("the plan quantizes no projection, and a folder needs one; the float model is its own export")


def write(model: Model, plan: Plan, folder: Path, *, progress: Progress = no_progress) -> Sequence[str]:
    """Write the folder, with the memory of one block.

    Returns:
        Where engines' arithmetic differs from the simulation, and ties that vLLM would refuse.

    Raises:
        UserError: Projections that read one stream with different static scales: the quantized folder is damaged. Or
            that engines merge under one weight scale, and that were quantized under several, as qarat once did.
    """
    groups = _groups(plan)
    layout = layout_of(model, plan, groups) | cache_layout(plan)
    writer = ShardWriter(folder, layout, shard_names(layout, model.checkpoint.files))
    outside = model.outside()
    writer.put({name: outside[name].to(layout[name][0]) for name in layout if name in outside})
    progress("export", 0, model.blocks)
    for index, block in model.walk():
        prefix = f"{model.family.blocks}.{index}"
        own = [site for site in plan.sites if site.block == index]
        _check_shared_inputs(block, f"{prefix}.", own)
        _check_shared_weights(block, f"{prefix}.", own)
        for name, module in block.named_modules(prefix=prefix):
            tensors = tensors_of(module, groups[name]) if isinstance(module, QuantLinear) else {}
            floats: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
            if isinstance(module, QuantLinear) and module.bias is not None:  # a buffer there
                floats["bias"] = module.bias
            tensors |= {leaf: value.to(layout[f"{name}.{leaf}"][0]) for leaf, value in floats.items()}
            writer.put({f"{name}.{leaf}": value for leaf, value in tensors.items()})
            if isinstance(module, QuantCache):
                writer.put(cache_tensors(name.rpartition(".")[0], module))
        progress("export", index + 1, model.blocks)
    writer.finish()
    copy_beside(model, folder)
    write_config(folder, {"quantization_config": quantization_config(plan, model.family.head)})
    return _notes(plan)


def quantization_config(plan: Plan, head: str) -> dict[str, Any]:
    """What goes into ``config.json``: one group for each distinct scheme, full names as targets.

    Args:
        plan: That `check` found nothing wrong with.
        head: Name of the projection onto the vocabulary, which stays in float.
    """
    by_group: dict[str, QuantizationScheme] = {}
    for name, group in _groups(plan).items():
        first = by_group.setdefault(group.model_dump_json(exclude={"targets"}), group)
        first.targets.append(name)
    formats = {str(group.format) for group in by_group.values()}
    ignored = [a.site.name for a in plan.assignments if a.site.kind == "projection" and a.is_float]
    whole = QuantizationConfig(
        config_groups={f"group_{number}": group for number, group in enumerate(by_group.values())},
        format=formats.pop() if len(formats) == 1 else MIXED,
        quantization_status=QuantizationStatus.COMPRESSED,
        kv_cache_scheme=cache_args(plan),
        ignore=[*ignored, head],
    )
    return {"version": compressed_tensors.__version__, **whole.model_dump(mode="json", exclude_none=True)}


def tensor_bytes(model: Model, plan: Plan) -> int:
    """Bytes of all tensors of the export, file headers aside, from shapes alone."""
    return sum(map(size_of, (layout_of(model, plan, _groups(plan)) | cache_layout(plan)).values()))


def _groups(plan: Plan) -> dict[str, QuantizationScheme]:
    """Name of every quantized projection to its scheme as a group of its own, in model order."""
    return {name: group_of(scheme) for name, scheme in plan.projections.items() if not scheme.is_float}


def _offences(a: Assignment) -> list[str]:
    if isinstance(a.scheme, LinearScheme):
        return offences(a.scheme, a.site.shape[1])
    if a.is_float or a.site.kind == "cache":
        return []
    return [f"{a.scheme}: attention products have no place in it; leave them in float"]


def _check_shared_inputs(block: nn.Module, prefix: str, sites: Sequence[Site]) -> None:
    """Check that projections which read one stream under one static scheme have one scale, as a fused layer has."""
    first: dict[tuple[tuple[str, ...], TensorScheme | None], tuple[str, Scales]] = {}
    for site in sites:
        module = block.get_submodule(site.name.removeprefix(prefix)) if site.kind == "projection" else None
        if isinstance(module, QuantLinear) and module.input_scales is not None:
            key = site.streams, module.scheme.input
            other, scales = first.setdefault(key, (site.name, module.input_scales))
            if not _equal(scales, module.input_scales):
                raise UserError(
                    f"{other} and {site.name} read the same input, but its static scales differ: "
                    "the quantized folder is damaged; quantize again"
                )


def _check_shared_weights(block: nn.Module, prefix: str, sites: Sequence[Site]) -> None:
    """Check that weights which engines merge under one scale have one and the same."""
    first: dict[tuple[str, TensorScheme], tuple[str, float]] = {}
    for site in sites:
        module = block.get_submodule(site.name.removeprefix(prefix)) if site.tie else None
        quantized = module.quantized if isinstance(module, QuantLinear) else None
        if quantized is None or not quantized.scheme.is_shared_when_merged:
            continue
        scales = quantized.scales
        scale = float(scales.scale if scales.tensor_scale is None else scales.tensor_scale)
        other, known = first.setdefault((site.tie, quantized.scheme), (site.name, scale))
        if scale != known:
            raise UserError(
                f"{other} and {site.name} are merged by engines under one scale, but were quantized under {known:.6g} "
                f"and {scale:.6g}: engines would round them anew; quantize again, which now takes one for both"
            )


def _equal(a: Scales, b: Scales) -> bool:
    """Whether two static inputs are rounded alike."""
    pairs = (a.scale, b.scale), (a.zero_point, b.zero_point)
    return all(x is y is None or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs)


def _notes(plan: Plan) -> list[str]:
    inputs = [scheme.input for scheme in plan.projections.values() if scheme.input]
    weights = [scheme.weight for scheme in plan.projections.values() if scheme.weight]
    notes: list[str] = []
    if count := sum(not i.static and i.number_format.is_integer for i in inputs):
        notes.append(
            f"{count} sites choose their input scales at run time: transformers divides the maximum by 127.5 "
            "where the simulation, as vLLM, divides by 127"
        )
    if count := sum(w.scale == "e4m3" for w in weights):
        notes.append(f"{count} sites are nvfp4: the format keeps 1 / the tensor's scale, which rounds its last bit")
    if (cache := cache_args(plan)) is not None and cache.type == "int":
        notes.append("vLLM refuses a cache in int8, which transformers computes: e4m3 is what it takes")
    try:
        plan.check_ties()
    except PlanError as error:
        notes.append(f"vLLM will refuse this folder, transformers will not: {error}")
    return notes

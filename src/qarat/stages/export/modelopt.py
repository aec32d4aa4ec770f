"""The plan as NVIDIA ModelOpt's quant_cfg (modelopt.yaml), for `mtq.quantize`.

An ordered list of entries, the last match winning: everything off first, then every quantized projection's weight and
input quantizer by its full name. It is YAML, as ModelOpt's own recipes are: block sizes are keyed by the axis, an
integer, which JSON does not have. ModelOpt rounds the weights anew and chooses its own scales: the largest magnitude
÷ the largest code, static inputs' from the tokens it is given.
"""

from __future__ import annotations

from typing import Any

import yaml

from qarat.stages.export.recipes import Recipe, UnsayableError, translate
from qarat.values.plans import Assignment, Plan
from qarat.values.schemes import Granularity, LinearScheme, TensorScheme

EXTRA = ""
NEEDS: tuple[str, ...] = ()
CONFIG = "modelopt.yaml"

_SCHEMA = "# modelopt-schema: modelopt.torch.quantization.config.QuantizeConfig\n"
_ALTERNATIVES = (
    "ModelOpt holds intB and e4m3 with absmax float32 scales per tensor, channel or gN of the weight and per tensor "
    "(static or dynamic), token or gN of the input, besides mxfp4, mxfp6, mxfp8 and nvfp4; change these sites in the "
    "plan (`rules`), leave them in float, or use another `format`"
)
_MX_FORMATS = ("e2m1", "e2m3", "e3m2", "e4m3")


def quant_cfg(plan: Plan) -> list[dict[str, Any]]:
    """The ordered list of entries as YAML would hold it.

    Args:
        plan: Any.

    Raises:
        UserError: Listing every site ModelOpt cannot hold.
    """
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for name, quantizers in translate(plan, "ModelOpt", _quantizers, _ALTERNATIVES).items():
        entries += [{"quantizer_name": f"{name}.{quantizer}", "cfg": cfg} for quantizer, cfg in quantizers.items()]
    return entries


def _quantizers(assignment: Assignment, scheme: LinearScheme) -> dict[str, dict[str, Any]]:
    """Name of each enabled quantizer to its attributes."""
    parts = {"weight_quantizer": scheme.weight, "input_quantizer": scheme.input}
    return {
        name: _attributes(part, assignment.site.shape[1], is_weight=name == "weight_quantizer")
        for name, part in parts.items()
        if part is not None
    }


def _attributes(scheme: TensorScheme, cols: int, *, is_weight: bool) -> dict[str, Any]:
    spelled, grain = scheme.spell("w" if is_weight else "a"), scheme.granularity
    if not scheme.symmetric:
        raise UnsayableError(f"{spelled}: no zero points")
    if grain.cols is not None and cols % grain.cols:
        raise UnsayableError(f"{spelled}: {cols} channels are no whole number of groups of {grain.cols}")
    if scheme.scale in ("e8m0", "e4m3"):
        return _microscaled(scheme, spelled, is_weight=is_weight)
    if scheme.scale != "float32" or scheme.choice != "absmax":
        raise UnsayableError(f"{spelled}: scales are the largest magnitude's, in float32")
    if scheme.format not in ("e4m3", *(f"int{bits}" for bits in range(2, 9))):
        raise UnsayableError(f"{spelled}: no such numbers with float32 scales")
    fields: dict[str, Any] = {"num_bits": "e4m3" if scheme.format == "e4m3" else scheme.number_format.bits}
    timing = "static" if is_weight or scheme.static else "dynamic"
    match grain:
        case Granularity(None, None):
            return fields | {"axis": None} | ({"type": "dynamic"} if timing == "dynamic" else {})
        case Granularity(1, None):
            return fields | ({"axis": 0} if is_weight else {"block_sizes": {-1: None, "type": "dynamic"}})
        case Granularity(1, int(size)):
            return fields | {"block_sizes": {-1: size, "type": timing}}
        case _:
            raise UnsayableError(f"{spelled}: no tiles of several channels, no static groups of an input")


def _microscaled(scheme: TensorScheme, spelled: str, *, is_weight: bool) -> dict[str, Any]:
    """MX formats and NVFP4: scales by the value at hand, of the weight as of the input."""
    grain, is_mx = scheme.granularity, scheme.scale == "e8m0"
    known = scheme.format in _MX_FORMATS if is_mx else scheme.format == "e2m1"
    if not known or grain != Granularity(1, 32 if is_mx else 16) or scheme.choice in ("mse", "percentile", "typical"):
        raise UnsayableError(f"{spelled}: microscaled formats are mxfp4, mxfp6, mxfp8 (groups of 32) and nvfp4 (of 16)")
    sizes = {-1: grain.cols, "type": "dynamic", "scale_bits": scheme.scale}
    return {"num_bits": scheme.format, "block_sizes": sizes}


_RECIPE = Recipe(
    "ModelOpt",
    CONFIG,
    lambda plan, head: (
        _SCHEMA + yaml.safe_dump({"algorithm": "max", "quant_cfg": quant_cfg(plan)}, sort_keys=False, width=120)
    ),
    (
        f"use it with mtq.quantize(model, load_config({CONFIG!r}), forward_loop); load_config is of "
        "modelopt.torch.opt.config_loader",
        "ModelOpt chooses scales itself: weights by its own rule, static inputs from the tokens it is given",
    ),
)
check, write = _RECIPE.check, _RECIPE.write

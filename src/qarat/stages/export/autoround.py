"""The plan as AutoRound's layer_config (layer_config.json), for `AutoRound(model, layer_config=…)`.

Every projection is named in full with every key AutoRound knows, also those left in float (16 bits): a key left out
would be filled from the scheme that AutoRound is started with. AutoRound then tunes the rounding and the scales
itself.
"""

from __future__ import annotations

import json
from typing import Any

from qarat.stages.export.recipes import Recipe, UnsayableError, translate
from qarat.values.plans import Assignment, Plan
from qarat.values.schemes import Granularity, LinearScheme, TensorScheme

EXTRA = ""
NEEDS: tuple[str, ...] = ()
CONFIG = "layer_config.json"

_FLOAT: dict[str, Any] = {"bits": 16, "data_type": "float", "group_size": -1, "sym": True}
_FLOAT_INPUT: dict[str, Any] = {
    "act_bits": 16,
    "act_data_type": "float",
    "act_group_size": -1,
    "act_sym": True,
    "act_dynamic": True,
}
_ALTERNATIVES = (
    "AutoRound holds intB and e4m3 per tensor, channel or gN of the weight, with inputs in int8 or e4m3 per tensor or "
    "token, besides mxfp4, mxfp6, mxfp8, mxint4 and nvfp4 for both; change these sites in the plan (`rules`), leave "
    "them in float, or use another `format`"
)
_MICROSCALED = {  # (format, scale kind): data_type
    ("e2m1", "e8m0"): "mx_fp",
    ("e2m3", "e8m0"): "mx_fp",
    ("e4m3", "e8m0"): "mx_fp",
    ("sint4", "e8m0"): "mx_int",
    ("e2m1", "e4m3"): "nv_fp",
}


def layer_config(plan: Plan) -> dict[str, dict[str, Any]]:
    """Full projection name to AutoRound's scheme for it.

    Args:
        plan: Any.

    Raises:
        UserError: Listing every site AutoRound cannot hold.
    """
    layers = translate(plan, "AutoRound", _layer, _ALTERNATIVES)
    names = [site.name for site in plan.sites if site.kind == "projection"]
    return {name: layers.get(name, {**_FLOAT, **_FLOAT_INPUT}) for name in names}


def _layer(assignment: Assignment, scheme: LinearScheme) -> dict[str, Any]:
    if scheme.weight is None:
        raise UnsayableError("an input is quantized only with its weight")
    rows, cols = assignment.site.shape
    for part in (scheme.weight, scheme.input):
        if part is not None and part.granularity.cols is not None and cols % part.granularity.cols:
            raise UnsayableError(f"{cols} channels are no whole number of groups of {part.granularity.cols}")
    if scheme.input is None and scheme.weight.number_format.is_integer and (rows % 32 or cols % 32):
        raise UnsayableError(
            "integer weights alone need both sides in multiples of 32, or AutoRound leaves them in float"
        )
    weight = _tensor(scheme.weight, is_weight=True)
    if scheme.input is None:
        return {**weight, **_FLOAT_INPUT}
    given = {f"act_{key}": value for key, value in _tensor(scheme.input, is_weight=False).items()}
    return {**weight, **given, "act_dynamic": not scheme.input.static}


def _tensor(scheme: TensorScheme, *, is_weight: bool) -> dict[str, Any]:
    """Bits, kind, group size and symmetry; a group size of −1 is a channel or token, 0 the whole tensor."""
    spelled, grain = scheme.spell("w" if is_weight else "a"), scheme.granularity
    fields: dict[str, Any] = {"bits": scheme.number_format.bits}
    if scheme.scale in ("e8m0", "e4m3"):
        kind = _MICROSCALED.get((scheme.format, scheme.scale))
        if (
            kind is None
            or grain != Granularity(1, 16 if kind == "nv_fp" else 32)
            or scheme.choice in ("mse", "percentile", "typical")
        ):
            raise UnsayableError(
                f"{spelled}: microscaled formats are mxfp4, mxfp6, mxfp8, mxint4 and nvfp4 in their blocks"
            )
        return fields | {"data_type": kind, "group_size": grain.cols, "sym": True}
    if scheme.scale == "uint8":
        raise UnsayableError(f"{spelled}: scales are not quantized there; drop scale-uint8")
    if scheme.choice != "absmax":
        raise UnsayableError(f"{spelled}: how scales are chosen is AutoRound's own; use absmax")
    if scheme.format not in ("e4m3", *(f"int{bits}" for bits in range(2, 9))):
        raise UnsayableError(f"{spelled}: no such numbers")
    fields["data_type"] = "int" if scheme.number_format.is_integer else "fp"
    sizes = {Granularity(): 0, Granularity(1, None): -1}
    if is_weight and grain.rows == 1 and grain.cols is not None:
        sizes[grain] = grain.cols
    if grain not in sizes:
        raise UnsayableError(f"{spelled}: no such granularity")
    return fields | {"group_size": sizes[grain], "sym": scheme.symmetric}


_RECIPE = Recipe(
    "AutoRound",
    CONFIG,
    lambda plan, head: json.dumps(layer_config(plan), indent=1) + "\n",
    (
        f'use it with AutoRound(model, tokenizer, scheme="INT8", layer_config=json.load(open({CONFIG!r})))',
        "AutoRound tunes rounding and scales itself; which mixes can be saved depends on the format it saves in",
    ),
)
check, write = _RECIPE.check, _RECIPE.write

"""The plan as an llm-compressor recipe (recipe.yaml), for `oneshot`.

Every quantized projection is named in full in exactly one config group, everything else in ``ignore``: no pattern is
left to match by accident. The words are those of compressed-tensors, which llm-compressor's groups are made of. Only
the assignment is handed over: llm-compressor rounds anew and chooses its own scales (from 127.5 where qarat divides
by 127), static ones from the calibration tokens it is given.
"""

from __future__ import annotations

from typing import Any

import yaml

from qarat.stages.export.compressed_tensors.schemes import group_of, offences
from qarat.stages.export.recipes import Recipe, UnsayableError, by_entry, float_sites, translate
from qarat.values.plans import Assignment, Plan
from qarat.values.schemes import LinearScheme, TensorScheme

EXTRA = ""
NEEDS: tuple[str, ...] = ()
RECIPE = "recipe.yaml"

_OBSERVERS = {
    # (static input?, choice): llm-compressor's default, minmax, is a moving average, which absmax is not.
    (False, "absmax"): "memoryless_minmax",
    (False, "mse"): "memoryless_mse",
    (True, "absmax"): "static_minmax",
    (True, "mse"): "mse",
}
_ALTERNATIVES = (
    "llm-compressor holds w=intB/(tensor|channel|gN), w=e4m3/(tensor|channel|RxC), w=nvfp4, w=mxfp4/mx-even and "
    "w=mxfp8/mx-even, with inputs tensor/static, tensor/dynamic or token; change these sites in the plan (`rules`), "
    "leave them in float, or export the weights themselves (`format` compressed-tensors)"
)


def recipe(plan: Plan, head: str = "lm_head") -> dict[str, Any]:
    """The recipe as YAML would hold it.

    Args:
        plan: Any.
        head: Name of the output projection, which no plan quantizes.

    Raises:
        UserError: Listing every site llm-compressor cannot hold.
    """
    sites = translate(plan, "llm-compressor", _group, _ALTERNATIVES)
    groups = {f"group_{i}": {"targets": names, **fields} for i, (fields, names) in enumerate(by_entry(sites))}
    modifier = {"config_groups": groups, "ignore": [head, *float_sites(plan)]}
    return {"quant_stage": {"quant_modifiers": {"QuantizationModifier": modifier}}}


def _group(assignment: Assignment, scheme: LinearScheme) -> dict[str, Any]:
    """A config group without its targets."""
    if reasons := [*offences(scheme, assignment.site.shape[1]), *_own_offences(scheme)]:
        raise UnsayableError("; ".join(reasons))
    group = group_of(scheme)
    fields: dict[str, Any] = {}
    for key, args, part in (
        ("weights", group.weights, scheme.weight),
        ("input_activations", group.input_activations, scheme.input),
    ):
        if args is not None and part is not None:
            fields[key] = args.model_dump(mode="json", exclude_none=True, exclude={"observer", "observer_kwargs"})
            if part.static or key == "weights":
                fields[key]["observer"] = _OBSERVERS[part.static, _choice(part)]
    return fields


def _choice(scheme: TensorScheme) -> str:
    """The scale choice in llm-compressor's terms: MX scales are rounded to even from the largest magnitude."""
    return "absmax" if scheme.choice == "mx-even" else scheme.choice


def _own_offences(scheme: LinearScheme) -> list[str]:
    """What a checkpoint could hold, but llm-compressor would not make."""
    reasons: list[str] = []
    weight = scheme.weight
    for key, part in (("w", weight), ("a", scheme.input)):
        if part is None:
            continue
        spelled = f"{key}={part.spell(key)}"
        if part.choice in ("percentile", "typical"):
            reasons.append(f"{spelled}: no observer keeps a percentile or goes by σ; use absmax or mse")
        if part.reach != 1:
            reasons.append(f"{spelled}: no observer leaves room beyond what it saw; drop reach-{part.reach:g}")
        if part.choice == "mx-floor":
            reasons.append(f"{spelled}: MX scales are rounded to even there; use mx-even")
        if part.format == "e2m3":
            reasons.append(f"{spelled}: no 6-bit MX format before llm-compressor 0.15; use mxfp8/mx-even")
    if weight is not None and weight.format.startswith("sint"):
        reasons.append(f"w={weight.format}: llm-compressor rounds to −2^(b−1) too; use {weight.format[1:]}")
    if weight is not None and weight.scale == "float16":
        reasons.append("w=…/scale-float16: scales take the model's own dtype there; drop scale-float16")
    if weight is not None and weight.scale == "e8m0" and weight.format.startswith("int"):
        reasons.append("w=…/scale-e8m0: powers of two are for MX formats there; drop scale-e8m0")
    return reasons


_RECIPE = Recipe(
    "llm-compressor",
    RECIPE,
    lambda plan, head: yaml.safe_dump(recipe(plan, head), sort_keys=False, width=120),
    (
        f"run it with llmcompressor.oneshot(model=…, dataset=…, recipe={RECIPE!r})",
        "llm-compressor chooses scales itself: weights by its own rule, static inputs from the tokens it is given",
    ),
)
check, write = _RECIPE.check, _RECIPE.write

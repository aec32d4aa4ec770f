"""The plan as torchao's FqnToConfig, for `quantize_` and transformers' TorchAoConfig.

A plan without static inputs is written as torchao's own JSON (``torchao.json``, read by ``config_from_dict``). Static
scales are tensors, which that JSON cannot hold, so a plan that has some is written as Python (``torchao_config.py``,
with a value ``config``) with the scales of this model in it. Only torchao's stable configs are used, not its
prototypes. torchao rounds the weights anew, with scales of its own (range ÷ 127.5 for int8).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qarat.ground.runtime import Progress
from qarat.model.layers import QuantLinear
from qarat.model.model import Model
from qarat.stages.export.recipes import UnsayableError, float_sites, refuse_transforms, translate
from qarat.values.plans import Assignment, Plan
from qarat.values.schemes import Granularity, LinearScheme, TensorScheme

EXTRA = ""
NEEDS: tuple[str, ...] = ()
JSON, PYTHON = "torchao.json", "torchao_config.py"

_ALTERNATIVES = (
    "torchao holds w=int8/(tensor|channel) with a=int8/(token|tensor/static), w=intB/(channel|gN) alone or with "
    "a=int8/token/asymmetric, w=e4m3/(tensor|channel|gN) alone and w=e4m3/channel with a=e4m3/token; change these "
    "sites in the plan (`rules`), leave them in float, or use another `format`"
)

Config = dict[str, Any]
"""A config as torchao's JSON spells it: ``_type``, ``_version``, ``_data``."""


def _made(kind: str, version: int, **fields: Any) -> Config:
    return {"_type": kind, "_version": version, "_data": fields}


_ROW = _made("PerRow", 1, dim=-1)


def check(model: Model, plan: Plan) -> None:
    """Refuse what torchao cannot say (protocol `qarat.stages.export.base.Exporter`)."""
    refuse_transforms(plan, "torchao")
    configs(plan)


def write(model: Model, plan: Plan, folder: Path, *, progress: Progress) -> Sequence[str]:
    """Write the config (protocol `qarat.stages.export.base.Exporter`)."""
    by_site = configs(plan)
    notes = ("torchao rounds the weights anew, with scales of its own",)
    if not any(scheme.input and scheme.input.static for scheme in plan.projections.values()):
        text = json.dumps(_made("FqnToConfig", 1, fqn_to_config=by_site), indent=1)
        (folder / JSON).write_text(text + "\n", encoding="utf-8")
        return (f"use it with quantize_(model, config_from_dict(json.load(open({JSON!r}))), filter_fn=None)", *notes)
    (folder / PYTHON).write_text(_python(by_site, _input_scales(model, progress)), encoding="utf-8")
    return (
        f"static scales are tensors, which torchao's JSON cannot hold, so this is Python: {PYTHON}",
        "use it with quantize_(model, config, filter_fn=None)",
        *notes,
    )


def configs(plan: Plan) -> dict[str, Config | None]:
    """Every projection's config as torchao's JSON spells it; None where it stays in float.

    Args:
        plan: Any; of a static input, the scale is not in the config.

    Raises:
        UserError: Listing every site torchao cannot hold.
    """
    quantized = translate(plan, "torchao", _config, _ALTERNATIVES)
    whole = {site.name: quantized.get(site.name) for site in plan.sites if site.kind == "projection"}
    assert [name for name, config in whole.items() if config is None] == float_sites(plan)
    return whole


def _integers(weight: TensorScheme, given: TensorScheme | None) -> Config:
    """Integers of any width, whose inputs, if they are quantized, have zero points (torchao 0.18 asserts them)."""
    part = "" if given is None else "weight_"
    fields: Config = {
        "weight_dtype": {"_type": "torch.dtype", "_data": weight.format},
        f"{part}granularity": _made("PerAxis", 1, axis=0) if weight.granularity.cols is None else _grain(weight),
        f"{part}mapping_type": _mapping(weight),
    }
    if given is None:
        return _made("IntxWeightOnlyConfig", 2, **fields)
    return _made("Int8DynamicActivationIntxWeightConfig", 2, **fields, act_mapping_type=_mapping(given))


_ANY_INTEGERS = r"w=(int8/channel/asymmetric|int[2-7]/channel(/asymmetric)?|int[2-8]/g\d+(/asymmetric)?)"
_RULES: dict[str, Callable[[TensorScheme, TensorScheme | None], Config]] = {
    # Spelling of a scheme, as a regular expression, to the config for its weight and input.
    r"w=int8/(tensor|channel)": lambda w, a: _made("Int8WeightOnlyConfig", 2, granularity=_grain(w)),
    r"w=int8/(tensor|channel) a=int8/tensor/static": lambda w, a: _made(
        "Int8StaticActivationInt8WeightConfig", 1, granularity=[_made("PerTensor", 1), _grain(w)]
    ),
    r"w=int8/(tensor|channel) a=int8/token": lambda w, a: _made(
        "Int8DynamicActivationInt8WeightConfig", 2, granularity=[_ROW, _grain(w)]
    ),
    f"{_ANY_INTEGERS}( a=int8/token/asymmetric)?": _integers,
    r"w=e4m3/(tensor|channel|g\d+)": lambda w, a: _made("Float8WeightOnlyConfig", 2, granularity=_grain(w)),
    r"w=e4m3/channel a=e4m3/token": lambda w, a: _made(
        "Float8DynamicActivationFloat8WeightConfig", 2, granularity=[_ROW, _ROW]
    ),
}


def _config(assignment: Assignment, scheme: LinearScheme) -> Config:
    weight, given = scheme.weight, scheme.input
    if weight is None:
        raise UnsayableError("an input is quantized only with its weight")
    for part in (weight, given):
        if part is not None and (part.scale != "float32" or part.choice != "absmax"):
            raise UnsayableError("scales are the largest magnitude's, in float32, in its stable configs")
    cols, spelled = assignment.site.shape[1], str(scheme)
    if weight.granularity.cols is not None and cols % weight.granularity.cols:
        raise UnsayableError(f"{cols} channels are no whole number of groups of {weight.granularity.cols}")
    if weight.granularity.rows not in (None, 1):
        raise UnsayableError("no tiles of several channels in its stable configs")
    rule = next((rule for pattern, rule in _RULES.items() if re.fullmatch(pattern, spelled)), None)
    if rule is None:
        raise UnsayableError("no stable config for it")
    return rule(weight, given)


def _grain(weight: TensorScheme) -> Config:
    """A weight's granularity: whole, a row, or a group of a row."""
    match weight.granularity:
        case Granularity(None, None):
            return _made("PerTensor", 1)
        case Granularity(1, int(cols)):
            return _made("PerGroup", 1, group_size=cols)
        case _:
            return _ROW


def _mapping(scheme: TensorScheme) -> Config:
    return {"_type": "MappingType", "_data": "SYMMETRIC" if scheme.symmetric else "ASYMMETRIC"}


def _input_scales(model: Model, progress: Progress) -> dict[str, float]:
    """Full site name to the scale of its static input, from the quantized model's blocks."""
    scales: dict[str, float] = {}
    for index, block in model.walk():
        for inner, module in block.named_modules(prefix=f"{model.family.blocks}.{index}"):
            if isinstance(module, QuantLinear) and module.input_scales is not None:
                scales[inner] = module.input_scales.scale.item()
        progress("write", index + 1, model.blocks)
    return scales


def _python(by_site: Mapping[str, Config | None], scales: Mapping[str, float]) -> str:
    """A Python module with the value ``config``."""
    types = sorted(_types(list(by_site.values())))
    lines = [
        '"""A plan of qarat as torchao\'s FqnToConfig: quantize_(model, config, filter_fn=None)."""',
        "",
        "from collections import OrderedDict",
        "",
        "import torch",
        f"from torchao.quantization import {', '.join(['FqnToConfig', *types])}",
        "",
        "config = FqnToConfig(",
        "    OrderedDict(",
        "        {",
    ]
    for name, config in by_site.items():
        lines.append(f"            {name!r}: {_call(config, scales.get(name))},")
    return "\n".join([*lines, "        }", "    )", ")", ""])


def _types(value: Any) -> set[str]:
    """Names that a config's calls are made of, ``torch.dtype`` aside."""
    if isinstance(value, dict):
        own = {value["_type"]} - {"torch.dtype"} if "_type" in value else set[str]()
        return own.union(*map(_types, value.values()))
    return set[str]().union(*map(_types, value)) if isinstance(value, list) else set()


def _call(value: Any, scale: float | None = None) -> str:
    """The Python that makes what torchao's JSON stands for.

    Args:
        value: A config, or a part of one.
        scale: Of a static input; it gets the three dimensions that inputs of a transformers model have.
    """
    if isinstance(value, list):
        return "[" + ", ".join(map(_call, value)) + "]"
    if not isinstance(value, dict):
        return repr(value)
    kind, data = value["_type"], value["_data"]
    if isinstance(data, str):
        return f"torch.{data}" if kind == "torch.dtype" else f"{kind}.{data}"
    fields = [f"{name}={_call(field)}" for name, field in data.items()]
    if scale is not None:
        fields.append(f"act_quant_scale=torch.tensor([[[{scale!r}]]])")
    return f"{kind}({', '.join(fields)})"

"""What the parts of a module that engines merge must have in common, and columns that are in another order.

A merged module has one input, and so one static input scale. Of float weights under one scale for the whole matrix it
has one scale too: engines round the parts anew under the largest (FP8), or take the largest for all of them (NVFP4).
Integer weights keep a scale for each part, spread over its output channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from qarat.stages.read_back.arguments import Args
from qarat.stages.read_back.besides import graveness
from qarat.stages.read_back.folders import Findings
from qarat.stages.read_back.stored import ConfigGroup
from qarat.values.engines import FUSIONS, Engine
from qarat.values.records.verification import Severity

_TOGETHER = "calibrate them together: they read the same input"
_AGAIN = "quantize the parts again under one scale, that of the largest (`qarat quantize` does)"


class _Shared(NamedTuple):
    """A number that the parts of a merged module must have in common, and what it means where they do not.

    Attributes:
        leaf: Of the tensor that holds it.
        called: In words.
        severity: If the parts differ.
        then: What the engine does about it.
        remedy: What to do about it.
    """

    leaf: str
    called: str
    severity: Severity
    then: str
    remedy: str


_SHARED = (
    _Shared("input_scale", "input scales", "error", "the engine takes the largest", _TOGETHER),
    _Shared("input_zero_point", "zero points of inputs", "error", "the engine takes one range for all", _TOGETHER),
    _Shared("input_global_scale", "global input scales", "error", "the engine takes the largest", _TOGETHER),
    _Shared(
        "weight_global_scale", "global weight scales", "error", "the engine takes one for all, other weights", _AGAIN
    ),
    _Shared(
        "weight_scale",
        "FP8 weight scales",
        "warning",
        "the engine rounds all parts anew under the largest, so that other weights run than are stored",
        _AGAIN,
    ),
)


def shared_numbers(group: ConfigGroup, tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Those of a module's numbers that it must have in common with what it is merged with, by the leaf they lie in."""
    inputs, weights = group.inputs, group.weights
    leaves: list[str] = []
    if inputs is not None and inputs.kind == "tensor" and not inputs.dynamic:
        leaves += [leaf for leaf in ("input_scale", "input_zero_point") if leaf in tensors]
    # Without a low input, engines spread the scale over the channels of each part.
    if weights is not None and inputs is not None and weights.type == "float" and weights.kind == "tensor":
        leaves.append("weight_scale")
    leaves += [leaf for leaf in ("weight_global_scale", "input_global_scale") if leaf in tensors]
    return {leaf: float(tensors[leaf].float().reshape(-1)[0]) for leaf in leaves}


def check_shared(numbers: Mapping[str, Mapping[str, float]], engines: Sequence[Engine], findings: Findings) -> None:
    """Check what the parts of merged modules must have in common.

    Args:
        numbers: Module's name to its `shared_numbers`.
        engines: Whose rules to follow; those that merge nothing are passed over.
        findings: What is found is added to it.
    """
    fusing = [engine.name for engine in engines if engine.fuses]
    if not fusing:
        return
    differing: dict[_Shared, list[dict[str, float]]] = {}
    for home in dict.fromkeys(name.rpartition(".")[0] for name in numbers):
        for fusion in FUSIONS:
            parts = {name: numbers[name] for leaf in fusion.parts if (name := f"{home}.{leaf}") in numbers}
            for shared in _SHARED:
                own = {name: of[shared.leaf] for name, of in parts.items() if shared.leaf in of}
                if len(set(own.values())) > 1:
                    differing.setdefault(shared, []).append(own)
    for shared, modules in differing.items():
        first, more = modules[0], len(modules) - 1
        listed = ", ".join(f"{name.rpartition('.')[2]} {value:.6g}" for name, value in first.items())
        listed += f", and so in {more} more" if more else ""
        broken = "tie broken: " if shared.severity == "error" else ""
        what = f"{broken}{shared.called} of one fused module differ ({listed}); {shared.then}"
        names = [name for own in modules for name in own]
        findings.add(shared.severity, what, shared.remedy, names, fusing, blocks=False)


def check_orders(
    orders: Mapping[str, Tensor], args: Mapping[str, Args], engines: Sequence[Engine], findings: Findings, lenient: bool
) -> None:
    """Check whether engines follow columns that belong to groups in another order than they lie in.

    Args:
        orders: Module's name to the group of every column.
        args: The same modules to how their weights are quantized.
        engines: Whose rules to follow.
        findings: What is found is added to it.
        lenient: Whether what breaks in an engine's older versions alone is only a warning.
    """
    for name in orders:
        for engine in engines:
            if engine.order == "group" and args[name].reorders:
                continue
            why = "it reads none" if engine.order == "never" else f"it reads none under actorder {args[name].actorder}"
            what = (
                f"columns belong to groups as weight_g_idx says, and {why}: other weights would run, or loading stops"
            )
            remedy = f"quantize again without group order ({engine.change('order') or 'actorder must be group'})"
            severity = graveness(engine, "error", lenient=lenient)
            findings.add(severity, what, remedy, (name,), (engine.name,), blocks=False)
    fusing = [engine.name for engine in engines if engine.fuses]
    for home in dict.fromkeys(name.rpartition(".")[0] for name in orders) if fusing else ():
        for fusion in FUSIONS:
            names = [f"{home}.{leaf}" for leaf in fusion.parts]
            own = [orders.get(name) for name in names]
            if len({None if o is None else tuple(o.tolist()) for o in own}) > 1:
                what = "tie broken: weight_g_idx of one fused module differs between its parts; the engine has one"
                findings.add("error", what, "quantize its parts again in one order", names, fusing, blocks=False)

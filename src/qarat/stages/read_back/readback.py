"""A folder read back and compared with the run it was exported from: weights, scales, schemes, logits."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from msgspec.structs import replace
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.maths.tensors import QuantizedTensor
from qarat.maths.tiles import Scales
from qarat.model.attention import transformers_attention
from qarat.model.layers import QuantCache, QuantLinear
from qarat.model.model import Model
from qarat.stages.read_back.folders import Findings
from qarat.values.plans import Plan
from qarat.values.records.verification import WeightComparison
from qarat.values.roles import CACHES
from qarat.values.schemes import NEAREST, CacheScheme, LinearScheme, Scheme, TensorScheme

TENSOR_SCALE_LIMIT = 2.0**-22
"""What an NVFP4 weight may differ by, relatively: the file keeps the reciprocal of our tensor scale, in float32."""

_REDO = "export the run again"


def compare_weights(
    stored: Model, run: Model, plan: Plan, findings: Findings, *, progress: Progress = no_progress
) -> WeightComparison:
    """Compare every projection, and everything else in float, block by block.

    Args:
        stored: From the folder.
        run: Quantized by the plan.
        plan: Of the run.
        findings: Every difference is added to it.
        progress: Called after every block.

    Raises:
        UserError: If the two are not of the same shape at all.
    """
    if [s.shape for s in stored.sites()] != [s.shape for s in run.sites()]:
        raise UserError(f"{stored.folder} and {run.folder} are models of different shapes; give the run it came from")
    lost = [a.site.name for a in plan.assignments if a.site.kind == "product" and not a.is_float]
    if lost:
        problem = "the plan quantizes attention products, which the folder cannot hold: engines leave them in float"
        findings.add("error", problem, "export a plan with attention products in float", lost)
    _compare_floats(stored.outside(), run.outside(), "", findings)
    sites = equal = 0
    largest = 0.0
    progress("compare", 0, stored.blocks)
    for index, block in stored.walk():
        theirs, prefix = run.block(index), f"{stored.family.blocks}.{index}."
        for inner in stored.family.projections:
            difference = _compare_site(
                prefix + inner, block.get_submodule(inner), theirs.get_submodule(inner), plan[prefix + inner], findings
            )
            sites, equal, largest = sites + 1, equal + (difference == 0), max(largest, difference)
        _compare_caches(block, theirs, f"{prefix}{stored.family.attention}", findings)
        _compare_floats(_float_parameters(block), _float_parameters(theirs), prefix, findings)
        progress("compare", index + 1, stored.blocks)
    return WeightComparison(sites, equal, largest)


@torch.no_grad()
def logits_of(model: Model, windows: Tensor) -> Tensor:
    """Logits of every token of some windows, (windows, length, vocabulary) float32, block by block."""
    hidden = model.embed(windows)
    for index, block in model.walk():
        hidden = model.run_block(index, block, hidden)
    return model.logits(hidden)


@torch.no_grad()
def transformers_logits(folder: Path, dtype: torch.dtype, windows: Tensor) -> Tensor:
    """Logits as transformers computes them, the whole folder loaded by its own quantizer; CPU, float32 returned.

    Raises:
        UserError: If transformers cannot load or run it, with its own words.
    """
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):  # progress bars of the library's own
            local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
            attention = transformers_attention(AutoConfig.from_pretrained(folder, **local))
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation=attention, use_safetensors=True, **local
            )
            return model.eval()(input_ids=windows.cpu(), use_cache=False).logits.float()
    except Exception as error:  # whatever a loader of somebody else's raises
        raise UserError(f"transformers cannot run {folder}: {type(error).__name__}: {error}") from error


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Largest difference over largest magnitude of ``b``; infinite where one of the two is not finite."""
    a, b = a.float().cpu(), b.float().cpu()
    if a.shape != b.shape or not (a.isfinite().all() and b.isfinite().all()):
        return math.inf
    scale = float(b.abs().max())
    worst = float((a - b).abs().max())
    return worst / scale if scale else (0.0 if worst == 0 else math.inf)


def _compare_site(name: str, mine: nn.Module, theirs: nn.Module, planned: Scheme, findings: Findings) -> float:
    """Relative difference of one projection's weight; 0 only where its scales are equal too."""
    assert isinstance(planned, LinearScheme)
    stored = mine.scheme if isinstance(mine, QuantLinear) else LinearScheme()
    if _comparable(stored) != _comparable(planned):
        problem = f"the folder runs {stored}, the plan says {planned}"
        findings.add("error", problem, _REDO, (name,))
        return math.inf
    if stored != planned and stored.input != planned.input and planned.input is not None and not planned.input.static:
        problem = f"engines choose dynamic input scales themselves ({stored}); the plan was measured with {planned}"
        findings.add("warning", problem, "plan with the engines' choice to measure what they run", (name,))
    weights = [m.quantized or m.value if isinstance(m, QuantLinear) else cast(Tensor, m.weight) for m in (mine, theirs)]
    difference = _weight_difference(weights[0], weights[1])
    scales = [m.input_scales if isinstance(m, QuantLinear) else None for m in (mine, theirs)]
    if not _same_scales(scales[0], scales[1]):
        findings.add("error", "its static input scales differ from the run's", _REDO, (name,))
        difference = max(difference, math.ulp(1.0))
    if not _same(getattr(mine, "bias", None), getattr(theirs, "bias", None)):
        findings.add("error", "its bias differs from the run's", _REDO, (name,))
    over = planned.weight is not None and planned.weight.scale == "e4m3"
    if difference > (TENSOR_SCALE_LIMIT if over else 0):
        findings.add("error", "its weight differs from the run's", _REDO, (name,))
    return difference


def _compare_caches(mine: nn.Module, theirs: nn.Module, home: str, findings: Findings) -> None:
    """How two blocks keep keys and values, and under which scales."""
    here, there = (next((m for m in block.modules() if isinstance(m, QuantCache)), None) for block in (mine, theirs))
    for name in CACHES:
        (stored, scales), (planned, known) = (_cache(cache, name) for cache in (here, there))
        if stored != planned:
            findings.add("error", f"the folder keeps {stored}, the plan says {planned}", _REDO, (f"{home}.{name}",))
        elif not _same_scales(scales, known):
            findings.add("error", "its static scales differ from the run's", _REDO, (f"{home}.{name}",))


def _cache(cache: QuantCache | None, name: str) -> tuple[CacheScheme, Scales | None]:
    """Scheme and scales of keys or values, without what a folder keeps as numbers."""
    kept = None if cache is None else cache.schemes[name].kept
    return CacheScheme(kept and _stripped(kept)), None if cache is None else cache.scales.get(name)


def _weight_difference(mine: QuantizedTensor | Tensor, theirs: QuantizedTensor | Tensor) -> float:
    if isinstance(mine, QuantizedTensor) and isinstance(theirs, QuantizedTensor):
        if mine.codes.equal(theirs.codes) and _same_scales(mine.scales, theirs.scales):
            return 0.0
        mine, theirs = mine.dequantize(), theirs.dequantize()
    if isinstance(mine, QuantizedTensor) or isinstance(theirs, QuantizedTensor):
        return math.inf
    return 0.0 if mine.equal(theirs) else max(relative_difference(mine, theirs), math.ulp(0.0))


def _same_scales(mine: Scales | None, theirs: Scales | None) -> bool:
    if mine is None or theirs is None:
        return mine is theirs
    return (
        _same(mine.scale, theirs.scale)
        and _same(mine.zero_point, theirs.zero_point)
        and _same(mine.tensor_scale, theirs.tensor_scale)
    )


def _same(mine: Tensor | None, theirs: Tensor | None) -> bool:
    if mine is None or theirs is None:
        return mine is theirs
    return mine.shape == theirs.shape and bool(mine.float().equal(theirs.float()))


def _comparable(scheme: LinearScheme) -> LinearScheme:
    """A scheme without what a folder does not keep, or keeps as numbers, which are compared themselves.

    That is how scales were chosen and codes found; of weights and static inputs also the kind of the scales, and that
    the lowest code of an integer was left out.
    """
    weight, given = scheme.weight, scheme.input
    if given is not None:
        given = _stripped(given) if given.static else replace(given, choice="absmax", percentile=99.9)
    return LinearScheme(weight and _stripped(weight), given)


def _stripped(part: TensorScheme) -> TensorScheme:
    plain = part.format.removeprefix("s")
    return replace(part, format=plain, choice="absmax", percentile=99.9, scale="float32", rounding=NEAREST, reach=1.0)


def _float_parameters(block: nn.Module) -> dict[str, Tensor]:
    """Everything of a block that is no projection's."""
    projections = {name for name, m in block.named_modules() if isinstance(m, QuantLinear | nn.Linear)}
    return {name: p for name, p in block.named_parameters() if name.rpartition(".")[0] not in projections}


def _compare_floats(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], prefix: str, findings: Findings) -> None:
    for name in sorted(mine.keys() & theirs.keys()):
        if not _same(mine[name], theirs[name]):
            findings.add("error", f"{prefix}{name} differs from the run's", _REDO)

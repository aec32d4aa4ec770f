"""What can be said of a folder's numbers by themselves: scales that are none, codes that are dead or pinned to the end.

A static scale per tensor follows the largest value that calibration saw. Where one block's is many times that of the
same projection elsewhere, an activation spike probably stands behind it, and everything else is left with a few codes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from qarat.stages.read_back.arguments import Args
from qarat.stages.read_back.folders import Findings, StoredFolder, StoredModule
from qarat.stages.read_back.layout import float_offences, layout_offences
from qarat.stages.read_back.matching import Match
from qarat.stages.read_back.merged import check_orders, check_shared, shared_numbers
from qarat.stages.read_back.simulation import group_order, raw_codes
from qarat.stages.read_back.stored import ConfigGroup
from qarat.values.engines import Engine
from qarat.values.formats import FLOAT16_LARGEST, IN_BFLOAT16

SPIKE_FACTOR = 20.0
"""An input scale so many times the median of its siblings is called a spike's; without spikes they stay within 5."""

# Share of a weight's codes at the ends of the format beyond which it counts as clipped, by bits. A scale set by the
# largest value puts one code of each group there; with 4 bits the rounding of large values adds some per cent.
_CLIPPED = {8: 0.01, 6: 0.05, 5: 0.1, 4: 0.2}
_SCALES = ("weight_scale", "weight_global_scale", "input_scale", "input_global_scale")
_AGAIN = "quantize again: the model would give NaN or nonsense"


def check_contents(
    folder: StoredFolder, matches: Mapping[str, Match], engines: Sequence[Engine], findings: Findings, *, lenient: bool
) -> None:
    """Read every tensor of every module once and judge its numbers.

    Args:
        folder: Opened.
        matches: Module's name to its group, by one engine; modules whose tensors do not fit it are passed over.
        engines: Those asked about.
        findings: What is found is added to it.
        lenient: Whether what breaks in an engine's older versions alone is only a warning.
    """
    numbers: dict[str, dict[str, float]] = {}
    clipped: dict[str, dict[str, float]] = {}
    orders: dict[str, Tensor] = {}
    for name, module in folder.modules.items():
        group = matches[name].group
        tensors = folder.checkpoint.read_raw(f"{name}.", "cpu")
        if group is None or group.contradictions():
            if not float_offences(module):
                _check_float(module, tensors, findings)
                _check_range(folder, module, None, tensors, findings)
            continue
        if folder.config.sparse or layout_offences(module, group, folder.config.format_of(group)):
            continue
        _check_scales(module.name, tensors, _SCALES, findings)
        numbers[name] = shared_numbers(group, tensors)
        _check_range(folder, module, group, tensors, findings)
        if group.weights is not None:
            _check_codes(module, group, folder.config.format_of(group), tensors, findings, clipped)
            if (order := _order_of(module, group, tensors, findings)) is not None:
                orders[name] = order
    for name in filter(folder.checkpoint.__contains__, folder.others):
        if not (value := folder.checkpoint.read_raw(name, "cpu")[""].float()).isfinite().all():
            bad = int((~value.isfinite()).sum())
            findings.add("error", f"{name}: {bad} of {value.numel()} values are NaN or Inf", _AGAIN)
    for name in folder.cache_scales:
        home, _, leaf = name.rpartition(".")
        _check_scales(home, folder.checkpoint.read_raw(name, "cpu"), ("",), findings, leaf)
    for number, shares in clipped.items():
        least, most = (f"{100 * share:.1f}" for share in (min(shares.values()), max(shares.values())))
        problem = f"{least if least == most else f'{least} to {most}'} % of the codes are at the ends of {number}"
        remedy = "quantize again with larger scales, or measure the damage"
        findings.add("warning", f"{problem}: the scales clip", remedy, shares)
    check_shared(numbers, engines, findings)
    check_orders(orders, {name: _weights_of(matches[name]) for name in orders}, engines, findings, lenient)
    scales = {name: own["input_scale"] for name, own in numbers.items() if "input_scale" in own}
    _check_spikes(folder, matches, scales, findings)


def _weights_of(match: Match) -> Args:
    assert match.group is not None
    assert match.group.weights is not None
    return match.group.weights


def _order_of(
    module: StoredModule, group: ConfigGroup, tensors: Mapping[str, Tensor], findings: Findings
) -> Tensor | None:
    """The group of every column, where they do not lie side by side, and what is wrong with it."""
    order = group_order(tensors, module.shape[1], group)
    if "weight_g_idx" in tensors and order is None and not _weights_of(Match(group, "")).reorders:
        what = "weight_g_idx is there and says nothing: groups lie side by side"
        remedy = "none is needed here; vLLM has no place for it without actorder group, and may stop: write without it"
        findings.add("note", what, remedy, (module.name,))
    if order is None:
        return None
    wide = tensors["weight_scale"].shape[-1]
    if bad := int(((order < 0) | (order >= wide)).sum()):
        what = f"weight_g_idx: {bad} of {len(order)} columns belong to none of the {wide} groups"
        findings.add("error", what, _AGAIN, (module.name,))
        return None
    return order


def _check_float(module: StoredModule, tensors: Mapping[str, Tensor], findings: Findings) -> None:
    for leaf, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            bad = int((~tensor.float().isfinite()).sum())
            findings.add("error", f"{leaf}: {bad} of {tensor.numel()} values are NaN or Inf", _AGAIN, (module.name,))


def _check_scales(
    name: str, tensors: Mapping[str, Tensor], leaves: Sequence[str], findings: Findings, called: str = ""
) -> None:
    """Scales that are none.

    Args:
        name: Of the module.
        tensors: By the rest of their names.
        leaves: Those that are scales.
        findings: What is found is added to it.
        called: What they are called instead of by the rest of their names.
    """
    for leaf in leaves:
        if leaf not in tensors:
            continue
        stored, word = tensors[leaf], called or leaf
        # An e8m0 byte is never zero or negative; 255 is its NaN.
        scale = torch.where(stored == 255, torch.nan, 1.0) if stored.dtype == torch.uint8 else stored.float()
        for defect, bad in (
            ("NaN", scale.isnan()),
            ("infinite", scale.isinf()),
            ("negative", scale < 0),
            ("zero", scale == 0),
        ):
            if (count := int(bad.sum())) and (defect, leaf) == ("negative", "weight_scale"):
                problem = f"{word}: {count} of {scale.numel()} scales are negative: codes count downwards there"
                why = "AutoRound means it so, to use the lowest code; engines multiply by them as by others"
                findings.add("note", problem, why, (name,))
            elif count:
                findings.add("error", f"{word}: {count} of {scale.numel()} scales are {defect}", _AGAIN, (name,))


def _check_range(
    folder: StoredFolder,
    module: StoredModule,
    group: ConfigGroup | None,
    tensors: Mapping[str, Tensor],
    findings: Findings,
) -> None:
    """Weights, and static inputs as far as they were seen to reach, beyond a float16 that the config declares."""
    if folder.checkpoint.declared != torch.float16:
        return
    reached: dict[str, float] = {}
    if group is None or group.weights is None:
        reached["weight"] = float(tensors["weight"].abs().max()) if "weight" in tensors else 0.0  # a tied head has none
    elif "weight_global_scale" not in tensors and tensors["weight_scale"].is_floating_point():
        largest = max(map(abs, group.weights.scheme("weights").number_format.values))
        reached["weight"] = float(tensors["weight_scale"].float().abs().max()) * largest
    if group is not None and group.inputs is not None and "input_scale" in tensors:
        largest = group.inputs.scheme("input_activations").number_format.largest
        reached["static input"] = float(tensors["input_scale"].float().max()) * largest
    if "weight_packed" in tensors and tensors["weight_scale"].dtype in (torch.float32, torch.bfloat16, torch.float64):
        _check_scales_in_float16(module, tensors["weight_scale"].abs(), findings)
    for what, value in reached.items():
        if FLOAT16_LARGEST < value < math.inf:
            problem = (
                f"the {what} reaches {value:,.0f}, beyond the 65504 of float16, which the folder declares: NaN there"
            )
            findings.add("warning", problem, IN_BFLOAT16, (module.name,))


def _check_scales_in_float16(module: StoredModule, scales: Tensor, findings: Findings) -> None:
    """Scales of packed integers, which engines keep in the dtype that they run in."""
    lost = int(((scales > 0) & (scales.half() == 0)).sum())
    coarse = int(((scales > 0) & (scales < torch.finfo(torch.float16).tiny)).sum()) - lost
    told = "in the float16 that the folder declares, in which kernels for packed weights keep them"
    if lost:
        problem = f"weight_scale: scales are so small that they are zero {told}"
        findings.add("warning", problem, IN_BFLOAT16, (module.name,))
    elif coarse:
        findings.add("note", f"weight_scale: scales below 6.1e-05 lose digits {told}", IN_BFLOAT16, (module.name,))


def _check_codes(
    module: StoredModule,
    group: ConfigGroup,
    format: str,
    tensors: Mapping[str, Tensor],
    findings: Findings,
    clipped: dict[str, dict[str, float]],
) -> None:
    """Codes that are none, and channels without any; the share at the ends of the format goes to ``clipped``."""
    assert group.weights is not None
    codes, number = raw_codes(tensors, group, format), group.weights.scheme("weights").number_format
    if bad := int(codes.isnan().sum()):
        findings.add("error", f"weight: {bad} of {codes.numel()} codes are NaN", _AGAIN, (module.name,))
        return
    if group.weights.symmetric and (dead := int((codes == 0).all(dim=1).sum())):
        problem = f"{dead} of {codes.shape[0]} output channels are dead: all their codes are zero"
        findings.add("warning", problem, "compare with the float model; its channels may be zero too", (module.name,))
    ends = int((codes == number.values[0]).sum() + (codes == number.values[-1]).sum())
    share, limit = ends / codes.numel(), _CLIPPED.get(number.bits)
    own = tensors["weight_scale"].numel() / codes.numel()  # the one code of each scale that is meant to be there
    if group.weights.symmetric and limit is not None and share > limit + 2 * own:
        clipped.setdefault(number.name, {})[module.name] = share


def _check_spikes(
    folder: StoredFolder, matches: Mapping[str, Match], scales: Mapping[str, float], findings: Findings
) -> None:
    """Static input scales that tower over those of the same projection in other blocks."""
    largest: dict[str, dict[str, float]] = {}
    for name, scale in scales.items():
        group = matches[name].group
        assert group is not None
        assert group.inputs is not None
        code = group.inputs.scheme("input_activations").number_format.largest
        largest.setdefault(folder.modules[name].leaf, {})[name] = scale * code
    for leaf, values in largest.items():
        for name, value in values.items():
            others = [v for other, v in values.items() if other != name]
            if len(others) < 2:
                continue
            usual = statistics.median(others)
            if value > SPIKE_FACTOR * usual > 0:
                problem = (
                    f"a spike probably sits here: the static input scale reaches {value:.4g}, "
                    f"{value / usual:.0f} times the median of the other {leaf}s ({usual:.4g})"
                )
                remedy = "keep this input in higher precision, or measure it `against` the float model"
                findings.add("warning", problem, remedy, (name,))

"""Whether an engine has a kernel for what it will run of a module, and what else that kernel asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from qarat.stages.read_back.folders import Findings, StoredFolder, StoredModule
from qarat.stages.read_back.matching import Match
from qarat.stages.read_back.stored import MIXED, ConfigGroup
from qarat.values.engines import CPU, Engine, EngineKernel, cut_parts, fusion_of, kernel_for, kernel_kind
from qarat.values.records.verification import Severity

_NO_TILES = "quantize these weights per channel (w=e4m3/channel a=e4m3/token), or in tiles that fit"


class Case(NamedTuple):
    """One module under one engine, and where to write down what is found of it.

    Attributes:
        grave: How severe it is if the engine cannot run the module.
    """

    folder: StoredFolder
    engine: Engine
    module: StoredModule
    match: Match
    grave: Severity
    findings: Findings

    def add(self, severity: Severity, problem: str, remedy: str, *, blocks: bool = True) -> None:
        """As `Findings.add`, of this module and engine."""
        self.findings.add(severity, problem, remedy, (self.module.name,), (self.engine.name,), blocks=blocks)


def part_of(case: Case) -> Literal["head", "embedding", ""]:
    """What lies outside the blocks: not every version of every engine reads it where it is quantized."""
    folder, module = case.folder, case.module
    is_head = module.name == folder.family.head
    if module.is_embedding or (is_head and folder.checkpoint.config.tie_word_embeddings):
        return "embedding"
    return "head" if is_head else ""


def check_kernel(case: Case, generation: str) -> None:
    """Whether an engine has a kernel for what it will run, and on which GPUs."""
    engine, group, config = case.engine, case.match.group, case.folder.config
    if group is None or group.weights is None or group.contradictions() or runs_unquantized(case.folder, engine):
        return
    format = config.format_of(group)
    kernel = kernel_for(engine, kernel_kind(group.scheme, format))
    if config.format in ("", MIXED) and not group.format:
        top = repr(config.format) if config.format else "missing"
        missing = f"no kernel found: the format on top is {top}, and {group.name} has none of its own"
        case.add(case.grave, missing, f'give {group.name} a "format"')
    elif kernel is None:
        unknown = f"no kernel known for {group.spell()} stored as {format}"
        remedy = "choose a scheme it has a kernel for (docs/verifying.md lists them)"
        case.add(case.grave if engine.all_kernels else "warning", unknown, remedy, blocks=False)
    else:
        if group.inputs is not None and kernel.kind.endswith(" weights"):
            partial = f"{group.spell()}: runs as {kernel.kind}, its input is left in float"
            case.add("warning", partial, "choose an input scheme it has a kernel for")
        if kernel.since:
            case.add("note", f"{kernel.kind}: not in all versions", kernel.since)
        _check_numbers(case, kernel, group)
        if part_of(case) == "head" and (doubt := engine.doubt(kernel.kind, group.scheme)):
            case.add("warning", f"users report that {kernel.kind} fails on a head", doubt)
        if generation:
            _check_generation(case, kernel, group, generation)
        else:
            case.add("note", f"{kernel.kind} needs {kernel.reach}", "ask about yours with `gpu`")


def _check_numbers(case: Case, kernel: EngineKernel, group: ConfigGroup) -> None:
    """Whether a kernel finds scales by other groups than are stored, or takes no groups of that size."""
    assert group.weights is not None
    if group.inputs is not None and group.inputs.dynamic is True and (other := _runs_by(kernel, group)):
        unlike = f"{group.spell()}: its dynamic input runs {other}, which are other numbers than computed here"
        case.add("warning", unlike, "write the group so, and measure that")
    if kernel.groups and group.weights.kind == "group" and group.weights.group_size not in kernel.groups:
        sizes = ", ".join(map(str, kernel.groups))
        unusual = f"{kernel.kind} takes groups of {sizes}, not of {group.weights.group_size}"
        case.add("warning", unusual, kernel.other_groups)


def _runs_by(kernel: EngineKernel, group: ConfigGroup) -> str:
    """How else a kernel finds the scales of a dynamic FP8 input than a group says; empty where it is the same."""
    assert group.inputs is not None
    assert group.weights is not None
    if kernel.kind != "fp8":
        return ""
    tile = group.weights.block
    if not group.inputs.symmetric:
        return "symmetrically"
    if group.weights.kind == "block" and tile is not None:
        return "" if (group.inputs.kind, group.inputs.group_size) == ("group", tile[1]) else f"in groups of {tile[1]}"
    return "" if group.inputs.kind == "token" else "per token"


def _check_generation(case: Case, kernel: EngineKernel, group: ConfigGroup, generation: str) -> None:
    """Whether a kernel runs on a GPU generation, and what runs instead."""
    runs = kernel.on(generation)
    refused = f"{group.spell()}: {kernel.kind} does not run on {generation}"
    if not runs:
        case.add(case.grave, refused, f"choose another scheme or GPU ({_first(kernel)})", blocks=False)
    elif runs != kernel.kind:
        case.add("warning", f"{refused}, there is {runs} instead", f"see {_first(kernel)}")
    if generation == CPU and kernel.on_cpu:
        what = f"{kernel.kind}: {kernel.on_cpu}"
        case.findings.add("warning", what, f"see {_first(kernel)}", engines=(case.engine.name,))
    if kernel.unverified:
        doubt = f"not verified in a source: {kernel.kind}: {kernel.unverified}"
        case.findings.add("note", doubt, "try it on the machine itself", engines=(case.engine.name,))


def check_tiles(cases: Sequence[Case]) -> None:
    """Whether tiles of weights that an engine merges end where a weight does, and those of inputs where a row does."""
    rows = {case.module.name: case.module.shape[0] for case in cases}
    for case in cases:
        group, fusion, cols = case.match.group, fusion_of(case.module.leaf), case.module.shape[1]
        if group is None or group.weights is None or group.contradictions() or is_torn(case.match):
            continue
        if (block := group.weights.block) is None or group.weights.kind != "block":
            continue
        if group.inputs is not None and group.inputs.kind != "group" and cols % block[1]:
            what = (
                f"stops when it runs: {cols} input channels are no whole tiles of {block[1]}, by which it rounds inputs"
            )
            case.add(case.grave, what, _NO_TILES, blocks=False)
        if fusion is None:
            continue
        home = case.module.name.rpartition(".")[0]
        cut = cut_parts({part: rows[f"{home}.{part}"] for part in fusion.parts}, block[0])
        if cut:
            what = f"refused: in {fusion.name}, one module there, {' and '.join(cut)}: no whole tiles of {block[0]}"
            case.add(case.grave, what, _NO_TILES, blocks=False)


def _first(kernel: EngineKernel) -> str:
    """The first of a row's sources."""
    return kernel.source.partition(";")[0]


def runs_unquantized(folder: StoredFolder, engine: Engine) -> bool:
    """Whether an engine goes by a format on top that says nothing, and so quantizes nothing."""
    return not engine.group_format and folder.config.format == MIXED


def is_torn(match: Match) -> bool:
    """Whether the parts of a fused module would get different schemes, each alone."""
    groups = [group for _, group in match.parts]
    if not any(groups):
        return False
    first = groups[0]
    return any((g is None) != (first is None) or (g and first and not g.same_as(first)) for g in groups)

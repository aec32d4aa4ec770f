"""What each engine will run, module by module, and what is wrong with that: from config and headers alone."""

from __future__ import annotations

from collections.abc import Sequence

from qarat.stages.read_back.besides import check_besides, graveness
from qarat.stages.read_back.folders import Findings, StoredFolder, StoredModule
from qarat.stages.read_back.kernels import Case, check_kernel, check_tiles, is_torn, part_of, runs_unquantized
from qarat.stages.read_back.layout import float_offences, layout_offences
from qarat.stages.read_back.matching import Match, listed_targets, match_modules, names_matched_by, same_name
from qarat.stages.read_back.stored import MIXED, ConfigGroup
from qarat.values.engines import Engine
from qarat.values.records.verification import ModuleReport, Running

Matches = dict[str, dict[str, Match]]
"""Engine's name to module's name to what it makes of it."""

_EXPORT = "write the folder again, with one exact target for each module (`qarat export` does)"
_TENSORS = "write the folder again, or correct the group so that it says how these tensors are stored"
_LOST = "correct config_groups or ignore so that the module gets the group it was stored under"


def resolve(
    folder: StoredFolder, engines: Sequence[Engine], generation: str, findings: Findings, *, lenient: bool
) -> tuple[tuple[ModuleReport, ...], Matches]:
    """Resolve every module the way each engine does.

    Args:
        folder: Opened.
        engines: Whose rules to follow.
        generation: GPU generation (or ``cpu``) the folder must run on; empty if none was asked about.
        findings: What is found is added to it.
        lenient: Whether what breaks in an engine's older versions alone is only a warning.
    """
    _check_config(folder, engines, findings)
    check_besides(folder, engines, findings, lenient=lenient)
    matches = {engine.name: match_modules(engine, folder.config, folder.modules) for engine in engines}
    for engine in engines:
        grave = graveness(engine, "error", lenient=lenient)
        cases = [
            Case(folder, engine, m, matches[engine.name][m.name], grave, findings) for m in folder.modules.values()
        ]
        if folder.config.sparse:  # so that no tensor is as its group says
            continue
        for case in cases:
            _check_module(case)
        if engine.fuses:  # transformers computes in float, anywhere
            for case in cases:
                check_kernel(case, generation)
            check_tiles(cases)
    _check_overlaps(folder, findings)
    _check_agreement(folder, [e for e in engines if e.current or not lenient], matches, findings)
    reports = tuple(_report(folder, m, engines, matches) for m in folder.modules.values() if not m.is_embedding)
    return reports, matches


def _check_config(folder: StoredFolder, engines: Sequence[Engine], findings: Findings) -> None:
    """What is wrong whatever the engine."""
    config, modules = folder.config, folder.modules.values()
    for group in config.groups:
        for why in group.contradictions():
            findings.add("error", f"{group.name}: {why}", "correct the group; engines refuse the config as it is")
        if group.is_attention:
            continue
        if group.weights is None and (fusing := [engine.name for engine in engines if engine.fuses]):
            what = f"refused: {group.name} has no weights, and its input alone cannot be quantized there"
            findings.add("error", what, "give it weights, or leave the group out", engines=fusing, blocks=False)
        idle = [t for t in group.targets if not any(names_matched_by(t, m) for m in modules)]
        if len(idle) == len(group.targets):
            findings.add(
                "error", f"{group.name} matches no module: {', '.join(map(repr, idle))}", "correct its targets"
            )
        else:
            for target in idle:
                findings.add("warning", f"target {target!r} of {group.name} matches no module", "correct or remove it")
    given = [target for group in config.groups for target in group.targets]
    for target in sorted({t for t in given if given.count(t) > 1}):
        last = listed_targets(config)[target].name
        findings.add(
            "error", f"target {target!r} stands in several groups; engines take {last}", "keep it in one group"
        )
    for entry in config.ignore:
        if not any(names_matched_by(entry, m) for m in modules):
            findings.add("note", f"the entry {entry!r} of ignore matches no module", "correct or remove it")
    plain = any(not engine.fuses for engine in engines)
    if plain and config.status != "compressed" and any(m.is_quantized for m in modules):
        problem = (
            f"quantization_status is {config.status or 'missing'!r}: transformers then takes the codes for weights"
        )
        findings.add("error", problem, 'set "quantization_status": "compressed"', engines=("transformers",))


def _check_module(case: Case) -> None:
    """Whether an engine will run a module as it is stored."""
    module, match, grave = case.module, case.match, case.grave
    if match.refusal:
        case.add(grave, f"refused: {match.refusal}", _EXPORT)
    elif _is_dropped(case):
        _report_dropped(case)
    elif match.group is None:
        for why in float_offences(module):
            lost = f"{why}, but {match.because}: engines load the codes as if they were weights, or fail"
            case.add(grave, lost if module.is_quantized else why, _LOST)
    elif match.group.contradictions() or (case.folder.left_head and module.name == case.folder.family.head):
        return  # said once, of the group or the tie
    elif is_torn(match):
        schemes = "; ".join(f"{leaf} {_spell(group)}" for leaf, group in match.parts)
        broken = f"tie broken: one module there, but its parts have other schemes ({schemes})"
        case.add(grave, broken, "give all of them one scheme (`runtime` vllm does, when planning)")
    elif match.parts and (own := dict(match.parts)[module.leaf]) and not own.same_as(match.group):
        other = f"it gets {match.group.spell()} ({match.because}), though its own name says {own.spell()} ({own.name})"
        case.add(grave, other, _EXPORT)
    elif runs_unquantized(case.folder, case.engine):
        silent = f"loads unquantized, without a word: it goes by the format on top, which is {MIXED!r}"
        case.add(grave, silent, "use a later version (https://github.com/sgl-project/sglang/pull/32736)")
    else:
        if reasons := layout_offences(module, match.group, case.folder.config.format_of(match.group)):
            case.add(grave, "; ".join(reasons), _TENSORS)
        if module.is_quantized and (part := part_of(case)) and (since := case.engine.change(part)):
            case.add("note", f"the {part} is stored quantized, which is read by some versions only", since)


def _is_dropped(case: Case) -> bool:
    """Whether an engine leaves the tensors of a quantized head or embedding out."""
    part, engine = part_of(case), case.engine
    if not part or not case.module.is_quantized:
        return False
    reads = engine.head if part == "head" else engine.embedding
    return reads == "dropped" or (reads == "class" and case.match.group is None)


def _report_dropped(case: Case) -> None:
    part, engine = part_of(case), case.engine
    assert part
    since = engine.change(part)
    if part == "head" or engine.embedding == "dropped":
        what = f"the {part} is stored quantized, and its tensors are dropped without a word: the output is gibberish"
        remedy = f"leave it in float, or take another version ({since})"
    elif case.module.is_embedding:
        what = "the embedding is stored quantized, and loading stops: it is looked up by its class, which is no target"
        remedy = f'give its group the target "Embedding" ({since})'
    else:
        what = "the head is the embedding, which is stored quantized, and cannot be multiplied with"
        remedy = f"untie the two, or leave both in float ({since})"
    case.add(case.grave, what, remedy, blocks=False)


def _check_overlaps(folder: StoredFolder, findings: Findings) -> None:
    """Modules that targets of groups with other schemes name; which one counts depends on the engine."""
    targets = listed_targets(folder.config)
    for name in folder.modules:
        named = {t: g for t, g in targets.items() if same_name(name, t)}
        first = next(iter(named.values()), None)
        if first is not None and not all(g.same_as(first) for g in named.values()):
            pairs = ", ".join(f"{t!r} of {g.name}" for t, g in named.items())
            problem = (
                f"overlapping targets {pairs}: transformers tries names first and patterns in the order of their text, "
                "vLLM and SGLang as they are listed"
            )
            findings.add("warning", problem, _EXPORT, modules=(name,))


def _check_agreement(folder: StoredFolder, engines: Sequence[Engine], matches: Matches, findings: Findings) -> None:
    """Modules that engines would run under different schemes."""
    for name in folder.modules:
        loading = {e.name: matches[e.name][name] for e in engines if not matches[e.name][name].refusal}
        groups = [match.group for match in loading.values()]
        first = groups[0] if groups else None
        if any((g is None) != (first is None) or (g and first and not g.same_as(first)) for g in groups):
            listed = "; ".join(f"{engine} {_spell(match.group)} ({match.because})" for engine, match in loading.items())
            findings.add("error", f"engines disagree: {listed}", _EXPORT, modules=(name,), engines=tuple(loading))


def _report(folder: StoredFolder, module: StoredModule, engines: Sequence[Engine], matches: Matches) -> ModuleReport:
    stored = {leaf: f"{kind} {list(shape)}" for leaf, (kind, shape) in sorted(module.tensors.items())}
    runs = tuple(_running(folder, engine, matches[engine.name][module.name]) for engine in engines)
    return ModuleReport(module.name, stored, runs)


def _running(folder: StoredFolder, engine: Engine, match: Match) -> Running:
    if match.refusal:
        return Running(engine.name, "refused", match.refusal)
    if match.group is not None and runs_unquantized(folder, engine):
        return Running(engine.name, "float", f"{match.because}, but {MIXED!r} on top")
    return Running(engine.name, _spell(match.group), match.because)


def _spell(group: ConfigGroup | None) -> str:
    return "float" if group is None else group.spell()

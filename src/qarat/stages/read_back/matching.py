"""Which group an engine gives to each module: each engine's own order, from `qarat.values.engines`, on names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from qarat.stages.read_back.folders import StoredModule
from qarat.stages.read_back.stored import ConfigGroup, StoredConfig
from qarat.values.engines import Engine, Fusion, class_name, fusion_of


class Match(NamedTuple):
    """What an engine makes of one module.

    Attributes:
        group: Its group; None if it is left in float.
        because: What decided, in words.
        refusal: Why the engine refuses to load it; empty if it does not.
        parts: In a fused module, the group that each part would get by its own name, or else by its class.
    """

    group: ConfigGroup | None
    because: str
    refusal: str = ""
    parts: tuple[tuple[str, ConfigGroup | None], ...] = ()


def listed_targets(config: StoredConfig) -> dict[str, ConfigGroup]:
    """Target to group in the order of the file; of one that is given twice the last group counts, as in engines."""
    return {target: group for group in config.groups for target in group.targets}


def same_name(name: str, target: str) -> bool:
    """Whether a target names a module: the same text, or a pattern that matches from its start."""
    return re.match(target[3:], name) is not None if target.startswith("re:") else target == name


def match_modules(engine: Engine, config: StoredConfig, modules: Mapping[str, StoredModule]) -> dict[str, Match]:
    """Name of every module to what the engine makes of it."""
    targets = listed_targets(config)
    if engine.by_text:
        targets = {t: targets[t] for t in sorted(targets, key=lambda t: ("re:" in t, t))}
    matches: dict[str, Match] = {}
    for name, module in modules.items():
        fusion = fusion_of(module.leaf) if engine.fuses else None
        if fusion is None:
            matches[name] = _match_alone(engine, config, targets, module)
        else:
            matches[name] = _match_fused(engine, config, targets, name.rpartition(".")[0], fusion)
    return matches


def names_matched_by(entry: str, module: StoredModule) -> bool:
    """Whether any engine could take an entry to mean this module: its name, its fused name, or a class."""
    fusion = fusion_of(module.leaf)
    names, classes = [module.name], [*module.classes, class_name(module.leaf)]
    if fusion is not None:
        names.append(f"{module.name.rpartition('.')[0]}.{fusion.name}")
        classes.append(fusion.class_name)
    return any(same_name(n, entry) for n in names) or any(entry.lower() in c.lower() for c in classes)


def _match_alone(
    engine: Engine, config: StoredConfig, targets: Mapping[str, ConfigGroup], module: StoredModule
) -> Match:
    classes = (class_name(module.leaf),) if engine.fuses else module.classes
    if engine.fuses and module.is_embedding:
        target = _of_class(engine, targets, classes) if engine.embedding == "class" else None
        if target is None:
            return Match(None, "an embedding, which is not looked up by its name")
        return Match(targets[target], f"target {target!r} of {targets[target].name}")
    if entry := _ignored_by(engine, config.ignore, module.name, classes):
        return Match(None, f"ignored by {entry!r}")
    for step in engine.steps:
        target = None
        if step == "name":
            target = next((t for t in targets if same_name(module.name, t)), None)
        elif step == "class":
            target = _of_class(engine, targets, classes)
        if target is not None:
            return Match(targets[target], f"target {target!r} of {targets[target].name}")
    is_head = module.leaf == "lm_head"  # which SGLang does not look for a scheme for, unless it is named
    return Match(None, "no target") if is_head else _unmatched(engine)


def _match_fused(
    engine: Engine, config: StoredConfig, targets: Mapping[str, ConfigGroup], home: str, fusion: Fusion
) -> Match:
    """The match of the merged module, which all its parts share."""
    whole, parts = f"{home}.{fusion.name}", [f"{home}.{part}" for part in fusion.parts]
    if whole in config.ignore:
        return Match(None, f"ignored by {whole!r}")
    ignored = [_ignored_by(engine, config.ignore, part, ()) for part in parts]
    if any(ignored) and not all(ignored):
        free = ", ".join(leaf for leaf, entry in zip(fusion.parts, ignored, strict=True) if not entry)
        why = f"{fusion.name} is one module there, and ignore names some of its parts but not {free}"
        return Match(None, "ignored in part", why)
    if ignored[0]:
        return Match(None, f"ignored by {ignored[0]!r}")
    firsts = [next((t for t in targets if same_name(part, t)), None) for part in parts]
    of_class = _of_class(engine, targets, (fusion.class_name,))
    owners = [first or of_class for first in firsts]
    alone = tuple((leaf, targets[t] if t else None) for leaf, t in zip(fusion.parts, owners, strict=True))
    by_step = {
        "name": next((t for t in targets if same_name(whole, t)), None),
        "fused": firsts[0] if all(firsts) else None,
        "class": of_class,
    }
    target = next((by_step[step] for step in engine.steps if by_step[step] is not None), None)
    if target is None:
        return _unmatched(engine)._replace(parts=alone)
    return Match(targets[target], f"target {target!r} of {targets[target].name}, for {fusion.name}", parts=alone)


def _unmatched(engine: Engine) -> Match:
    return Match(None, "no target", "no target matches it" if engine.unmatched == "refused" else "")


def _ignored_by(engine: Engine, ignore: Iterable[str], name: str, classes: tuple[str, ...]) -> str:
    """The first entry that excludes a module; empty if none does."""
    for entry in ignore:
        if same_name(name, entry):
            return entry
        if engine.ignores == "class" and entry in classes:
            return entry
        if engine.ignores == "contains" and not entry.startswith("re:") and entry.lower() in name.lower():
            return entry
    return ""


def _of_class(engine: Engine, targets: Iterable[str], classes: tuple[str, ...]) -> str | None:
    """The first target that is a class of the module; engines that fuse take any part of the class's name."""
    for target in targets:
        if not engine.fuses:
            if target in classes:
                return target
        elif target.startswith("re:"):
            if re.match(target[3:], classes[0]):
                return target
        elif target.lower() in classes[0].lower():
            return target
    return None

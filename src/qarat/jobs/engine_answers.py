"""Which engines run a scheme, and where: from the rows of `qarat.values.engines` and what their files can hold."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qarat.ground.errors import UserError
from qarat.model.model import Model
from qarat.stages.export import EXPORTERS
from qarat.stages.export.compressed_tensors.cache import cache_offence
from qarat.stages.export.compressed_tensors.schemes import group_of, offences
from qarat.stages.export.gguf.types import nearest_type
from qarat.values.engines import ENGINES, FILE_ENGINES, Engine, FileEngine, kernel_for, kernel_kind
from qarat.values.plans import PlanError, assign
from qarat.values.records.advice import NOT_KNOWN, EngineAnswer
from qarat.values.schemes import CacheScheme, LinearScheme

SIMULATED = "simulated"
"""What transformers does: it computes what it loads in float, and rounds the inputs."""


def answers(model: Model, scheme: LinearScheme | CacheScheme, names: Sequence[str] = ()) -> tuple[EngineAnswer, ...]:
    """What is known of every engine that is asked to run a scheme at all of a model's projections, or caches.

    Args:
        model: In float, of the shapes that would be stored.
        scheme: Of a projection, its weight quantized, or of a cache.
        names: Of engines; none stands for all of today's versions.
    """
    if isinstance(scheme, CacheScheme):
        return tuple(_of_cache(scheme, ENGINES.get(name) or FILE_ENGINES[name]) for name in _asked(names))
    return tuple(
        _of_file(model, scheme, FILE_ENGINES[name])
        if name in FILE_ENGINES
        else _of_folder(model, scheme, ENGINES[name])
        for name in _asked(names)
    )


def _asked(names: Sequence[str]) -> Sequence[str]:
    return names or [*(e.name for e in ENGINES.values() if e.current), *FILE_ENGINES]


def _of_cache(scheme: CacheScheme, engine: Engine | FileEngine) -> EngineAnswer:
    """Of a scheme that all caches have."""
    why = cache_offence(scheme)
    if isinstance(engine, FileEngine) or why:
        return EngineAnswer(engine.name, engine.versions, "", f"no file holds it: {why or 'it takes float caches'}")
    if not engine.fuses:
        return EngineAnswer(engine.name, engine.versions, SIMULATED, "anywhere, in float")
    assert scheme.kept is not None
    kind = f"{'int' if scheme.kept.number_format.is_integer else 'float'}{scheme.kept.number_format.bits}"
    if not re.fullmatch(engine.kv_cache, f"{kind}/tensor"):
        return EngineAnswer(engine.name, engine.versions, "", f"its caches are {engine.kv_cache or 'in float'}")
    return EngineAnswer(engine.name, engine.versions, f"{kind} cache", f"on which hardware: {NOT_KNOWN}")


def _of_folder(model: Model, scheme: LinearScheme, engine: Engine) -> EngineAnswer:
    """Of an engine that takes a compressed-tensors folder."""

    def answer(runs: str, where: str, doubt: str = "") -> EngineAnswer:
        return EngineAnswer(engine.name, engine.versions, runs, where, doubt)

    if reason := next((o for cols in _widths(model) for o in offences(scheme, cols)), ""):
        return answer("", f"no folder holds it: {reason}")
    if not engine.fuses:
        return answer(SIMULATED, "anywhere, in float")
    kernel = kernel_for(engine, kernel_kind(scheme, str(group_of(scheme).format)))
    if kernel is None:
        return answer("", "no kernel" if engine.all_kernels else NOT_KNOWN)
    plan = assign(model.fingerprint, model.source_bits, model.sites(), str(scheme))
    try:
        plan.check_ties()
    except PlanError:
        return answer("", "tiles end within projections that it merges")
    if scheme.input is not None and kernel.kind.endswith(" weights"):
        return answer("", f"its weights alone ({kernel.kind}), inputs in float")
    older = f"; on older ones {kernel.fallback}" if kernel.fallback else ""
    return answer(kernel.kind, kernel.reach + older, kernel.unverified)


def _of_file(model: Model, scheme: LinearScheme, engine: FileEngine) -> EngineAnswer:
    """Of an engine that takes a file of its own."""
    plan = assign(model.fingerprint, model.source_bits, model.sites(), str(scheme))
    name, versions = engine.name, engine.versions
    try:
        EXPORTERS.load(engine.format).check(model, plan)
    except UserError:
        return EngineAnswer(name, versions, "", f"it takes {engine.holds}")
    assert scheme.weight is not None
    if name != "llama.cpp":
        return EngineAnswer(name, versions, scheme.weight.format, "CPUs")
    if scheme.input is not None:
        return EngineAnswer(name, versions, "", "it rounds inputs its own way")
    kinds = dict.fromkeys(nearest_type(scheme.weight, cols, superblocks=False) for cols in _widths(model))
    return EngineAnswer(name, versions, f"{', '.join(kinds)}, the nearest type", "CPUs", engine.unverified)


def _widths(model: Model) -> tuple[int, ...]:
    """Input channels of the model's projections, each number once."""
    return tuple(dict.fromkeys(site.shape[1] for site in model.sites() if site.kind == "projection"))

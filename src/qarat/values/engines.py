"""Engine rules as data: how each engine assigns the groups of a compressed-tensors folder, and which kernels it has.

The rows are in ``bundled/engines.toml``, each with its versions and where it was read. What differs between engines has
broken somebody's checkpoint each time: in which order targets are tried, whether a fused module (q, k and v as one) is
looked up under its own name or under its parts', whether a group's format counts or only the one at the top, and
what becomes of a quantized head, embedding or KV cache, of sparse weights and of columns in another order. Where that
changed from one version to the next, there are two rows. What could not be read in a source says so in ``unverified``.

ONNX Runtime, OpenVINO and llama.cpp take a file of their own, in which every tensor says what it is, so that nothing is
looked up; of them there is only what their arithmetic does to a plan (`FILE_ENGINES`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.values.schemes import LinearScheme

MatchStep = Literal["name", "fused", "class"]
Part = Literal["head", "embedding", "kv_cache", "sparse", "order"]
"""What an engine may read or not beside the projections' groups."""


class Fusion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Projections that an engine merges into one module, which has one scheme and one input scale.

    Attributes:
        name: Of the merged module.
        parts: Last names of the projections, in the order they are merged.
        class_name: Of the merged module, against which class targets are matched.
    """

    name: str
    parts: tuple[str, ...]
    class_name: str


class Engine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one engine, in some versions, finds the group of a module.

    Attributes:
        name: As it is asked for.
        versions: Which versions the row is about.
        current: Whether it is about today's version; what breaks in an older one alone is a warning.
        steps: In which order a module is looked up: by its name, by the names of its parts, by its class.
        by_text: Whether targets are tried exact names first, then patterns in the order of their text; otherwise as
            the config lists them.
        ignores: How an entry of ``ignore`` is compared with a name: ``exact`` (or a ``re:`` pattern), ``class`` (that
            or the name of its class), ``contains`` (or any part of the name).
        fuses: Whether `FUSIONS` are merged.
        group_format: Whether a group's own ``format`` counts; otherwise the one at the top decides for all.
        unmatched: What becomes of a module that no target matches: left in ``float`` without a word, or ``refused``.
        head: Whether the tensors of a quantized head are ``read``, or ``dropped`` without a word.
        embedding: Whether a quantized embedding is ``read`` as any module, by the ``class`` in its target alone, or
            ``dropped``.
        kv_cache: Which kinds of ``kv_cache_scheme`` it follows, a regular expression on NUMBERS/STRATEGY, as in
            ``float8/tensor``; empty for none.
        kv_taken: Which others it takes for static FP8 without a word, as above, `/dynamic` behind a dynamic one.
        other_kv_cache: What becomes of the others: ``refused``, or the cache is left in ``float``.
        sparse: Whether sparse weights are ``held`` or ``refused``, or any ``targets`` of a sparsity config are.
        order: Whether ``weight_g_idx`` is followed where actorder is ``group``, or ``never``.
        sources: Where this was read.
        unverified: What of it was not.
        doubts: What users say fails on a head: a regular expression on KIND OF KERNEL: SCHEME to what happens, and
            where that was read.
        all_kernels: Whether its choice of kernels was read whole, so that what is not in `KERNELS` is refused.
        ran: Versions in which folders were run, and every module found to be as the row says (`tests/vllm`).
    """

    name: str
    versions: str
    current: bool
    steps: tuple[MatchStep, ...]
    by_text: bool
    ignores: Literal["exact", "class", "contains"]
    fuses: bool
    group_format: bool
    unmatched: Literal["float", "refused"]
    head: Literal["read", "dropped"]
    embedding: Literal["read", "class", "dropped"]
    kv_cache: str
    other_kv_cache: Literal["refused", "float"]
    sparse: Literal["held", "refused", "refused, dense too"]
    order: Literal["group", "never"]
    sources: tuple[str, ...]
    unverified: str = ""
    kv_taken: str = ""
    doubts: dict[str, str] = {}
    all_kernels: bool = True
    ran: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """Of all its versions: the name up to a hyphen."""
        return self.name.partition("-")[0]

    def change(self, part: Part) -> str:
        """When what its family makes of a part changed, and where that was read; empty where it did not."""
        return _ROWS.changes.get(self.family, {}).get(part, "")

    def doubt(self, kind: str, scheme: LinearScheme) -> str:
        """What users say fails on a head of that scheme under a kind of kernel; empty for nothing."""
        doubts = (text for pattern, text in self.doubts.items() if re.fullmatch(pattern, f"{kind}: {scheme}"))
        return next(doubts, "")


class EngineKernel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where an engine can compute one kind of scheme.

    Attributes:
        engine: Family of engines: the name up to a hyphen.
        kind: As `kernel_kind` says.
        least: Compute capability from which it runs; infinite for Arm CPUs alone.
        below: Compute capability from which it no longer does.
        fallback: What runs on GPUs from 7.5 to ``least`` instead; empty if nothing does.
        cpu: Whether it runs on x86 CPUs.
        on_cpu: Where its arithmetic there is another than the scheme says; empty if it is not.
        runs: What the engine itself calls the scheme of a module that it runs so; empty where that was not seen.
        source: Where this was read.
        unverified: What of it was not.
        since: From when on, where that lies within the engine's versions.
        groups: Sizes of a weight's groups that it takes; none where any.
        other_groups: What becomes of others.
    """

    engine: str
    kind: str
    least: float
    below: float = math.inf
    fallback: str = ""
    cpu: bool = False
    on_cpu: str = ""
    runs: str = ""
    source: str = ""
    unverified: str = ""
    since: str = ""
    groups: tuple[int, ...] = ()
    other_groups: str = ""

    @property
    def reach(self) -> str:
        """Where it runs, in words."""
        if math.isinf(self.least):
            return "Arm CPUs"
        limit = " on" if math.isinf(self.below) else f" to below {self.below:g}"
        return f"GPUs of compute capability {self.least:g}{limit}" + ("; x86 CPUs too" if self.cpu else "")

    def on(self, generation: str) -> str:
        """What runs there: the kind, its fallback, or nothing (empty)."""
        if generation == CPU:
            return self.kind if self.cpu else ""
        capability = GENERATIONS[generation]
        if self.least <= capability < self.below:
            return self.kind
        return self.fallback if capability < self.least else ""


class FileEngine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An engine that takes a file of its own instead of a compressed-tensors folder: how it computes what is in it.

    Attributes:
        name: Of the engine.
        versions: Which versions the row is about.
        format: The export that it takes, which is also how the file's name ends.
        holds: What its kernels take, in words.
        notes: Where its arithmetic differs from the plan's, a line each; exports repeat them.
        sources: Where this was read, or found out.
        unverified: What of it was not.
        ran: Versions in which exports were run, and computed as the row says (`tests/engines`).
        on_cpu: Where its arithmetic is another on some x86 CPUs; empty if it is not. Exports repeat it.
    """

    name: str
    versions: str
    format: str
    holds: str
    notes: tuple[str, ...]
    sources: tuple[str, ...]
    unverified: str = ""
    ran: tuple[str, ...] = ()
    on_cpu: str = ""


class EngineRows(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of rows, whole.

    Attributes:
        kinds: Kind of kernel to what it computes, as a regular expression; the first that matches counts.
        changes: Family of engines to when what they make of a part changed, and where that was read.
    """

    kinds: dict[str, str]
    fusions: tuple[Fusion, ...]
    engines: tuple[Engine, ...]
    changes: dict[str, dict[Part, str]]
    kernels: tuple[EngineKernel, ...]
    file_engines: tuple[FileEngine, ...]
    generations: dict[str, float]


def read_rows(text: str) -> EngineRows:
    """The rows of a TOML text; every field is checked, and one that is unknown is an error.

    Raises:
        msgspec.ValidationError: Naming the row and the field.
    """
    return msgspec.toml.decode(text, type=EngineRows)


_ROWS = read_rows((Path(__file__).parents[1] / "bundled" / "engines.toml").read_text(encoding="utf-8"))

FUSIONS = _ROWS.fusions
KERNELS = _ROWS.kernels
ENGINES = {engine.name: engine for engine in _ROWS.engines}
FILE_ENGINES = {engine.name: engine for engine in _ROWS.file_engines}
DEFAULT_ENGINES = tuple(ENGINES)

GENERATIONS = _ROWS.generations
"""NVIDIA's compute capability of each generation."""

CPU = "cpu"
# In vLLM and SGLang; everything else that they do not fuse: RowParallelLinear.
_CLASSES = {"lm_head": "ParallelLMHead", "embed_tokens": "VocabParallelEmbedding"}


def fusion_of(leaf: str) -> Fusion | None:
    """The fusion that a projection goes into, by the last part of its name."""
    return next((fusion for fusion in FUSIONS if leaf in fusion.parts), None)


def cut_parts(rows: Mapping[str, int], tall: int) -> list[str]:
    """The parts of a merged module, but the last, that are no whole number of tiles, in words.

    The scales of a merged weight lie in one table, a row of it for every row of tiles: where a part ended within a
    tile, the next would begin there.

    Args:
        rows: Last name of each part to its output channels, in the order they are merged.
        tall: Rows of a tile.
    """
    return [f"{leaf} has {count} rows" for leaf, count in list(rows.items())[:-1] if count % tall]


def class_name(leaf: str) -> str:
    """The class of a module that vLLM and SGLang do not fuse, by the last part of its name."""
    return _CLASSES.get(leaf, "RowParallelLinear")


def engine_named(name: str) -> Engine:
    """The engine of that name.

    Raises:
        UserError: If there is none; names the nearest.
    """
    if name not in ENGINES:
        raise UserError(f"unknown engine {name!r}; {nearest_names(name, list(ENGINES))}")
    return ENGINES[name]


def generation_named(name: str) -> str:
    """The name itself, if it is that of a GPU generation, or ``cpu``.

    Raises:
        UserError: If it is not; names the nearest.
    """
    known = [*GENERATIONS, CPU]
    if name not in known:
        raise UserError(f"unknown GPU generation {name!r}; {nearest_names(name, known)}")
    return name


def kernel_for(engine: Engine, kind: str) -> EngineKernel | None:
    """The row of an engine for a kind of scheme; None if it has no kernel for it."""
    return next((k for k in KERNELS if k.engine == engine.family and k.kind == kind), None)


def kernel_kind(scheme: LinearScheme, format: str) -> str:
    """The kind of kernel that vLLM and SGLang look for, from scheme and format on disk; empty if they know none."""
    weight, input = scheme.weight, scheme.input
    if weight is None:
        return ""
    timing = "" if input is None else "static" if input.static else "dynamic"
    ours = f"{weight.format}/{weight.granularity.spell('channel')}/{weight.scale}" + "/asymmetric" * (
        not weight.symmetric
    )
    theirs = "float" if input is None else f"{input.format}/{input.granularity.spell('token')}/{timing}"
    stored = f"{format}: {ours}, {theirs}"
    return next((kind for kind, pattern in _ROWS.kinds.items() if re.fullmatch(pattern, stored)), "")

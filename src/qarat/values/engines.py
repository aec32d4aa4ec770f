"""Engine rules as data: how each engine assigns the groups of a compressed-tensors folder, and which kernels it has.

The rows are in ``bundled/engines.toml``, each with its versions and where it was read. Three things differ between
engines, and each has broken somebody's checkpoint: in which order targets are tried, whether a fused module (q, k and v
as one) is looked up under its own name or under its parts', and whether a group's format counts or only the one at the
top. What could not be read in a source says so in ``unverified``.

ONNX Runtime and llama.cpp take a file of their own, in which every tensor says what it is, so that nothing is looked
up; of them there is only what their arithmetic does to a plan (`FILE_ENGINES`).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.values.schemes import LinearScheme

MatchStep = Literal["name", "fused", "class"]


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
        sources: Where this was read.
        unverified: What of it was not.
        all_kernels: Whether its choice of kernels was read whole, so that what is not in `KERNELS` is refused.
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
    sources: tuple[str, ...]
    unverified: str = ""
    all_kernels: bool = True


class EngineKernel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where an engine can compute one kind of scheme.

    Attributes:
        engine: Family of engines: the name up to a hyphen.
        kind: As `kernel_kind` says.
        least: Compute capability from which it runs; infinite for Arm CPUs alone.
        below: Compute capability from which it no longer does.
        fallback: What runs on GPUs from 7.5 to ``least`` instead; empty if nothing does.
        cpu: Whether it runs on x86 CPUs.
        source: Where this was read.
        unverified: What of it was not.
    """

    engine: str
    kind: str
    least: float
    below: float = math.inf
    fallback: str = ""
    cpu: bool = False
    source: str = ""
    unverified: str = ""

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
        holds: What its kernels take, in words.
        notes: Where its arithmetic differs from the plan's, a line each; exports repeat them.
        sources: Where this was read.
        unverified: What of it was not.
    """

    name: str
    versions: str
    holds: str
    notes: tuple[str, ...]
    sources: tuple[str, ...]
    unverified: str = ""


class EngineRows(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of rows, whole.

    Attributes:
        kinds: Kind of kernel to what it computes, as a regular expression; the first that matches counts.
    """

    kinds: dict[str, str]
    fusions: tuple[Fusion, ...]
    engines: tuple[Engine, ...]
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
_CLASSES = {"lm_head": "ParallelLMHead"}  # in vLLM and SGLang; everything else: RowParallelLinear


def fusion_of(leaf: str) -> Fusion | None:
    """The fusion that a projection goes into, by the last part of its name."""
    return next((fusion for fusion in FUSIONS if leaf in fusion.parts), None)


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
    family = engine.name.partition("-")[0]
    return next((k for k in KERNELS if k.engine == family and k.kind == kind), None)


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

"""A quantized folder opened, and what is found of it.

Opened are its config, its tensors' headers, and the linear modules of the model that it stands for. Findings are
gathered: the same thing said of many modules or engines is said once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.model.checkpoints import Checkpoint
from qarat.model.families import family_of
from qarat.model.families.base import Family
from qarat.stages.read_back.stored import StoredConfig, read_config
from qarat.values.records.verification import Finding, Severity

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Name of a tensor to its kind, as safetensors spells it, and its shape."""

READ = ("weight", "weight_", "input_")
"""Beginnings of the leaves that a quantized module owns."""
FLOAT_KINDS = ("F32", "F16", "BF16", "F64")
_CACHE_SCALES = re.compile(
    r"\.((q|k|v|kv|prob)_scale|(k|v)_zero_point|(k|v)_proj\.output_scale)$"
)  # of keys, values, queries and probabilities; the last as compressed-tensors wrote them up to 2024


class StoredModule(NamedTuple):
    """A linear module (or the embedding) of the model that a folder stands for.

    Attributes:
        name: Full name.
        classes: Its class and every class above, as class targets are matched.
        shape: ``(out, in)``.
        is_embedding: Whether it is the embedding.
        tensors: What lies on disk under its name, by the rest of the name.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int]
    is_embedding: bool
    tensors: Tensors

    @property
    def leaf(self) -> str:
        """Last part of the name."""
        return self.name.rpartition(".")[2]

    @property
    def is_quantized(self) -> bool:
        """Whether anything on disk is more than a float weight."""
        weight = self.tensors.get("weight")
        marks = {"weight_packed", "weight_scale", "weight_global_scale", "weight_zero_point"}
        return bool(marks & self.tensors.keys()) or (weight is not None and weight[0] not in FLOAT_KINDS)


class StoredCheckpoint(Checkpoint):
    """A quantized folder's tensors; what lies in the blocks is judged elsewhere.

    Attributes:
        unpacked: Weights outside the blocks that are stored quantized: name to what makes it, (out, in) float32.
    """

    def __init__(self, folder: Path, source: str) -> None:
        super().__init__(folder, quantized=True)
        self._source = source
        self.unpacked: dict[str, Callable[[], Tensor]] = {}
        self.config.quantization_config = None  # or transformers would go by it
        self._blocks = family_of(list(self.config.architectures or [])).blocks

    @cached_property
    def fingerprint(self) -> str:
        """The float model's, where that is known; else the folder's own."""
        return self._source or super().fingerprint

    def check(self, wanted: Mapping[str, Tensor], optional: Collection[str] = ()) -> None:
        """Check what lies outside the blocks, which has to be in float.

        Args:
            wanted: Name to a tensor (on any device) of the shape that the config asks for.
            optional: Names that may be there as well.

        Raises:
            UserError: Listing every tensor that is missing, of another shape, or not kept in float.
        """
        outside = [n for n in wanted if not n.startswith(f"{self._blocks}.") and n not in self.unpacked]
        offences = [f"{name}: missing" for name in outside if name not in self]
        for name in outside:
            kind, shape = self.headers.get(name, ("F32", tuple(wanted[name].shape)))
            if kind not in FLOAT_KINDS or shape != tuple(wanted[name].shape):
                offences.append(f"{name}: {kind} {shape}, not float {tuple(wanted[name].shape)}")
        if offences:
            raise UserError(f"{self.folder}: outside the blocks:\n  " + "\n  ".join(offences))

    def read(
        self, prefix: str, wanted: Mapping[str, Tensor], runtime: Runtime, *, narrow: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """As `Checkpoint.read`, what is unpacked among them."""
        packed = [name for name in wanted if prefix + name in self.unpacked]
        plain = {name: tensor for name, tensor in wanted.items() if name not in packed}
        values = {name: self.unpacked[prefix + name]() for name in packed}
        cast = {name: value.to(runtime.device, runtime.torch_dtype) for name, value in values.items()}
        return super().read(prefix, plain, runtime, narrow=narrow) | cast


class StoredFolder(NamedTuple):
    """A quantized folder.

    Attributes:
        path: Where it lies.
        checkpoint: Its tensors.
        config: Its quantization config.
        family: The wiring of the model.
        modules: Linear modules and the embedding, by name, in model order.
        others: Every other tensor that the model has, norms and biases, by name, with its shape.
        strays: Tensors on disk that the model has no place for.
        cache_scales: Names of those that scale keys, values, queries or probabilities.
        left_head: Tensors of the head's own, where the config ties it to the embedding and they are not the same.
    """

    path: Path
    checkpoint: StoredCheckpoint
    config: StoredConfig
    family: Family
    modules: dict[str, StoredModule]
    others: dict[str, tuple[int, ...]]
    strays: tuple[str, ...]
    cache_scales: tuple[str, ...]
    left_head: tuple[str, ...] = ()


def open_folder(path: Path, source: str = "") -> StoredFolder:
    """Open a folder in the compressed-tensors format.

    Args:
        path: Where it lies.
        source: Fingerprint of the float model that it is to go by; empty for its own.

    Raises:
        UserError: No such folder, damaged or contradictory files, an unsupported architecture, not quantized.
    """
    config = read_config(path)
    checkpoint = StoredCheckpoint(path, source)
    model = checkpoint.skeleton()
    headers = checkpoint.headers
    by_module: dict[str, Tensors] = {}
    for name, entry in headers.items():
        home, _, leaf = name.rpartition(".")
        by_module.setdefault(home, {})[leaf] = entry
    modules = {
        name: _stored_module(name, module, by_module.get(name, {}))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
    }
    state: Mapping[str, Tensor] = model.state_dict()
    others = {name: tuple(t.shape) for name, t in state.items() if name.removesuffix(".weight") not in modules}
    scales = tuple(filter(_CACHE_SCALES.search, headers))
    known = {*others, *scales}
    strays = tuple(name for name in headers if name not in known and not _is_read(name, modules))
    family = family_of(list(checkpoint.config.architectures or []))
    own: tuple[str, ...] = ()
    if checkpoint.config.tie_word_embeddings and family.head in modules:
        head, tensors = modules[family.head], modules[family.embedding].tensors  # the same tensors
        own = tuple(f"{head.name}.{leaf}" for leaf in head.tensors if head.tensors != tensors)
        modules[family.head] = head._replace(tensors=dict(tensors))
    return StoredFolder(path, checkpoint, config, family, modules, others, strays, scales, own)


def _is_read(name: str, modules: Collection[str]) -> bool:
    """Whether a tensor may be what a group asks for of a module."""
    home, _, leaf = name.rpartition(".")
    return home in modules and leaf.startswith(READ)


def _stored_module(name: str, module: nn.Module, tensors: Tensors) -> StoredModule:
    rows, cols = (int(size) for size in module.weight.shape)  # type: ignore[union-attr] (both kinds have one)
    classes = tuple(cls.__name__ for cls in type(module).__mro__ if issubclass(cls, nn.Module))
    return StoredModule(name, classes, (rows, cols), isinstance(module, nn.Embedding), tensors)


_ORDER: dict[Severity, int] = {"error": 0, "not judged": 1, "warning": 2, "note": 3}


class Findings:
    """What was found so far, by what it says."""

    def __init__(self) -> None:
        self._found: dict[tuple[Severity, str, str], tuple[dict[str, None], dict[str, None]]] = {}
        self._blocking: list[tuple[str, ...]] = []

    def add(
        self,
        severity: Severity,
        problem: str,
        remedy: str,
        modules: Iterable[str] = (),
        engines: Iterable[str] = (),
        *,
        blocks: bool = True,
    ) -> None:
        """Note something of some modules and engines; what was said already is widened to them.

        Args:
            severity: How grave it is.
            problem: What is wrong, with numbers.
            remedy: What to do about it.
            modules: By full name.
            engines: By name; none for all.
            blocks: Of an error: whether those engines' model cannot be computed here either.
        """
        engines = tuple(engines)
        if severity == "error" and blocks:
            self._blocking.append(engines)
        known_modules, known_engines = self._found.setdefault((severity, problem, remedy), ({}, {}))
        known_modules.update(dict.fromkeys(modules))
        known_engines.update(dict.fromkeys(engines))

    def listed(self) -> tuple[Finding, ...]:
        """Everything found, the gravest first, otherwise in the order it was found."""
        ranked = sorted(self._found.items(), key=lambda item: _ORDER[item[0][0]])
        return tuple(Finding(*text, tuple(modules), tuple(engines)) for text, (modules, engines) in ranked)

    def block(self, engine: str) -> bool:
        """Whether anything found so far keeps the model that an engine would run from being computed here."""
        return any(not engines or engine in engines for engines in self._blocking)

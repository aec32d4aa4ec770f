"""A compressed-tensors ``quantization_config`` as values, read as it stands.

The library fills in what is missing and stops at the first group that contradicts itself; here everything is kept,
because what stands there is what every engine reads in its own way, and all that is wrong is to be said at once. Only
where nothing wrong is found here is the library's own check asked: what it refuses, every engine does, since all read
groups with it.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
from compressed_tensors.quantization import QuantizationScheme
from pydantic import ValidationError

from qarat.ground.errors import UserError
from qarat.model.recognition import quantized_as
from qarat.model.shards import locate_tensors
from qarat.values.schemes import Granularity, LinearScheme, TensorScheme

MIXED = "mixed-precision"
KV_CACHE = "kv_cache_scheme"
_FLOATS = {4: "e2m1", 6: "e2m3", 8: "e4m3"}
_STRATEGIES = ("tensor", "channel", "group", "tensor_group", "block", "token")


class Args(msgspec.Struct, frozen=True):
    """How one tensor is quantized, in the words of compressed-tensors; what is not needed here is left out."""

    num_bits: int = 8
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    group_size: int | None = None
    strategy: str | None = None
    block_structure: tuple[int, int] | str | None = None
    dynamic: bool | Literal["local"] = False
    scale_dtype: str | None = None

    @property
    def kind(self) -> str:
        """The strategy, or what the library infers where none is given."""
        if self.strategy is not None:
            return self.strategy.lower()
        return "tensor" if self.group_size is None else "channel" if self.group_size == -1 else "group"

    @property
    def block(self) -> tuple[int, int] | None:
        """Rows and columns of a block, also where they are given as ``128x128``."""
        if isinstance(self.block_structure, str):
            match = re.fullmatch(r"(\d+)x(\d+)", self.block_structure)
            return (int(match[1]), int(match[2])) if match else None
        return self.block_structure

    def contradictions(self, role: str) -> list[str]:
        """What the library refuses to load, in words.

        Args:
            role: ``weights`` or ``input_activations``.
        """
        kind, size, in_groups = self.kind, self.group_size or 0, self.kind in ("group", "tensor_group")
        is_weight, known_bits = role == "weights", _FLOATS if self.type == "float" else range(1, 9)
        reasons = {
            f"strategy {kind!r} is none of a projection's": kind not in _STRATEGIES,
            "static token strategy: a scale per token cannot be known beforehand": kind == "token" and not self.dynamic,
            f"strategy {kind} without a positive group_size": in_groups and size <= 0,
            f"group_size {size} with strategy {kind}": not in_groups and size > 0,
            "strategy block without block_structure": kind == "block" and self.block is None,
            "weights quantized at run time (dynamic, or a scale per token)": is_weight
            and bool(self.dynamic or kind == "token"),
            f"strategy {kind} for an input": not is_weight and kind in ("channel", "block"),
            f"{self.type} numbers of {self.num_bits} bits": self.num_bits not in known_bits,
        }
        return [reason for reason, holds in reasons.items() if holds]

    def scheme(self, role: str) -> TensorScheme:
        """The same in qarat's words; args without `contradictions` always have a scheme.

        How a weight's scales were chosen is not stored and taken as ``absmax``.
        """
        number = _FLOATS[self.num_bits] if self.type == "float" else f"int{self.num_bits}"
        choice, scale = "absmax", "float32"
        if self.kind == "tensor_group":
            scale = "e4m3"
        elif self.is_mx:
            choice, scale = "mx-even", "e8m0"  # as compressed-tensors rounds, also its dynamic inputs
        static = role == "input_activations" and not self.dynamic
        rows = None if static else 1
        by_kind = {
            "tensor": (None, None),
            "channel": (1, None),
            "token": (1, None),
            "block": self.block or (None, None),
        }
        granularity = Granularity(*by_kind.get(self.kind, (rows, self.group_size)))
        return TensorScheme(number, granularity, scale, choice, symmetric=self.symmetric, static=static)

    @property
    def is_mx(self) -> bool:
        """Whether scales are powers of two (MX): floats in groups of 32, said so by the scales' dtype for 8 bits."""
        if self.type != "float" or self.kind != "group" or self.group_size != 32:
            return False
        return self.num_bits < 8 or (self.scale_dtype or "").endswith("uint8")


class ConfigGroup(msgspec.Struct, frozen=True):
    """One config group: which modules, and how they are quantized.

    Attributes:
        name: Key in ``config_groups``.
        targets: Names, ``re:`` patterns or classes.
        weights: None if weights stay in float.
        inputs: None if inputs stay in float.
        outputs: Whether outputs are quantized too.
        format: The group's own; empty if it has none.
        refusal: What the library says against it; empty if nothing.
    """

    name: str
    targets: tuple[str, ...]
    weights: Args | None
    inputs: Args | None
    outputs: bool
    format: str
    refusal: str = ""

    def same_as(self, other: ConfigGroup) -> bool:
        """Whether both quantize alike, whatever they are called."""
        return (self.weights, self.inputs, self.outputs) == (other.weights, other.inputs, other.outputs)

    def contradictions(self) -> list[str]:
        """What the library refuses to load, in words."""
        parts = {"weights": self.weights, "input_activations": self.inputs}
        reasons = [f"{role}: {why}" for role, args in parts.items() if args for why in args.contradictions(role)]
        if self.format == MIXED:
            reasons.append(f"format {MIXED!r} belongs on top of the config, not into a group")
        return reasons or ([self.refusal] if self.refusal else [])

    @property
    def scheme(self) -> LinearScheme:
        """The same in qarat's words; for a group without `contradictions`."""
        return LinearScheme(
            self.weights.scheme("weights") if self.weights else None,
            self.inputs.scheme("input_activations") if self.inputs else None,
        )

    def spell(self) -> str:
        """The scheme's spelling, or that there is none."""
        return "(contradicts itself)" if self.contradictions() else str(self.scheme)


class StoredConfig(NamedTuple):
    """A whole ``quantization_config``.

    Attributes:
        format: On top; empty if missing.
        status: ``quantization_status``; empty if missing.
        groups: In the order of the file.
        ignore: Names, patterns or classes left alone.
        beyond: Keys of what engines would do besides, and qarat does not follow.
    """

    format: str
    status: str
    groups: tuple[ConfigGroup, ...]
    ignore: tuple[str, ...]
    beyond: tuple[str, ...] = ()

    def format_of(self, group: ConfigGroup) -> str:
        """The format of a group's tensors: its own, the one on top, or else what the library would infer."""
        if group.format:
            return group.format
        return self.format if self.format and self.format != MIXED else _infer_format(group)


class _GroupFile(msgspec.Struct):
    targets: tuple[str, ...]
    weights: Args | None = None
    input_activations: Args | None = None
    output_activations: Args | None = None
    format: str | None = None


class _ConfigFile(msgspec.Struct):
    config_groups: dict[str, Any]
    quant_method: str = ""
    format: str | None = None
    quantization_status: str | None = None
    ignore: tuple[str, ...] | None = None
    kv_cache_scheme: Any = None
    sparsity_config: Any = None
    transform_config: Any = None

    @property
    def beyond(self) -> tuple[str, ...]:
        """Those of this class's last three that say something; llm-compressor writes them empty."""
        keys = (KV_CACHE, "sparsity_config", "transform_config")
        return tuple(key for key in keys if (value := getattr(self, key)) and not _is_idle(value))


def read_config(folder: Path) -> StoredConfig:
    """The ``quantization_config`` of a folder.

    Raises:
        UserError: No folder or no readable config; a float model; another method; or listing every malformed part.
    """
    path = folder / "config.json"
    try:
        whole: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no config.json; give the folder that an engine would load") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    raw: Any = whole.get("quantization_config") if isinstance(whole, Mapping) else None
    if not raw:
        if any(folder.glob("*.safetensors")) and (method := quantized_as(folder, locate_tensors(folder))):
            raise UserError(f"{folder} is quantized ({method}); qarat verifies compressed-tensors folders")
        raise UserError(f"{folder} is not quantized: its config has no quantization_config; `qarat export` writes one")
    method = raw.get("quant_method") if isinstance(raw, Mapping) else None
    if method != "compressed-tensors":
        raise UserError(f"{path}: quant_method is {method!r}; qarat verifies compressed-tensors folders")
    try:
        file = msgspec.convert(raw, _ConfigFile)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: quantization_config: {error}") from None
    offences: list[str] = []
    groups = [_read_group(name, body, offences) for name, body in file.config_groups.items()]
    offences += [f"ignore: {why}" for entry in file.ignore or () if (why := _bad_pattern(entry))]
    if not groups:
        offences.append("config_groups is empty, so that nothing would be quantized")
    if offences:
        raise UserError(f"{path}: quantization_config cannot be read:\n  " + "\n  ".join(offences))
    readable = tuple(group for group in groups if group is not None)
    return StoredConfig(file.format or "", file.quantization_status or "", readable, file.ignore or (), file.beyond)


def _is_idle(value: Any) -> bool:
    """Whether a part of the config is there without doing anything: no groups, or dense."""
    if not isinstance(value, Mapping):
        return False
    return value.get("format") == "dense" or not value.get("config_groups", True)


def _read_group(name: str, body: Any, offences: list[str]) -> ConfigGroup | None:
    if isinstance(body, list):
        offences.append(f"{name}: a preset's name with a list of targets, which engines do not know; spell it out")
        return None
    try:
        file = msgspec.convert(body, _GroupFile)
    except msgspec.ValidationError as error:
        offences.append(f"{name}: {error}")
        return None
    offences += [f"{name}: {why}" for target in file.targets if (why := _bad_pattern(target))]
    outputs = file.output_activations is not None
    refusal = _ask_library(body)
    return ConfigGroup(name, file.targets, file.weights, file.input_activations, outputs, file.format or "", refusal)


def _ask_library(body: dict[str, Any]) -> str:
    """What compressed-tensors says against a group; empty if it takes it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it only warns of, it loads
            QuantizationScheme.model_validate(body)
    except ValidationError as error:
        return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _bad_pattern(entry: str) -> str:
    """Why an entry is no pattern; empty if it is one, or a plain name."""
    if entry.startswith("re:"):
        try:
            re.compile(entry[3:])
        except (re.error, RecursionError, OverflowError) as error:
            return f"{entry!r} is no regular expression: {error}"
    return ""


def _infer_format(group: ConfigGroup) -> str:
    """As compressed-tensors 0.20.0 infers it (compressors/format.py, by the priority given there)."""
    weights, inputs = group.weights, group.inputs
    if weights is None:
        return "dense"
    if weights.type == "int":
        return "pack-quantized" if inputs is None else "int-quantized"
    if weights.num_bits == 4:
        return "mxfp4-pack-quantized" if weights.group_size == 32 else "nvfp4-pack-quantized"
    if weights.num_bits == 6:
        return "mxfp6-pack-quantized"
    if weights.is_mx:
        return "mxfp8-quantized"
    return "naive-quantized" if inputs is None else "float-quantized"

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
from typing import Any, NamedTuple

import msgspec
from compressed_tensors.quantization import QuantizationScheme
from pydantic import ValidationError

from qarat.ground.errors import UserError
from qarat.model.recognition import find_config, quantized_as
from qarat.model.shards import locate_tensors
from qarat.stages.read_back.arguments import Args
from qarat.values.schemes import LinearScheme

MIXED = "mixed-precision"
# On top of a config, and read by no engine: llm-compressor's, AutoRound's, transformers', vLLM's own.
_IDLE_KEYS = ("version", "global_compression_ratio", "provider", "autoround_version", "run_compressed")
_SPARSE = ("marlin-24", "sparse-24-bitmask", "sparse-bitmask")


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

    @property
    def is_attention(self) -> bool:
        """Whether it is about keys, values and queries, by the class of the attention, as llm-compressor writes it."""
        return len(self.targets) == 1 and self.targets[0].endswith("Attention")

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
        kv_cache: How keys and values are quantized; None if they are not.
        sparse: The format of sparse weights; empty if they are dense.
        sparse_targets: Whether a ``sparsity_config`` names targets, sparse or dense.
        transforms: Whether inputs or outputs are transformed at run time.
        unknown: Keys on top that nobody who writes such folders is known to write.
    """

    format: str
    status: str
    groups: tuple[ConfigGroup, ...]
    ignore: tuple[str, ...]
    kv_cache: Args | None = None
    sparse: str = ""
    sparse_targets: bool = False
    transforms: bool = False
    unknown: tuple[str, ...] = ()

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


class _SparsityFile(msgspec.Struct):
    format: str = "dense"
    targets: tuple[str, ...] | None = None


class _ConfigFile(msgspec.Struct):
    config_groups: dict[str, Any] = {}
    quant_method: str = ""
    format: str | None = None
    quantization_status: str | None = None
    ignore: tuple[str, ...] | None = None
    kv_cache_scheme: Args | None = None
    sparsity_config: _SparsityFile | None = None
    transform_config: Any = None

    @property
    def sparse(self) -> str:
        """The format of sparse weights; llm-compressor writes a dense one where there are none."""
        formats = [self.sparsity_config.format if self.sparsity_config else "dense", self.format or ""]
        formats += [group.get("format") or "" for group in self.config_groups.values() if isinstance(group, Mapping)]
        return next((f for f in formats if f in _SPARSE or (f == formats[0] != "dense")), "")

    @property
    def transforms(self) -> bool:
        """Whether a transform is more than an empty list of groups."""
        value = self.transform_config
        return bool(value) and not (isinstance(value, Mapping) and not value.get("config_groups", True))


def read_config(folder: Path) -> StoredConfig:
    """The ``quantization_config`` of a folder.

    Raises:
        UserError: No folder or no readable config; a float model; another method; or listing every malformed part.
    """
    path = find_config(folder)
    raw = _compressed_tensors_config(path, folder)
    try:
        file = msgspec.convert({key: part for key, part in raw.items() if part != {}}, _ConfigFile)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: quantization_config: {error}") from None
    offences: list[str] = []
    groups = [read_group(name, body, offences) for name, body in file.config_groups.items()]
    offences += [f"ignore: {why}" for entry in file.ignore or () if (why := _bad_pattern(entry))]
    if not groups and not file.sparse:
        offences.append("config_groups is empty, so that nothing would be quantized")
    if offences:
        raise UserError(f"{path}: quantization_config cannot be read:\n  " + "\n  ".join(offences))
    return StoredConfig(
        file.format or "",
        file.quantization_status or "",
        tuple(group for group in groups if group is not None),
        file.ignore or (),
        file.kv_cache_scheme,
        file.sparse,
        bool(file.sparsity_config and file.sparsity_config.targets),
        file.transforms,
        tuple(sorted(raw.keys() - {*_ConfigFile.__struct_fields__, *_IDLE_KEYS})),
    )


def _compressed_tensors_config(path: Path, folder: Path) -> Mapping[str, Any]:
    """What stands under ``quantization_config``, of this method and unchecked."""
    try:
        whole: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    raw: Any = whole.get("quantization_config") if isinstance(whole, Mapping) else None
    if not raw and isinstance(whole, Mapping) and whole.get("compression_config"):
        raise UserError(
            f"{path} says how weights are quantized under compression_config, as compressed-tensors did in 2024: vLLM "
            "reads that, and transformers loads the codes as weights; rename it quantization_config"
        )
    if not raw:
        if any(folder.glob("*.safetensors")) and (method := quantized_as(folder, locate_tensors(folder))):
            raise UserError(f"{folder} is quantized ({method}); qarat verifies compressed-tensors folders")
        raise UserError(f"{folder} is not quantized: its config has no quantization_config; `qarat export` writes one")
    method = raw.get("quant_method") if isinstance(raw, Mapping) else None
    if method == "compressed_tensors":
        raise UserError(
            f"{path}: quant_method is {method!r}, which vLLM takes and transformers does not; write it with -"
        )
    if method != "compressed-tensors":
        raise UserError(f"{path}: quant_method is {method!r}; qarat verifies compressed-tensors folders")
    return raw


def read_group(name: str, body: Any, offences: list[str]) -> ConfigGroup | None:
    """A group of a config; None, and what is wrong with it among the offences, where it cannot be read."""
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
    """What compressed-tensors says against a group; empty if it takes it.

    Not of actorder: the versions that engines bring along differ on it (`qarat.values.engines.Engine.order`).
    """
    if isinstance(weights := body.get("weights"), dict):
        body = body | {"weights": {key: value for key, value in weights.items() if key != "actorder"}}
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

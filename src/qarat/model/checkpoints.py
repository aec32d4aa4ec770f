"""Checkpoints on disk: found by name, checked before use, read tensor by tensor from memory-mapped safetensors."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.ground.runtime import Runtime
from qarat.model.families import family_of
from qarat.model.reference_models import reference_models

_PLAIN_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")  # as transformers 5 and 4 call them
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
# Computed, not learnt; old LLaMA checkpoints carry it all the same (transformers drops it too).
_DERIVED = re.compile(r"rotary_emb\.inv_freq$")


class _Entry(NamedTuple):
    """Where a tensor lies and what its file's header says of it."""

    dtype: str
    path: Path
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of the tensor in the file."""
        return math.prod(self.shape) * _BYTES.get(self.dtype, 1)


def find_checkpoint(name: str, revision: str | None = None) -> Path:
    """The folder of a model.

    Args:
        name: A local path, a reference model's name, or a hub id (downloaded into the hub's cache).
        revision: Of the hub id.

    Raises:
        UserError: Nothing by that name; says what was tried.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{folder} holds no config.json, so it is no Hugging Face model folder; "
                "give the folder that holds config.json, the tokenizer and *.safetensors"
            )
        return folder
    known = reference_models()
    if name in known:
        return known[name]
    if folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise UserError(
            f"no such folder: {name}; and no reference model of that name: {nearest_names(name, list(known))}"
        )
    from huggingface_hub import snapshot_download  # only where the network is asked for

    try:
        patterns = ["*.json", "*.safetensors", "tokenizer*", "*.model"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds; all mean that the model could not be had
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"no such folder: {name}, no reference model of that name ({nearest_names(name, list(known))}), "
            f"and the hub does not give it: {reason}; check the spelling, or fetch it elsewhere and give its folder"
        ) from error


class Checkpoint:
    """A Hugging Face folder whose weights are safetensors."""

    def __init__(self, folder: Path, *, quantized: bool = False) -> None:
        """Read config and index, and check that every shard is there and whole.

        Args:
            folder: Where it lies.
            quantized: Whether it may be one that another format describes, in the config's ``quantization_config``;
                what that means is the caller's to know.

        Raises:
            UserError: Not a model folder, unsupported architecture, quantized already, shards missing or damaged.
        """
        self.folder = folder
        self.config = _read_config(folder, quantized=quantized)
        self._where = _locate_tensors(folder)
        kinds = sorted({entry.dtype for entry in self._where.values()} & _FLOATS.keys())
        # The narrowest float kind is the model's own: norms are often kept wider than the weights.
        self.dtype = min((_FLOATS[k] for k in kinds), key=lambda d: torch.finfo(d).bits, default=torch.float32)

    @property
    def headers(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name of every tensor to its kind, as safetensors spells it, and its shape."""
        return {name: (entry.dtype, entry.shape) for name, entry in self._where.items()}

    @property
    def files(self) -> dict[str, str]:
        """Name of every tensor to that of the file it lies in."""
        return {name: entry.path.name for name, entry in self._where.items()}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and contents of config and the weight files in use."""
        digest = hashlib.sha256()
        for path in [self.folder / "config.json", *sorted({entry.path for entry in self._where.values()})]:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while chunk := file.read(1 << 18):
                    digest.update(chunk)
        return digest.hexdigest()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's own tokenizer.

        Raises:
            UserError: If it has none that can be read.
        """
        try:
            declared = get_tokenizer_config(self.folder, local_files_only=True).get("tokenizer_class")
            # For Qwen2 among others AutoTokenizer takes the architecture's own tokenizer, which splits words its own
            # way and adds tokens, even where the folder says that tokenizer.json is all there is to know.
            kind = PreTrainedTokenizerFast if declared in _PLAIN_TOKENIZERS else AutoTokenizer
            return kind.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
            raise UserError(
                f"the tokenizer in {self.folder} cannot be read: {error}; copy tokenizer.json and "
                "tokenizer_config.json from where the model comes from"
            ) from error

    def skeleton(self, **options: Any) -> nn.Module:
        """The model that the config describes, on the meta device.

        Args:
            **options: Of transformers' ``from_config``.

        Raises:
            UserError: If the config describes no model, or more blocks than the checkpoint could fill.
        """
        path = self.folder / "config.json"
        if self.config.num_hidden_layers > len(self._where):  # before so many are built
            blocks = self.config.num_hidden_layers
            raise UserError(f"{path} describes {blocks} blocks, and there are but {len(self._where)} tensors")
        try:
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(self.config, **options)
        except Exception as error:  # whatever stumbles first over a number that makes no sense
            raise UserError(
                f"{path} describes no model: {error!r}; take it from the same model as the weights"
            ) from error

    def weight_bytes(self) -> int:
        """Bytes of all tensors in the checkpoint."""
        return sum(entry.bytes for entry in self._where.values())

    def __contains__(self, name: str) -> bool:
        """Whether the checkpoint has a tensor of that name."""
        return name in self._where

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype that a float tensor is kept in (float32 for the wider float64)."""
        return _FLOATS.get(self._where[name].dtype, torch.float32)

    def check(self, wanted: Mapping[str, Tensor], optional: Collection[str] = ()) -> None:
        """Check from the headers alone that config and weights agree.

        Args:
            wanted: Name to a tensor (on any device) of the shape that the config asks for.
            optional: Names that may be there as well.

        Raises:
            UserError: Listing every tensor that is missing, surplus, of another shape, or not kept in float.
        """
        offences = [f"{name}: missing" for name in wanted.keys() - self._where.keys()]
        for name, entry in self._where.items():
            if _DERIVED.search(name) or name in optional:
                continue
            if name not in wanted:
                offences.append(f"{name}: in the file, not in the model that the config describes")
            elif entry.shape != tuple(wanted[name].shape):
                offences.append(f"{name}: {entry.shape} in the file, {tuple(wanted[name].shape)} by the config")
            elif entry.dtype not in _FLOATS and entry.dtype != "F64":
                offences.append(f"{name}: kept as {entry.dtype}, not in float")
        if offences:
            raise UserError(
                f"{self.folder}: config and weights disagree:\n  "
                + "\n  ".join(sorted(offences))
                + "\ntake config.json and all weight files from the same model"
            )

    def read(self, prefix: str, wanted: Mapping[str, Tensor], runtime: Runtime) -> dict[str, Tensor]:
        """Read tensors, cast to the runtime's dtype and moved to its device.

        Args:
            prefix: In front of every wanted name, as the checkpoint spells it.
            wanted: Name to a tensor (on any device) of the shape that is expected.
            runtime: Device and dtype.

        Raises:
            UserError: Missing tensors and shapes that differ (all of them at once); NaN or Inf (names the tensor).
        """
        missing = [f"{prefix}{name}: missing" for name in wanted if prefix + name not in self._where]
        if missing:
            raise UserError(f"{self.folder}: config and weights disagree:\n  " + "\n  ".join(missing))
        by_file: dict[Path, list[str]] = {}
        for name in wanted:
            by_file.setdefault(self._where[prefix + name][1], []).append(name)
        found: dict[str, Tensor] = {}
        offences: list[str] = []
        for path, names in by_file.items():
            with safe_open(path, "pt") as file:
                for name in names:
                    tensor = file.get_tensor(prefix + name)
                    if tensor.shape != wanted[name].shape:
                        shapes = f"{tuple(tensor.shape)} in the file, {tuple(wanted[name].shape)} by the config"
                        offences.append(f"{prefix}{name}: {shapes}")
                    elif not _is_finite(tensor):
                        bad = int((~tensor.isfinite()).sum())
                        offences.append(f"{prefix}{name}: {bad} of {tensor.numel()} values are NaN or Inf")
                    else:
                        found[name] = tensor.to(runtime.device, runtime.torch_dtype)
        if offences:
            listed = "\n  ".join(sorted(offences))
            raise UserError(f"{self.folder}: weights cannot be used:\n  {listed}\nfetch or save the checkpoint again")
        return found

    def read_raw(self, prefix: str, device: str) -> dict[str, Tensor]:
        """Every tensor whose name begins with a prefix, in the dtype it is stored in.

        Args:
            prefix: As the checkpoint spells it; the names returned are without it.
            device: Where the tensors go.
        """
        found: dict[str, Tensor] = {}
        for path in sorted({entry.path for name, entry in self._where.items() if name.startswith(prefix)}):
            with safe_open(path, "pt") as file:
                names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a dict)
                found |= {name.removeprefix(prefix): file.get_tensor(name).to(device) for name in names}
        return found


def _is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor Inf, judged by its extremes, which either would be among.

    `isfinite` on bfloat16 takes forty times as long (torch 2.13, CPU).
    """
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    return all(bool(bound.isfinite()) for bound in tensor.aminmax())


def _read_config(folder: Path, *, quantized: bool) -> PreTrainedConfig:
    """The config, if it is of a supported architecture and, unless ``quantized``, a float model.

    Raises:
        UserError: Unreadable or invalid, unsupported, or quantized already.
    """
    path = folder / "config.json"
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} cannot be read: it holds no JSON object")
    # Before transformers sees it: for a type it does not know it offers to run the folder's own code.
    named = raw.get("architectures")
    family_of([str(name) for name in named] if isinstance(named, list) else [])
    described = raw.get("quantization_config")
    if described and not quantized:
        method = described.get("quant_method", "unnamed") if isinstance(described, dict) else "unnamed"
        raise UserError(f"{folder} is quantized already ({method}); qarat begins from the float checkpoint")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and its checks raise many kinds; all mean that the config is no good
        raise UserError(f"{path} cannot be read: {error!r}") from error


def _locate_tensors(folder: Path) -> dict[str, _Entry]:
    """Tensor name to where it lies, from every shard's header.

    Raises:
        UserError: No weights, a tensor in two files, or a file truncated or damaged; or as `_weight_files`.
    """
    where: dict[str, _Entry] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    piece = file.get_slice(name)
                    if name in where:
                        raise UserError(
                            f"{name} is in both {where[name].path} and {path}; remove the file that is not meant"
                        )
                    where[name] = _Entry(piece.get_dtype(), path, tuple(piece.get_shape()))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is truncated or damaged: {error}; fetch or save it again") from error
    return where


def _weight_files(folder: Path) -> list[Path]:
    """The files transformers would read: the index's shards, else ``model.safetensors``, else all there are.

    Raises:
        UserError: No weights; an index that is damaged, or names files outside the folder or missing ones.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        single = folder / "model.safetensors"
        paths = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
        if not paths:
            raise UserError(f"{folder} holds no safetensors weights; convert the checkpoint to safetensors first")
        return paths
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [folder / name for name in names]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is damaged: {error}; fetch or save it again") from error
    if outside := [str(n) for n, p in zip(names, paths, strict=True) if p.parent.resolve() != folder.resolve()]:
        raise UserError(f"{index} names files outside the folder: {', '.join(outside)}; correct it, or fetch it again")
    if missing := [p.name for p in paths if not p.is_file()]:
        raise UserError(f"{index} names shards that are missing: {', '.join(missing)}; fetch them into {folder}")
    if not paths:
        raise UserError(f"{index} names no weights; fetch or save it again")
    return paths

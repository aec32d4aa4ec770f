"""Checkpoints on disk: checked before use, read tensor by tensor from memory-mapped safetensors."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.model.families import family_of, known_families
from qarat.model.recognition import (
    ADAPTER,
    MULTIMODAL,
    adapter_refusal,
    is_adapter,
    names_refusal,
    quantized_as,
    quantized_refusal,
    read_card,
)
from qarat.model.shards import Entry, expect, locate_tensors
from qarat.model.tokenizing import read_tokenizer
from qarat.values.hub_names import name_in_cache

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Computed, not learnt; old LLaMA checkpoints carry it all the same (transformers drops it too).
_DERIVED = re.compile(r"rotary_emb\.inv_freq$")


class Checkpoint:
    """A Hugging Face folder whose weights are safetensors.

    Attributes:
        path: What it is opened by, and called in messages.
        folder: Where config and tokenizer lie; ``path`` itself, unless another format had to be translated.
        config: Of transformers.
        dtype: The narrowest that a float tensor is kept in.
        notes: What a person should know of the folder, a line each.
        declared: The dtype that the config declares, in which engines run it; that above where it says none.
        source: What it was made from and what its tensors are stored in, in words; empty for a float checkpoint.
        stored: In what most matrices are stored, and how many bits that takes for an element; None for a float one.
        has_weights: Whether there is more than a config (`qarat.model.outline`).
    """

    has_weights = True
    source = ""
    notes: tuple[str, ...] = ()
    stored: tuple[str, float] | None = None

    def __init__(self, folder: Path, *, quantized: bool = False) -> None:
        """Read config and index, and check that every shard is there and whole.

        Args:
            folder: Where it lies.
            quantized: Whether it may be one that another format describes, in the config's ``quantization_config``;
                what that means is the caller's to know.

        Raises:
            UserError: Not a model folder, unsupported architecture, quantized already, shards missing or damaged, more
                blocks than tensors.
        """
        self.path = self.folder = folder
        self._outside: dict[tuple[str, str], dict[str, Tensor]] = {}
        self.config = _read_config(folder, quantized=quantized)
        declared = self.config.dtype  # before a model is built by it, which writes its own there
        self._where = self._locate()
        if (folder / ADAPTER).is_file():
            self.notes = (
                f"{folder / ADAPTER} is not applied; to measure the adapter, merge it first (merge_and_unload)",
            )
        if self.config.num_hidden_layers > len(self._where):  # before so many are built
            raise UserError(
                f"{folder / 'config.json'} describes {self.config.num_hidden_layers} blocks, and there are but "
                f"{len(self._where)} tensors"
            )
        kinds = sorted({entry.dtype for entry in self._where.values()} & _FLOATS.keys())
        # The narrowest float kind is the model's own: norms are often kept wider than the weights.
        self.dtype = min((_FLOATS[k] for k in kinds), key=lambda d: torch.finfo(d).bits, default=torch.float32)
        self.declared = getattr(torch, str(declared).removeprefix("torch."), None) or self.dtype

    def _locate(self) -> dict[str, Entry]:
        """Name of every tensor to where it lies; errors as of the constructor."""
        return locate_tensors(self.folder)

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

    @property
    def origin(self) -> str:
        """What the model is called: its hub id, where the folder is the hub's cache, else the folder's name."""
        return name_in_cache(self.path.resolve()) or self.path.resolve().name.removesuffix(".gguf")

    @property
    def card(self) -> dict[str, Any]:
        """Licence, language and task as the head of the model's card has them; empty where there is none to read."""
        return read_card(self.folder)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's own tokenizer.

        Raises:
            UserError: If it has none that can be read.
        """
        try:
            return read_tokenizer(self.folder, self.config)
        except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
            raise UserError(
                f"the tokenizer in {self.path} cannot be read: {error}; copy tokenizer.json and "
                "tokenizer_config.json from where the model comes from"
            ) from error

    def skeleton(self, **options: Any) -> nn.Module:
        """The model that the config describes, on the meta device.

        Args:
            **options: Of transformers' ``from_config``.

        Raises:
            UserError: If the config describes no model.
        """
        path = self.folder / "config.json"
        try:
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(self.config, **options)
        except Exception as error:  # whatever stumbles first over a number that makes no sense
            raise UserError(
                f"{path} describes no model: {error!r}; take it from the same model as the weights"
            ) from error

    def largest_beyond(self, bound: float) -> dict[str, float]:
        """Tensors wider than float16 whose largest magnitude is beyond a bound, with that magnitude."""
        wide = [name for name, entry in self._where.items() if entry.dtype in ("F32", "BF16", "F64")]
        return {name: most for name, tensor in self._tensors(wide) if (most := float(tensor.abs().max())) > bound}

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
        self._recognize(wanted)
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
                f"{self.path}: config and weights disagree:\n  "
                + "\n  ".join(sorted(offences))
                + "\ntake config.json and all weight files from the same model"
            )

    def _recognize(self, wanted: Mapping[str, Tensor]) -> None:
        """Refuse what is no float model of this config for a reason that has a name.

        Raises:
            UserError: Quantized, LoRA's matrices among the weights, or all names with something in front.
        """
        if method := quantized_as(self.folder, self._where):
            raise UserError(quantized_refusal(self.path, method))
        if refusal := names_refusal(self.path, self._where.keys(), wanted.keys()):
            raise UserError(refusal)

    def read(
        self, prefix: str, wanted: Mapping[str, Tensor], runtime: Runtime, *, narrow: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """Read tensors, cast to the runtime's dtype and moved to its device.

        Args:
            prefix: In front of every wanted name, as the checkpoint spells it.
            wanted: Name to a tensor (on any device) of the shape that is expected.
            runtime: Device and dtype.
            narrow: Names of those that stay as they are stored, where that is narrower.

        Raises:
            UserError: Missing tensors and shapes that differ (all of them at once); NaN or Inf (names the tensor).
        """
        missing = [f"{prefix}{name}: missing" for name in wanted if prefix + name not in self._where]
        if missing:
            raise UserError(f"{self.path}: config and weights disagree:\n  " + "\n  ".join(missing))
        tensors: dict[str, Tensor] = {}
        offences: list[str] = []
        for full, tensor in self._tensors(prefix + name for name in wanted):
            name = full.removeprefix(prefix)
            if tensor.shape != wanted[name].shape:
                shapes = f"{tuple(tensor.shape)} in the file, {tuple(wanted[name].shape)} by the config"
                offences.append(f"{full}: {shapes}")
            elif not _is_finite(tensor):
                bad = int((~tensor.isfinite()).sum())
                offences.append(f"{full}: {bad} of {tensor.numel()} values are NaN or Inf")
            else:
                kept = name in narrow and tensor.dtype.itemsize < runtime.torch_dtype.itemsize
                tensors[name] = self._unread(full, tensor) if kept else tensor.to(runtime.device, runtime.torch_dtype)
        if offences:
            listed = "\n  ".join(sorted(offences))
            raise UserError(f"{self.path}: weights cannot be used:\n  {listed}\nfetch or save the checkpoint again")
        return tensors

    def read_outside(self, wanted: Mapping[str, Tensor], runtime: Runtime) -> dict[str, Tensor]:
        """As `read`, once: models of one checkpoint share what lies outside their blocks, and never write there.

        In the memory of a CPU matrices stay as narrow as they are stored, until they are used (`qarat.model.widening`).
        """
        key = runtime.device, runtime.dtype
        if key not in self._outside:
            matrices = [name for name, tensor in wanted.items() if tensor.dim() > 1 and runtime.device == "cpu"]
            self._outside[key] = self.read("", wanted, runtime, narrow=matrices)
        return dict(self._outside[key])

    def _unread(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor that was gone through; mapped from its file anew, or all of it would stay resident."""
        return dict(self._tensors([name]))[name] if tensor.untyped_storage().filename else tensor

    def _tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors by their full names, in the dtype they are stored in, each with its name.

        Each is mapped by itself: a map of the whole file would keep resident all that was read of it so far.
        """
        for name in names:
            with safe_open(self._where[name].path, "pt") as file:
                yield name, file.get_tensor(name)

    def expect(self, prefix: str) -> None:
        """Have the tensors whose names begin with a prefix brought from the disk while something else is done."""
        expect(entry for name, entry in self._where.items() if name.startswith(prefix) and entry.span[1])

    def read_raw(self, prefix: str, device: str) -> dict[str, Tensor]:
        """Every tensor whose name begins with a prefix, in the dtype it is stored in.

        Args:
            prefix: As the checkpoint spells it; the names returned are without it.
            device: Where the tensors go.
        """
        names = [name for name in self._where if name.startswith(prefix)]
        return {name.removeprefix(prefix): tensor.to(device) for name, tensor in self._tensors(names)}


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
        UserError: Unreadable or invalid, unsupported, quantized already, or an adapter's.
    """
    if is_adapter(folder):
        raise UserError(adapter_refusal(folder))
    path = folder / "config.json"
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} cannot be read: it holds no JSON object")
    # Before transformers sees it: for a type it does not know it offers to run the folder's own code.
    given: Any = raw.get("architectures")
    named = [str(name) for name in given] if isinstance(given, list) else []
    if isinstance(raw.get("text_config"), dict) and not known_families().keys() & set(named):
        raise UserError(f"{path} is of {', '.join(named) or 'no class'}: it is {MULTIMODAL}")
    family_of(named)
    described = raw.get("quantization_config") or raw.get("compression_config")
    if described and not quantized:
        method = described.get("quant_method", "unnamed") if isinstance(described, dict) else "unnamed"
        alone = not quantized_as(folder, locate_tensors(folder))
        raise UserError(quantized_refusal(folder, str(method), by_config_alone=alone))
    dtype = raw.get("dtype") or raw.get("torch_dtype")
    if isinstance(dtype, str) and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise UserError(f"{path}: {dtype!r} is no dtype that transformers reads; write float16, bfloat16 or float32")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and its checks raise many kinds; all mean that the config is no good
        raise UserError(f"{path} cannot be read: {error!r}") from error

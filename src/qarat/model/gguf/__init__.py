"""A GGUF file as a checkpoint: translated into what a Hugging Face folder holds, tensor by tensor as they are wanted.

Config and tokenizer are written, once, into a folder that goes away with the checkpoint; from there on they are read,
and copied beside what is exported, like any other. Tensors stay in the file: one is dequantized (by the ``gguf``
package) when the walk comes to its block.

**The float model of a quantized file is what its codes stand for, rounded to bfloat16**, the dtype that such models are
trained and served in; so what is measured is, to the last bit, what an export holds. Tensors that the file keeps in
float keep their own dtype. Nothing brings back what the file's rounding took: activations are as real as ever, but the
weights lie on a coarse grid already, which flatters whatever rounds them to one nearly as coarse. So records of
the file, and of folders quantized from it, say what the tensors were stored in.

Given up: files in parts, big-endian ones, experts, and every architecture, type of tensor, tokenizer and rotary
embedding that is not named here; they are refused.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qarat.ground.disk import explained
from qarat.model.checkpoints import Checkpoint
from qarat.model.gguf.config import ROPE, family_in, translate_config
from qarat.model.gguf.file import FLOATS, bits_of, read_head
from qarat.model.gguf.tokenizer import build_tokenizer
from qarat.model.shards import Entry

__all__ = ["GgufCheckpoint"]

_FACTS = ("organization", "license")  # of general.*, said behind the name


class GgufCheckpoint(Checkpoint):
    """A checkpoint whose weights lie in one GGUF file."""

    def __init__(self, path: Path) -> None:
        """Read the file's head, and check that all of it is there and can be read.

        Args:
            path: The file.

        Raises:
            UserError: As `read_head`, `translate_config` and `build_tokenizer`; no room for config and tokenizer.
        """
        self._file = read_head(path)
        family, self._gguf = family_in(self._file)
        self._norm_offset = family.norm_offset
        config = translate_config(self._file)
        self._directory = tempfile.TemporaryDirectory(prefix="qarat-")  # gone with the checkpoint
        folder = Path(self._directory.name)
        tokenizer = build_tokenizer(self._file, config.max_position_embeddings)
        with explained(folder):
            tokenizer.save_pretrained(folder)
            config.save_pretrained(folder)
        super().__init__(folder)
        self.path = path

    @cached_property
    def _names(self) -> dict[str, str]:
        """What transformers calls a tensor, by its name in GGUF."""
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        architecture = next(a for a, name in MODEL_ARCH_NAMES.items() if name == self._gguf.architecture)
        table = get_tensor_name_map(architecture, self.config.num_hidden_layers)
        ours = self.skeleton().state_dict()
        return {table.get_name(name, (".weight", ".bias")) or name: name for name in ours}

    @cached_property
    def _theirs(self) -> dict[str, str]:
        """What GGUF calls a tensor, by its name in transformers."""
        return {ours: name for name, ours in self._names.items()}

    def _locate(self) -> dict[str, Entry]:
        """By the names that transformers has for them; a tensor that it has none for keeps its own."""
        where: dict[str, Entry] = {}
        for name, tensor in self._file.tensors.items():
            if name != ROPE:
                kind = tensor.tensor_type.name
                shape = tuple(int(size) for size in reversed(tensor.shape))
                kind, span = kind if kind in FLOATS else "BF16", (int(tensor.data_offset), int(tensor.n_bytes))
                where[self._names.get(name, name)] = Entry(kind, self._file.path, shape, span)
        return where

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        with self._file.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @cached_property
    def stored(self) -> tuple[str, float] | None:
        """The type of most matrices and its bits; None where that is a float."""
        kinds = Counter(t.tensor_type.name for t in self._file.tensors.values() if len(t.shape) > 1)
        kind, _ = kinds.most_common(1)[0]
        return None if kind in FLOATS else (kind, bits_of(kind))

    @cached_property
    def source(self) -> str:
        """What the model is called, whose it is, and what its tensors are stored in."""
        says = {key: str(self._file.values.get(f"general.{key}", "")) for key in ("name", *_FACTS)}
        facts = ", ".join(filter(None, (says[key] for key in _FACTS)))
        kinds = Counter(kind for kind in self._file.kinds.values()).most_common()
        stored = ", ".join(f"{kind} ({bits_of(kind):g} bits) × {count}" for kind, count in kinds)
        return f"{says['name'] or self._file.path.stem}{f' ({facts})' if facts else ''}, tensors of a GGUF: {stored}"

    def _tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Dequantized one by one, in transformers' order of rows."""
        from gguf import dequantize

        for name in names:
            tensor = self._file.tensors[self._theirs.get(name, name)]
            values = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type)))
            yield name, self._restored(name, values).to(self.dtype_of(name))

    def _restored(self, name: str, values: Tensor) -> Tensor:
        """A tensor as transformers has it."""
        if self._norm_offset and name.endswith("norm.weight"):
            return values - self._norm_offset  # stored as what is multiplied with
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        if self._gguf.paired_rows and heads is not None:
            # From pairs (llama.cpp's rotary embedding) to halves.
            return values.unflatten(0, (getattr(self.config, heads), -1, 2)).transpose(1, 2).reshape(values.shape)
        return values

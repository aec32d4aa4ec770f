"""A model of which there is a config and a tokenizer, and no weights: enough to say what a command would take."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from qarat.ground.runtime import Runtime
from qarat.model.checkpoints import Checkpoint
from qarat.model.folders import KINDS
from qarat.model.shards import Entry


def lacks_weights(folder: Path) -> bool:
    """Whether a folder has a config, and nothing that could be weights."""
    return (folder / "config.json").is_file() and not any(
        any(folder.glob(f"*.{kind}")) for kind in ("safetensors", "gguf", "bin", "pt", "pth", "index.json")
    )


class Outline(Checkpoint):
    """What a config describes; every tensor has its shape, and no numbers."""

    def __init__(self, folder: Path) -> None:
        """Read the config; errors as of `Checkpoint`, but for those of weights."""
        super().__init__(folder)
        self.has_weights = False
        self.notes = (
            f"{folder} holds no weights: what follows is from config.json alone, and no weight was checked; bringing "
            "them from disk is counted as if they lay in memory",
        )

    def _locate(self) -> dict[str, Entry]:
        state: Mapping[str, Tensor] = self.skeleton().state_dict()
        stored = getattr(torch, str(self.config.dtype).removeprefix("torch."), None)
        kind = KINDS.get(stored, "BF16") if isinstance(stored, torch.dtype) else "BF16"
        return {name: Entry(kind, self.folder / "config.json", tuple(tensor.shape)) for name, tensor in state.items()}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the config."""
        return hashlib.sha256((self.folder / "config.json").read_bytes()).hexdigest()

    def check(self, wanted: Mapping[str, Tensor], optional: Collection[str] = ()) -> None:
        """There is nothing that could disagree with the config."""

    def read(
        self, prefix: str, wanted: Mapping[str, Tensor], runtime: Runtime, *, narrow: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """Tensors on the meta device; arguments as of `Checkpoint.read`."""
        return {name: torch.empty(t.shape, dtype=runtime.torch_dtype, device="meta") for name, t in wanted.items()}

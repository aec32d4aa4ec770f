"""Models opened by a name: a path, a reference model, or a hub id."""

from __future__ import annotations

from pathlib import Path

import torch

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime, check_threads
from qarat.model.checkpoints import Checkpoint
from qarat.model.finding import find_checkpoint, is_gguf
from qarat.model.model import Model
from qarat.model.native import is_native
from qarat.model.outline import Outline, lacks_weights


def open_model(
    name: str, runtime: Runtime | None = None, *, revision: str | None = None, outline: bool = False
) -> Model:
    """Open a checkpoint without loading its blocks.

    Args:
        name: A local Hugging Face folder, a GGUF file, a reference model's name, or a hub id.
        runtime: Device, dtype and limits; default a GPU if there is one, float32.
        revision: Of the hub id.
        outline: Whether a folder without weights will do: its model is for estimates, and computes nothing.

    Raises:
        UserError: No such model, unsupported architecture, damaged or contradictory files.
    """
    checkpoint = find_checkpoint(name, revision)
    checkpoint = Outline(checkpoint) if outline and lacks_weights(checkpoint) else read_checkpoint(checkpoint)
    return open_checkpoint(checkpoint, runtime or Runtime())


def open_checkpoint(checkpoint: Checkpoint, runtime: Runtime) -> Model:
    """Open a float checkpoint that was checkpoint already; errors as `open_model`."""
    if runtime.threads:
        check_threads(runtime.threads)
        torch.set_num_threads(runtime.threads)
    return Model(checkpoint, runtime)


def read_checkpoint(path: Path) -> Checkpoint:
    """The float checkpoint that lies in a folder or a GGUF file; errors as of its class."""
    if is_native(path):
        raise UserError(
            f"{path} is quantized already, by qarat: `qarat evaluate` and `qarat.open_model` open it; here the float "
            "model is wanted that it was made from"
        )
    if is_gguf(path) and path.is_file():
        from qarat.model.gguf import GgufCheckpoint  # only where there is one

        return GgufCheckpoint(path)
    return Checkpoint(path)

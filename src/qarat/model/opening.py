"""Models opened by a name: a path, a reference model, or a hub id."""

from __future__ import annotations

from pathlib import Path

import torch

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.ground.runtime import Runtime
from qarat.model.checkpoints import Checkpoint
from qarat.model.model import Model
from qarat.model.native import is_native
from qarat.model.reference_models import PACKAGED, find_packaged, reference_models

GGUF = ".gguf"


def open_model(name: str, runtime: Runtime | None = None, *, revision: str | None = None) -> Model:
    """Open a checkpoint without loading its blocks.

    Args:
        name: A local Hugging Face folder, a GGUF file, a reference model's name, or a hub id.
        runtime: Device, dtype and limits; default CPU, float32.
        revision: Of the hub id.

    Raises:
        UserError: No such model, unsupported architecture, damaged or contradictory files.
    """
    return open_checkpoint(read_checkpoint(find_checkpoint(name, revision)), runtime or Runtime())


def open_checkpoint(checkpoint: Checkpoint, runtime: Runtime) -> Model:
    """Open a float checkpoint that was found already; errors as `open_model`."""
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    return Model(checkpoint, runtime)


def find_checkpoint(name: str, revision: str | None = None) -> Path:
    """The folder of a model, or its GGUF file.

    Args:
        name: A local path, a reference model's name, or a hub id (downloaded into the hub's cache).
        revision: Of the hub id.

    Raises:
        UserError: Nothing by that name; says what was tried.
    """
    path = Path(name)
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        if path.suffix != GGUF:
            raise UserError(f"{path} is a file, no model; give a folder that holds config.json, or a *{GGUF} file")
        return path
    if packaged := find_packaged(name):
        return packaged
    if path.suffix == GGUF:
        raise UserError(f"no such file: {name}; check the spelling, or fetch it first")
    known = reference_models()
    if name in known:
        return known[name]
    if path.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise UserError(
            f"no such folder: {name}; and no reference model of that name: {nearest_names(name, [*known, *PACKAGED])}"
        )
    from huggingface_hub import snapshot_download  # only where the network is asked for

    try:
        patterns = ["*.json", "*.safetensors", "tokenizer*", "*.model", "*.jinja", "README.md"]
        patterns += ["LICEN[CS]E*", "NOTICE*", "COPYING*", "USE_POLICY*"]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds; all mean that the model could not be had
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"no such folder: {name}, no reference model of that name ({nearest_names(name, [*known, *PACKAGED])}), "
            f"and the hub does not give it: {reason}; check the spelling, or fetch it elsewhere and give its folder"
        ) from error
    return _in_folder(folder)


def _in_folder(folder: Path) -> Path:
    """The folder itself, or the one GGUF file in it, where there are no other weights."""
    files = sorted(folder.glob(f"*{GGUF}"))
    if (folder / "config.json").is_file() and (not files or any(folder.glob("*.safetensors"))):
        return folder
    match files:
        case [file]:
            return file
        case []:
            raise UserError(
                f"{folder} holds no config.json, so it is no Hugging Face model folder; give the folder that holds "
                f"config.json, the tokenizer and *.safetensors, or a *{GGUF} file"
            )
        case files:
            raise UserError(f"{folder} holds {len(files)} GGUF files; give one: {', '.join(f.name for f in files)}")


def read_checkpoint(path: Path) -> Checkpoint:
    """The float checkpoint that lies in a folder or a GGUF file; errors as of its class."""
    if is_native(path):
        raise UserError(
            f"{path} is quantized already, by qarat: `qarat evaluate` and `qarat.open_model` open it; here the float "
            "model is wanted that it was made from"
        )
    if path.suffix == GGUF and path.is_file():
        from qarat.model.gguf import GgufCheckpoint  # only where there is one

        return GgufCheckpoint(path)
    return Checkpoint(path)

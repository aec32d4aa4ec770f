"""Models found by name: a path, a reference model, or a hub id; and the checkpoint that lies there."""

from __future__ import annotations

from pathlib import Path

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.model.checkpoints import Checkpoint
from qarat.model.reference_models import find_packaged, reference_models

GGUF = ".gguf"


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
    known = reference_models()
    if name in known:
        return known[name]
    if path.is_absolute() or name.startswith(".") or name.count("/") != 1:
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


def _in_folder(folder: Path) -> Path:
    """The folder itself, or the one GGUF file in it."""
    if (folder / "config.json").is_file():
        return folder
    match sorted(folder.glob(f"*{GGUF}")):
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
    if path.suffix == GGUF and path.is_file():
        from qarat.model.gguf import GgufCheckpoint  # only where there is one

        return GgufCheckpoint(path)
    return Checkpoint(path)

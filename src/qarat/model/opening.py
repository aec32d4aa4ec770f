"""Models opened by a name: a path, a reference model, or a hub id."""

from __future__ import annotations

from pathlib import Path

import torch

from qarat.ground.errors import UserError, first_line
from qarat.ground.registry import nearest_names
from qarat.ground.runtime import Runtime, check_threads
from qarat.model.checkpoints import Checkpoint
from qarat.model.model import Model
from qarat.model.native import is_native
from qarat.model.recognition import adapter_refusal, is_adapter
from qarat.model.reference_models import PACKAGED, find_packaged, reference_models
from qarat.values.hub_names import parse_hub_name

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
        check_threads(runtime.threads)
        torch.set_num_threads(runtime.threads)
    return Model(checkpoint, runtime)


def find_checkpoint(name: str, revision: str | None = None) -> Path:
    """The folder of a model, or its GGUF file.

    Args:
        name: A local path, a reference model's name, or a hub id as `parse_hub_name` takes it (downloaded into the
            hub's cache).
        revision: Of the hub id.

    Raises:
        UserError: Nothing by that name; says what was tried.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        if path.suffix != GGUF:
            raise UserError(
                f"{path} is a file, not a folder; give the folder that holds config.json (is it {path.parent}?), or a "
                f"*{GGUF} file"
            )
        return path
    if packaged := find_packaged(name):
        return packaged
    if path.suffix == GGUF:
        raise UserError(f"no such file: {name}; check the spelling, or fetch it first")
    known = reference_models()
    if name in known:
        return known[name]
    others = nearest_names(name, [*known, *PACKAGED])
    hub_id, named = parse_hub_name(name)
    if path.is_absolute() or name.startswith((".", "~")) or hub_id.count("/") != 1:
        raise UserError(
            f"no such folder: {name}; and no reference model of that name: {others}; a hub id is OWNER/NAME"
        )
    if revision and named and revision != named:
        raise UserError(f"{name} names the revision {named}, and `revision` is {revision}; give one of them")
    return _in_folder(_download(hub_id, revision or named, others))


def _download(hub_id: str, revision: str | None, others: str) -> Path:
    from huggingface_hub import snapshot_download  # only where the network is asked for
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors", "tokenizer*", "*.model", "*.jinja", "README.md"]
        patterns += ["LICEN[CS]E*", "NOTICE*", "COPYING*", "USE_POLICY*"]
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        reason = f"it is gated: agree to its terms at https://huggingface.co/{hub_id}, and log in (hf auth login)"
    except RepositoryNotFoundError:
        reason = "the hub has none, or not for you; check the spelling, or log in (hf auth login)"
    except LocalEntryNotFoundError:
        reason = "the hub cannot be reached, and nothing of it is in the cache; fetch it elsewhere and give its folder"
    except Exception as error:  # the client raises many kinds; all mean that the model could not be had
        reason = f"the hub does not give it: {first_line(error)}; fetch it elsewhere and give its folder"
    what = f"{hub_id} at {revision}" if revision else hub_id
    raise UserError(f"no such folder: {what}, no reference model of that name ({others}), and {reason}")


def _in_folder(folder: Path) -> Path:
    """The folder itself, or the one GGUF file in it, where there are no other weights."""
    files = sorted(folder.glob(f"*{GGUF}"))
    if (folder / "config.json").is_file() and (not files or any(folder.glob("*.safetensors"))):
        return folder
    if not files and is_adapter(folder):
        raise UserError(adapter_refusal(folder))
    match files:
        case [file]:
            return file
        case []:
            deeper = sorted({p.parent for way in ("*", "snapshots/*") for p in folder.glob(f"{way}/config.json")})
            hint = f"; there is one in {', '.join(map(str, deeper))}" if deeper else ""
            raise UserError(
                f"{folder} holds no config.json, so it is no Hugging Face model folder; give the folder that holds "
                f"config.json, the tokenizer and *.safetensors, or a *{GGUF} file{hint}"
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

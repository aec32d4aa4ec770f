"""Where a model lies that is given by a name: a path, a reference model's name, or a hub id. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from qarat.ground.errors import UserError, first_line
from qarat.ground.registry import nearest_names
from qarat.model.recognition import adapter_refusal, is_adapter, other_weights
from qarat.model.reference_models import PACKAGED, find_packaged, reference_models
from qarat.values.hub_names import parse_hub_name

GGUF = ".gguf"
PATIENCE = 10.0
"""Seconds for the hub to answer; its client alone would wait for minutes."""


def is_gguf(path: Path) -> bool:
    """Whether a file is called as GGUF files are."""
    return path.suffix.lower() == GGUF


def find_checkpoint(name: str, revision: str | None = None) -> Path:
    """The folder of a model, or its GGUF file.

    Args:
        name: A local path, a reference model's name, or a hub id as `parse_hub_name` takes it (downloaded into the
            hub's cache).
        revision: Of the hub id.

    Raises:
        UserError: Nothing by that name; says what was tried.
    """
    if local := find_local(name):
        return local
    hub_id, named = parse_hub_name(name)
    if revision and named and revision != named:
        raise UserError(f"{name} names the revision {named}, and `revision` is {revision}; give one of them")
    return _in_folder(_download(hub_id, revision or named))


def find_local(name: str) -> Path | None:
    """The folder of a model on this machine, or its GGUF file; None for what may be on the hub.

    Raises:
        UserError: As `find_checkpoint`, but for what only the hub knows.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        if is_gguf(path):
            return path
        where = f"give the folder that holds config.json (is it {path.parent}?), or a *{GGUF} file"
        raise UserError(f"{path} is a file, not a folder; {other_weights([path.name]) or where}")
    if packaged := find_packaged(name):
        return packaged
    if path.suffix.lower() in (GGUF, ".safetensors", ".json"):
        raise UserError(f"no such file: {name}; check the spelling, or fetch it first")
    known = reference_models()
    if name in known:
        return known[name]
    if path.is_absolute() or name.startswith((".", "~")) or parse_hub_name(name)[0].count("/") != 1:
        others = nearest_names(name, [*known, *PACKAGED])
        raise UserError(
            f"no such folder: {name}; and no reference model of that name: {others}; a hub id is OWNER/NAME"
        )
    return None


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import constants, get_session, snapshot_download  # only where the network is asked for
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    silent = False
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # whatever else is wrong, the download says
        silent = "timeout" in type(error).__name__.lower()
    try:
        patterns = ["*.json", "*.safetensors", "tokenizer*", "*.model", "*.jinja", "README.md"]
        patterns += ["LICEN[CS]E*", "NOTICE*", "COPYING*", "USE_POLICY*"]
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns, local_files_only=silent))
    except GatedRepoError:
        reason = f"it is gated: agree to its terms at https://huggingface.co/{hub_id}, and log in (hf auth login)"
    except RepositoryNotFoundError:
        reason = "the hub has none, or not for you; check the spelling, or log in (hf auth login)"
    except LocalEntryNotFoundError:
        reason = "the hub cannot be reached, and nothing of it is in the cache; fetch it elsewhere and give its folder"
    except Exception as error:  # the client raises many kinds; all mean that the model could not be had
        reason = f"the hub does not give it: {first_line(error)}; fetch it elsewhere and give its folder"
    what = f"{hub_id} at {revision}" if revision else hub_id
    raise UserError(f"{what} is no folder and no reference model (see `qarat models`), and {reason}")


def _in_folder(folder: Path) -> Path:
    """The folder itself, or the one GGUF file in it, where there are no other weights."""
    files = sorted(filter(is_gguf, folder.iterdir()))
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
            if not deeper and (
                there := other_weights([path.name for way in ("*", "*/*") for path in folder.glob(way)])
            ):
                raise UserError(f"{folder} holds no config.json, but {there}")
            raise UserError(
                f"{folder} holds no config.json, so it is no Hugging Face model folder; give the folder that holds "
                f"config.json, the tokenizer and *.safetensors, or a *{GGUF} file{hint}"
            )
        case files:
            raise UserError(f"{folder} holds {len(files)} GGUF files; give one: {', '.join(f.name for f in files)}")

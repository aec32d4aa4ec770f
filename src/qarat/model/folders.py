"""What all folders share that qarat writes of a model: their mark, what is copied, how dtypes are called.

Nothing here reads a format; `qarat.model.native` is one, `qarat.stages.export` has the others.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from qarat.ground.errors import UserError
from qarat.model.model import Model

MARK = "qarat-plan.json"
"""The plan beside every export; it is also how an export is known as ours."""
PLAN = "plan.json"
INDEX = "model.safetensors.index.json"
BESIDE = (".json", ".txt", ".model", ".jinja")  # kinds of the files that are copied from the source
LICENCE = re.compile(r"(licen[cs]e|notice|copying|use_policy)", re.IGNORECASE)  # beginnings of names that go along too
TEMPLATES = "additional_chat_templates"
NATIVE_INDEX = "qarat.index.json"
"""Of a native folder. By the usual name others would take it for theirs, and draw what they miss at random."""
NOT_BESIDE = (INDEX, NATIVE_INDEX, PLAN, MARK, "training.json")  # ours, or of the source's weights

KINDS = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
}
"""Dtypes as headers of safetensors spell them."""


def require_exact(model: Model) -> None:
    """Refuse to write a model whose numbers were rounded when they were read.

    Raises:
        UserError: If it was opened in a dtype that does not hold what its checkpoint does.
    """
    computed = model.runtime.torch_dtype
    stored = {model.checkpoint.dtype_of(name) for name in model.tensor_shapes() if name in model.checkpoint}
    if computed != torch.float32 and not stored <= {computed}:
        raise UserError(f"{model.path} was opened in {model.runtime.dtype}, which rounds it; open it in float32")


def copy_beside(model: Model, target: Path) -> None:
    """Copy config, tokenizer, chat templates, generation config and licence as they lie beside the model's checkpoint.

    Args:
        model: Of a config that says another inner width than its checkpoint's, that number is written.
        target: A folder, which exists.
    """
    for path in sorted(model.folder.iterdir()):
        if path.suffix in BESIDE and path.name not in NOT_BESIDE and path.is_file():
            shutil.copyfile(path, target / path.name)
    if (model.folder / TEMPLATES).is_dir():
        shutil.copytree(model.folder / TEMPLATES, target / TEMPLATES, dirs_exist_ok=True)
    copy_licence(model, target)
    field = model.family.inner_width
    if (width := getattr(model.config, field)) != getattr(model.checkpoint.config, field):
        write_config(target, {field: width})


def copy_licence(model: Model, target: Path) -> None:
    """Copy what says under which terms a model's weights may be used; arguments as `copy_beside`."""
    for path in sorted(model.folder.iterdir()):
        if LICENCE.match(path.name) and path.is_file():
            shutil.copyfile(path, target / path.name)


def write_config(folder: Path, fields: dict[str, Any]) -> None:
    """Set fields of a folder's ``config.json``, everything else in it left as it is.

    Args:
        folder: Which has one.
        fields: Names to values.
    """
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

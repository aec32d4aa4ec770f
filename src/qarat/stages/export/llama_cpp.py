"""The plan as llama-quantize's arguments (tensor-types.txt), for a GGUF that llama.cpp converted.

One ``--tensor-type`` a projection, by its whole name between anchors, because llama-quantize *searches* for what it
is given and the first that is found wins. Types are the nearest there are, K-quants among them; where a row is no
whole number of their superblocks, the type is chosen here, as otherwise llama-quantize would choose another by
itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from qarat.ground.runtime import Progress
from qarat.model.model import Model
from qarat.stages.export.gguf.types import describe_types, float_type, tensor_name, type_of_sites
from qarat.stages.export.recipes import refuse_transforms
from qarat.values.plans import Plan

EXTRA = ""
NEEDS: tuple[str, ...] = ()
TYPES, COMMAND = "tensor-types.txt", "command.txt"


def check(model: Model, plan: Plan) -> None:
    """Refuse what llama.cpp cannot hold (protocol `qarat.stages.export.base.Exporter`)."""
    refuse_transforms(plan, "llama.cpp")
    type_of_sites(model, plan, "llama.cpp", superblocks=True)


def write(model: Model, plan: Plan, folder: Path, *, progress: Progress) -> Sequence[str]:
    """Write arguments and command line (protocol `qarat.stages.export.base.Exporter`)."""
    types = type_of_sites(model, plan, "llama.cpp", superblocks=True)
    (folder / TYPES).write_text("\n".join(tensor_types(types)) + "\n", encoding="utf-8")
    plain = float_type(model).lower()
    command = (
        f"llama-quantize --tensor-type-file {TYPES} --token-embedding-type {plain} --output-tensor-type {plain} "
        f"model-{plain}.gguf model-mixed.gguf Q8_0"
    )
    (folder / COMMAND).write_text(command + "\n", encoding="utf-8")
    return (f"run: {command}", *describe_types(plan, types))


def tensor_types(types: Mapping[str, str]) -> list[str]:
    """``pattern=type`` arguments, a projection each.

    Args:
        types: Full site name to GGUF type.
    """
    return [f"^{re.escape(tensor_name(f'{name}.weight'))}$={kind.lower()}" for name, kind in types.items()]

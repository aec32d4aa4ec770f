"""Artificial spikes, planted where none is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file, save
from torch import Tensor

from qarat.ground.disk import write_whole

State = TypeVar("State", Path, dict[str, Tensor])


def plant_spike(target: State, block: int, channel: int, factor: float) -> State:
    """Plant an artificial spike at the input of a ``down_proj`` that leaves the model's function as it is.

    Row ``channel`` of ``up_proj`` (and its bias) is multiplied by ``factor``, column ``channel`` of ``down_proj``
    divided by it. For unit tests of detectors only: no published figure rests on it. Real spikes are a few *tokens*
    that tower over the rest; this one is a channel that does.

    Args:
        target: A checkpoint's folder, rewritten in place, or a state dict, which is left alone.
        block: Index of the decoder layer.
        channel: Index along the MLP's width.
        factor: By how much; exact for powers of two.

    Returns:
        The folder, or a new state dict.
    """
    if isinstance(target, dict):
        return _planted(target, block, channel, factor)
    index = target / "model.safetensors.index.json"
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    for name in sorted(names):
        planted = _planted(load_file(target / name), block, channel, factor)
        # Not in place: an open model's weights may be maps of the old file.
        write_whole(target / name, save(planted, metadata={"format": "pt"}))
    return target


def _planted(state: Mapping[str, Tensor], block: int, channel: int, factor: float) -> dict[str, Tensor]:
    """The state dict with whatever part of the spike belongs to tensors that it holds."""
    mlp = f"model.layers.{block}.mlp"
    changed = {name: tensor.clone() for name, tensor in state.items()}
    for name in (f"{mlp}.up_proj.weight", f"{mlp}.up_proj.bias"):
        if name in changed:
            changed[name][channel] *= factor
    if f"{mlp}.down_proj.weight" in changed:
        changed[f"{mlp}.down_proj.weight"][:, channel] /= factor
    return changed

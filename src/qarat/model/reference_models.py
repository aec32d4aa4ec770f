"""The models trained by this project: where they lie, and what is written of them. Listing them needs no torch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec

_PACKAGE = Path(__file__).parents[1] / "bundled"
_CHECKOUT = Path(__file__).parents[3] / "reference" / "models"


def reference_models() -> dict[str, Path]:
    """Name to folder of the models trained by this project: the bundled one, and the others in a source checkout."""
    found = {p.name: p for p in (_PACKAGE, _CHECKOUT) if p.is_dir() for p in sorted(p.iterdir()) if is_model(p)}
    return dict(sorted(found.items()))


class ReferenceModel(msgspec.Struct, frozen=True):
    """What the list of reference models says of one.

    Attributes:
        name: Accepted wherever a model is.
        parameters: Outside the embedding.
        tokens: Trained on.
        training_loss: Mean of the last steps, nats per token.
        folder: Where it lies.
    """

    name: str
    parameters: int
    tokens: int
    training_loss: float
    folder: str


def describe_reference_models() -> list[ReferenceModel]:
    """Every reference model with what its ``training.json`` says."""
    found: list[ReferenceModel] = []
    for name, folder in reference_models().items():
        card = json.loads((folder / "training.json").read_text())
        loss = card["curve"][-1][1]
        found.append(ReferenceModel(name, card["parameters_outside_embedding"], card["tokens"], loss, str(folder)))
    return found


def trained_tokens(folder: Path) -> float:
    """D, the tokens that a model was trained on, as its ``training.json`` says; NaN where it has none."""
    card = folder / "training.json"
    return float(json.loads(card.read_text()).get("tokens", math.nan)) if card.is_file() else math.nan


def is_model(folder: Path) -> bool:
    """Whether a folder is one of a checkpoint that is complete."""
    return (folder / "config.json").is_file() and not folder.name.endswith(".partial")

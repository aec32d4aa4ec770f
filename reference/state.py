"""What a training run needs to go on after a kill, and how it knows its own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from recipes import Recipe
from windows import corpus_hash
from writing import write_whole


@dataclass
class State:
    """What a run needs to go on.

    Attributes:
        identity: What decides the bytes of a model, see `identify`.
        curve: Step, and the mean training loss since the last entry.
        spikes: Step, and what `watch` saw.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    identity: dict[str, str | int]
    step: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)
    spikes: list[tuple[int, list[list[float]]]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        saved = {
            **self.identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
            "spikes": self.spikes,
        }
        write_whole(path, lambda partial: torch.save(saved, partial))

    def load(self, path: Path) -> None:
        saved = torch.load(path, weights_only=True)
        # A state of before one of these was written is taken at its word.
        others = [(key, saved[key], here) for key, here in self.identity.items() if saved.get(key, here) != here]
        if others:
            raise SystemExit(
                "\n".join(
                    f"{path} belongs to another {k}:\n  there {there}\n  here  {here}" for k, there, here in others
                )
                + "\nDelete the folder to begin anew, or continue with what it was begun with."
            )
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.seconds = saved["step"], saved["seconds"]
        self.curve, self.spikes = saved["curve"], saved["spikes"]


def identify(recipe: Recipe, windows: np.ndarray) -> dict[str, str | int]:
    """What decides the bytes of a model; the number of threads by the order in which sums are added up."""
    return {
        "recipe": json.dumps(asdict(recipe)),
        "corpus": corpus_hash(),
        "set of windows": hashlib.sha256(windows.tobytes()).hexdigest(),
        "number of threads": torch.get_num_threads(),
        "version of torch": str(torch.__version__),
        "version of transformers": transformers.__version__,
    }

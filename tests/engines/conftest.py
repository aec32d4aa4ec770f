"""What the tests against other programs share: a tiny model and a mixed plan with static scales."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages import quantize as conversion
from qarat.stages.export.base import export_model
from qarat.stages.observe import observe
from qarat.testing import tiny_checkpoint
from qarat.values.plans import Plan, assign
from qarat.values.records.streams import ActivationStats

LENGTH = 24


class Subject(NamedTuple):
    """A tiny model with the stats that static scales come from.

    Attributes:
        folder: Of the float model.
        model: Opened.
        stats: Of `windows`.
        windows: (windows, tokens) ids.
        out: An empty folder for exports.
    """

    folder: Path
    model: Model
    stats: ActivationStats
    windows: Tensor
    out: Path

    def plan(self, low: str, *rules: tuple[str, str]) -> Plan:
        return assign(self.model.fingerprint, self.model.source_bits, self.model.sites(), low, rules)

    def quantized(self, plan: Plan) -> Model:
        return conversion.quantize(self.model, plan, self.stats)

    def export(self, format: str, low: str, *rules: tuple[str, str]) -> tuple[Plan, Path]:
        plan = self.plan(low, *rules)
        folder = self.out / format
        export_model(self.quantized(plan), plan, folder, format)
        return plan, folder


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Two blocks, widths that hold whole groups of 32."""
    home = tmp_path_factory.mktemp("engines")
    folder = tiny_checkpoint(home / "tiny", hidden=64, intermediate=96)
    model = open_model(str(folder))
    ids = torch.randint(2, 98, (6, LENGTH), generator=torch.Generator().manual_seed(5))
    ids[:, 0] = 0
    sources = tuple(f"text {i}" for i in range(len(ids)))
    tokens = TokenSet("calibration", f"windows-{LENGTH}-bos", ids, sources, ("0" * 64,), ("text",))
    return Subject(folder, model, observe(model, tokens), ids, home / "out")


@pytest.fixture(scope="session")
def walked() -> Callable[[Model, Tensor], Tensor]:
    """Logits by the walk."""

    @torch.no_grad()
    def logits(model: Model, tokens: Tensor) -> Tensor:
        hidden = model.embed(tokens)
        for index, block in model.walk():
            hidden = model.run_block(index, block, hidden)
        return model.logits(hidden)

    return logits

"""What the tests against vLLM share: tiny models with heads wide enough for its CPU attention, and their exports."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from qarat.bundled import run_engine
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.export.base import export_model
from qarat.stages.observe import observe
from qarat.stages.quantize import quantize
from qarat.stages.transforms import MadeFrom, parse_transform
from qarat.testing import tiny_checkpoint
from qarat.values.plans import Plan, assign

os.environ.update(run_engine.VLLM)
LENGTH = 24


class Export(NamedTuple):
    """A folder that vLLM is to load.

    Attributes:
        folder: In the compressed-tensors format.
        model: Quantized, as qarat computes it.
        plan: Of the model.
        tokens: Its windows are those that static scales came from.
    """

    folder: Path
    model: Model
    plan: Plan
    tokens: TokenSet


Exporting = Callable[..., Export]


@pytest.fixture(scope="session")
def exporting(tmp_path_factory: pytest.TempPathFactory) -> Exporting:
    """Makes a tiny random model of an architecture, quantizes it and exports it."""
    home = tmp_path_factory.mktemp("vllm")
    ids = torch.randint(2, 98, (6, LENGTH), generator=torch.Generator().manual_seed(5))
    ids[:, 0] = 0
    sources = tuple(f"text {i}" for i in range(len(ids)))
    tokens = TokenSet("calibration", f"windows-{LENGTH}-bos", ids, sources, ("0" * 64,), ("text",))

    def make(
        low: str,
        *rules: tuple[str, str],
        transforms: tuple[str, ...] = (),
        architecture: str = "llama",
        **config: object,
    ) -> Export:
        out = home / str(len(list(home.iterdir())))
        sizes = {"hidden": 128, "heads": 4, "kv_heads": 2, "intermediate": 256}
        model = open_model(str(tiny_checkpoint(out / "float", architecture=architecture, **(sizes | config))))
        for text in transforms:
            made_from: MadeFrom = observe(model, tokens, attention=False)
            model = parse_transform(text).apply(model, made_from)
        stats = observe(model, tokens)
        plan = assign(model.fingerprint, model.source_bits, model.sites(), low, rules)
        quantized = quantize(model, plan, stats, tokens)
        export_model(quantized, plan, out / "exported", "compressed-tensors")
        return Export(out / "exported", quantized, plan, tokens)

    return make

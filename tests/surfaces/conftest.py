"""One small run and one law, the page of both, and a spike study."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from qarat.stages.laws.fitting import fit_law
from qarat.stages.laws.tables import load_table
from qarat.surfaces.cli import main
from qarat.surfaces.page import write_report
from qarat.testing import plant_spike, tiny_checkpoint
from qarat.values.records.advice import Advice, AdvisedScheme, EngineAnswer
from qarat.values.records.files import encode_record
from qarat.values.records.origin import Difference, Provenance
from qarat.values.records.prices import Correction
from qarat.values.records.scores import Evaluation
from qarat.values.records.search import Reached, SearchCost, SearchResult, SearchTrial
from qarat.values.records.spike_study import MAIN, RuleSays, SpikeArm, SpikeStudy

INT8, INT6, TOKEN = (
    "w=int8/channel a=int8/tensor/static",
    "w=int6/channel a=int6/tensor/static",
    "w=int8/channel a=int8/token",
)
SITES = ("model.layers.1.mlp.down_proj", "model.layers.0.mlp.down_proj")
ORIGIN = Provenance("m" * 64, "t" * 64, "windows-11-bos", {})
BASE = (20.0, 21.0, 19.0, 20.5)
SHAPE = (0.02, -0.03, 0.02, -0.01)  # scatter of a window's loss, which sums to nothing


def arm(group: str, label: str, nats: float, setting: str = INT8, *, sites: int = 0, **fields: str) -> SpikeArm:
    """Loses ``nats`` a token over float, with some scatter from window to window."""
    windows = tuple(b + 10 * nats + s for b, s in zip(BASE, SHAPE, strict=True))
    kept = SITES[:sites]
    return SpikeArm(group, label, setting, setting, kept, "float", (), 0, MAIN, 0.01, 8.1, windows, **fields)


ARMS = (
    arm("naive", "naive", 0.05),
    arm("protection", "protected", 0.005, sites=1),
    arm("control", "random sites 1: 0.q", 0.04),
    *(arm("order", f"by {order}, k={k}", 0.01 / k, sites=k) for order in ("damage", "ratio") for k in (1, 2)),
    arm("method", "prefix", 0.02, note="in float: the first 1"),
    arm("method", "prefix + protected", 0.004, sites=1),
    *(arm("ablation", f"{part} alone low", n) for part, n in (("attention", 0.01), ("MLP", 0.03), ("down_proj", 0.02))),
    arm("bos", "BOS never: naive", 0.03, note="input of 1.down: maximum 3, r 2"),
    arm("calibration", "other calibration: naive", 0.07),
    arm("naive", "naive", 0.001, TOKEN),
    msgspec.structs.replace(arm("method", "clip-mse", 0.0), nats=(), failure="the loss of window 3 is no number"),
)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path) -> Path:
    """The folder of a finished run of a model with one spike, which the plan protects; no test may change it."""
    folder = tmp_path_factory.mktemp("page")
    model = plant_spike(tiny_checkpoint(folder / "model"), block=1, channel=5, factor=64.0)
    words = [
        "run",
        str(model),
        "--calibration",
        str(tiny_text),
        "--sites",
        "1.down",
        "--no-rewrites",
        "-o",
        str(folder / "out"),
    ]
    assert main([*words, "--samples", "4", "--report-samples", "6", "--length", "32", "--threads", "1"]) == 0
    return folder / "out"


@pytest.fixture(scope="session")
def law_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A law, fitted to published points of several sizes and ratios."""
    path = tmp_path_factory.mktemp("law") / "law.json"
    path.write_bytes(encode_record(fit_law(load_table("t1"), "weak", draws=0)))
    return path


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path, law_file: Path) -> Path:
    """The page of both, with its figures beside it."""
    return write_report([tiny_run, law_file], tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def study() -> SpikeStudy:
    """Every group of arms once, with losses made up so that the answers are known."""
    base = Evaluation("float", ORIGIN, "", BASE, (10,) * 4, tuple("abcd"))
    rules = (RuleSays("ratio", ("model.layers.1.down_in",), 3.0, "r > 64"),)
    return SpikeStudy(
        ORIGIN, "meta-llama/Llama-2-7b-hf", "s" * 64, "ppl+1%", math.log(1.01), INT8, INT6, SITES[:1], "1 protected",
        rules, {MAIN: base}, ARMS,
    )  # fmt: skip


@pytest.fixture(scope="session")
def search() -> SearchResult:
    """Three plans, one of them beaten; the budget takes the second."""
    base = Evaluation("float", ORIGIN, "", BASE, (10,) * 4, tuple("abcd"))

    def trial(label: str, choice: tuple[int, ...], ratio: float, nats: float) -> SearchTrial:
        return SearchTrial(label, choice, ratio, 16 - 11 * ratio, nats, Difference(nats, 0.002, 4))

    trials = (
        trial("few", (0, 1, 1), 0.3, 0.01),
        trial("many", (0, 0, 1), 0.6, 0.04),
        trial("bad", (1, 1, 0), 0.5, 0.06),
    )
    lost = tuple(b + 10 * 0.045 + s for b, s in zip(BASE, SHAPE, strict=True))
    return SearchResult(
        ORIGIN, "predicted", "fisher", "matmul", "parameters", "ratio", ("w=mxint4 a=mxint4", "float"), ("q", "k", "v"),
        "b" * 64, base, base, trials, (Reached("ppl+5%", 1, 0.55, 0.7, "many: loses 0.04 nats, within 0.0488", lost),),
        SearchCost(1000, 3000), Correction(1.1, 1.0, math.nan, 3, 0.01, 0.06),
    )  # fmt: skip


@pytest.fixture(scope="session")
def advice() -> Advice:
    """Two schemes, of which the recipe of one was measured."""
    engine = EngineAnswer("vllm", "0.27 and later", "int8", "GPUs")

    def scheme(name: str, bits: float, predicted: float, kept: tuple[str, ...] = ()) -> AdvisedScheme:
        request = {"low": "w=int8/channel", "budget": "ppl+1%"}
        share = 0.1 if kept else 0.0
        return AdvisedScheme(
            name, "w=int8/channel", 0.05, "", predicted, predicted, kept, share, bits, 900_000, (engine,), request
        )

    schemes = (scheme("W8A8", 8.4, 0.004, SITES[:1]), scheme("W8A16", 8.5, 0.001))
    measured = {"W8A8": Difference(0.005, 0.001, 4)}
    return Advice(ORIGIN, "ppl+1%", math.log(1.01), 1.5, (), schemes, measured, (), 4096, 12.5)

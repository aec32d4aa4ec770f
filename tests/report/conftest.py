"""One small run and one law, and the page of both."""

from __future__ import annotations

from pathlib import Path

import pytest

from qarat.cli import main
from qarat.laws.fitting import fit_law
from qarat.laws.tables import load_table
from qarat.recordfiles import encode_record
from qarat.report.page import write_report
from qarat.testing import plant_spike, tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path) -> Path:
    """The folder of a finished run of a model with one spike, which the plan protects; no test may change it."""
    folder = tmp_path_factory.mktemp("page")
    model = plant_spike(tiny_checkpoint(folder / "model"), block=1, channel=5, factor=64.0)
    words = ["run", str(model), "--calibration", str(tiny_text), "--sites", "1.down", "-o", str(folder / "out")]
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

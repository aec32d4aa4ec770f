"""The family's table and cards: measured on a shipped model, few windows of it, and written from that."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from qarat.checkpoints import reference_models


@pytest.fixture(scope="module")
def table(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("table")


@pytest.fixture(scope="module")
def cards(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("cards")


def test_a_model_is_measured_and_gets_its_card(
    table: ModuleType, cards: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    row = table.measure("py-64", 1, samples=2, report_samples=4, questions=4)
    int8, int6 = row["INT8"], row["INT6"]
    assert len(row["protected"]) == len(set(row["protected"])) <= table.MOST
    assert int6["naive"]["nats"] > int8["naive"]["nats"] > int8["protected"]["nats"]
    assert len({pair["nats"] for pair in int8["random"]}) == table.DRAWS  # no control is drawn twice
    assert row["code_continuation"]["questions"] == 4
    assert len(row["streams"]) == 3

    monkeypatch.setattr(cards, "CARDS", tmp_path)
    monkeypatch.setattr(cards, "reference_models", lambda: {"py-64": reference_models()["py-64"], "py-x": tmp_path})
    (tmp_path / "py-64.json").write_text(json.dumps(row))
    cards.main()
    card = (tmp_path / "py-64.md").read_text()
    assert f"{row['loss']:.4f} nats per token" in card
    assert card.count("random other `down_proj`") == table.DRAWS
    assert not (tmp_path / "py-x.md").exists()

"""The family's table and cards: measured on a shipped model, few windows of it, and written from that."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from qarat.model.reference_models import reference_models


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
    assert f"| report perplexity | {row['perplexity']:.2f} |" in (tmp_path / "README.md").read_text()
    card = (tmp_path / "py-64.md").read_text()
    assert f"{row['loss']:.4f} nats per token" in card
    assert card.count("random other `down_proj`") == table.DRAWS
    assert not (tmp_path / "py-x.md").exists()


def test_the_shipped_cards_are_of_the_shipped_weights_and_written_from_what_lies_there(cards: ModuleType):
    folders = reference_models()
    measured = {file.stem for file in cards.CARDS.glob("*.json")}
    assert len(measured) >= 7
    for name in measured:
        row = json.loads((cards.CARDS / f"{name}.json").read_text())
        weights = (folders[name] / "model.safetensors").read_bytes()
        assert row["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    models = cards.read_measured({name: folders[name] for name in measured})
    for name, (record, row) in models.items():
        config = json.loads((folders[name] / "config.json").read_text())
        assert (cards.CARDS / f"{name}.md").read_text() == cards.write_card(name, config, record, row)
    assert (cards.CARDS / "README.md").read_text() == cards.write_family(list(models.values()))


@pytest.mark.parametrize("there", [{"weights_sha256": "0" * 64}, {}])
def test_a_measurement_of_other_weights_gets_no_card(
    cards: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: dict[str, str]
):
    row = json.loads((cards.CARDS / "py-64.json").read_text())
    del row["weights_sha256"]
    monkeypatch.setattr(cards, "CARDS", tmp_path)
    (tmp_path / "py-64.json").write_text(json.dumps(row | there))
    with pytest.raises(SystemExit, match=r"other weights than lie there now: py-64;.*\n.*reference/table\.py py-64"):
        cards.main()
    assert [file.name for file in tmp_path.iterdir()] == ["py-64.json"]

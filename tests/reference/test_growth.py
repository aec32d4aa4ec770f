"""The growth of spikes, read from what training recorded: exact on invented records, drawn from the shipped ones."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from qarat.model.reference_models import reference_models

FIGURE_LIMIT = 150_000  # bytes
# Of two blocks: maximum, r and position of the largest token.
SPIKES = [
    [50, [[10.0, 2.0, 7], [4.0, 1.5, 3]]],
    [100, [[30.0, 3.0, 0], [5.0, 1.5, 9]]],
    [150, [[80.0, 6.0, 0], [6.0, 2.0, 9]]],
    [200, [[50.0, 8.0, 0], [20.0, 2.0, 9]]],
]


@pytest.fixture(scope="module")
def growth(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("growth")


@pytest.fixture
def invented(tmp_path: Path) -> dict[str, Path]:
    """Two trainings, of one a copy as well, and one of before spikes were watched."""

    def write(name: str, parameters: int, watched: list[Any], **changes: Any) -> Path:
        recipe = {"name": name[:1], "architecture": "llama", "packed": False, "steps": 200} | changes
        record = {
            "recipe": recipe,
            "steps_done": watched[-1][0] if watched else 200,
            "parameters_outside_embedding": parameters,
            "curve": [[step, 5 - step / 100] for step, _ in SPIKES],
            "spikes": watched,
        }
        (tmp_path / name).mkdir()
        (tmp_path / name / "training.json").write_text(json.dumps(record))
        return tmp_path / name

    return {
        "a": write("a", 1_000, SPIKES),
        "a-25pct": write("a-25pct", 1_000, SPIKES[:1]),
        "b": write("b", 500, SPIKES[:2], packed=True),
        "old": write("old", 2_000, []),
    }


def test_the_tables_are_what_was_recorded(growth: ModuleType, invented: dict[str, Path]):
    found, left = growth.read_growths(invented)
    header, _, *rows = growth.summarize(found)
    assert rows == [
        "| b | 500 | 100 of 200 | 0 | 0 | 100 | 100 | 30.0, 100 | 30.0 | 3.0 | 5.0 (1) |",
        "| a | 1,000 | 200 | 0 | 0 (BOS) | 100 | 100 | 80.0, 150 | 50.0 | 8.0 | 20.0 (1) |",
    ]
    assert header.count("|") == rows[0].count("|")
    assert growth.follow(found)[2:] == [
        "| b |  |  | 10 (2.0) | 30 (3.0) |  |  |",
        "| a |  |  | 10 (2.0) | 30 (3.0) | 80 (6.0) | 50 (8.0) |",
    ]
    assert left == ["a-25pct: the same training as a", "old: its training did not watch spikes"]


def test_a_copy_stands_for_a_training_of_which_there_is_nothing_else(growth: ModuleType, invented: dict[str, Path]):
    found, _ = growth.read_growths({"a-25pct": invented["a-25pct"]})
    assert [(g.name, g.done, g.planned) for g in found] == [("a-25pct", 50, 200)]


def test_figures_and_tables_are_written_from_whatever_is_there(
    growth: ModuleType,
    invented: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(sys, "argv", ["growth.py", "-o", str(tmp_path / "docs")])
    monkeypatch.setattr(growth, "reference_models", lambda: invented)
    growth.main()
    assert "| b | 500 |" in capsys.readouterr().out
    texts = {path.name: svg_texts(path.read_text()) for path in (tmp_path / "docs").iterdir()}
    assert {"a, 0.down", "b, 0.down"} <= texts["spikes-growth.svg"]
    # Neither the end of an unfinished training nor the loss of one that differs in more than size.
    assert "b, 0.down" not in texts["spikes-size.svg"]
    assert texts["spikes-loss.svg"]
    monkeypatch.setattr(growth, "reference_models", lambda: {"old": invented["old"]})
    with pytest.raises(SystemExit, match="no reference model whose training watched spikes"):
        growth.main()


def test_the_shipped_models_are_drawn_the_same_every_time(growth: ModuleType):
    found, left = growth.read_growths(reference_models())
    assert len(found) + len(left) == len(reference_models())
    py128 = next(g for g in found if g.name == "py-128")
    record = json.loads((reference_models()["py-128"] / "training.json").read_text())
    assert py128.course[-1][1].maximum == max(peak for peak, _, _ in record["spikes"][-1][1])
    figures = growth.draw(found)
    assert figures == growth.draw(found)
    for svg in figures.values():
        assert len(svg.encode()) < FIGURE_LIMIT
    assert {g.site for g in found} <= svg_texts(figures["spikes-growth.svg"])


def svg_texts(svg: str) -> set[str]:
    return {element.text for element in ElementTree.fromstring(svg).iter() if element.text}

"""Steps: what a job makes once is read back alike, however often its command is given."""

from pathlib import Path

import pytest

from qarat.jobs.folder import Run, Step
from qarat.values.records.origin import Provenance
from qarat.values.records.scores import Evaluation

NUMBERS = Step[dict[str, float]]("numbers", ("numbers.json",), dict[str, float])
ONE = Step[Evaluation]("one", ("one.json",))
BOTH = Step[tuple[Evaluation, Evaluation]]("both", ("first.json", "second.json"))


def evaluation(label: str) -> Evaluation:
    return Evaluation(label, Provenance("m", "t", "windows-8-bos", {}), "", (1.5, 2.5), (7, 7), ("a", "b"))


def begun(out: Path) -> Run:
    run = Run(out, "run")
    run.begin()
    return run


def test_what_a_step_comes_to_is_made_once_and_read_back(tmp_path: Path) -> None:
    made: list[str] = []

    def both() -> tuple[Evaluation, Evaluation]:
        made.append("both")
        return evaluation("x"), evaluation("y")

    for _ in range(2):
        run = begun(tmp_path / "out")
        assert BOTH.make(run, "key", both) == (evaluation("x"), evaluation("y"))
        assert ONE.make(run, "key", lambda: evaluation("z"), [BOTH]) == ONE.read(run.folder) == evaluation("z")
        assert NUMBERS.make(run, "key", lambda: {"a": 0.1 + 0.2}) == {"a": 0.1 + 0.2}
    assert made == ["both"]
    assert run.steps.keys() == {"both", "one", "numbers"}


@pytest.mark.parametrize("change", ["key", "file"])
def test_a_step_is_made_again_if_what_is_before_it_changed(change: str, tmp_path: Path) -> None:
    run = begun(tmp_path / "out")
    labels = iter("abcd")
    for key in ("1", "2" if change == "key" else "1"):
        ONE.make(run, key, lambda: evaluation(next(labels)))
        NUMBERS.make(run, "key", lambda: {ONE.read(run.folder).label: 0.0}, [ONE])
        if change == "file":
            run.path("one.json").unlink()
    assert NUMBERS.read(run.folder) == {"b": 0.0}

"""`qarat study calibration`: every calibration against every test, whole, resumed, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qarat.jobs import calibration_study
from qarat.jobs.open_any import plan_low
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.token_sets import Cutter, read_parts, split_parts
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.surfaces.page.document import assemble
from qarat.surfaces.page.parts import figures_in
from qarat.surfaces.page.story import gather
from qarat.surfaces.page.verdict import verdict
from qarat.surfaces.tables.calibration_study import mismatches
from qarat.testing import tiny_documents
from qarat.values.records.calibration_study import CalibrationStudy
from qarat.values.records.files import decode_record
from qarat.values.records.scores import paired_difference

Qarat = Callable[..., Any]
SIZES = ["--samples", "4", "--report-samples", "6", "--length", "32", "--threads", "1"]
LOW = "w=int8/channel a=int8/tensor/static"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "other.jsonl"
    documents = tiny_documents(12, characters=200, seed=7)
    path.write_text("".join(json.dumps({"source": d.source, "text": d.text}) + "\n" for d in documents))
    return path


@pytest.fixture
def words(tiny_llama: Path, tiny_text: Path, other: Path) -> list[object]:
    calibrations = [tiny_text, other, "self", f"mix:1=self,1={tiny_text}"]
    return [
        "study", "calibration", tiny_llama, *SIZES, "--calibrations", *calibrations, "--tests", tiny_text, "english",
    ]  # fmt: skip


def test_every_calibration_is_measured_on_every_test(
    qarat: Qarat, words: list[object], tiny_model: Model, tiny_text: Path, tmp_path: Path
) -> None:
    code, out, err = qarat(*words, "-o", tmp_path / "s")
    assert code == 0, err
    study = decode_record(tmp_path / "s" / "calibration-study.json", CalibrationStudy)
    assert [test.name for test in study.tests] == ["tiny.jsonl", "english"]
    assert [arm.name for arm in study.arms] == ["tiny.jsonl", "other.jsonl", "self", "mix:1=self,1=tiny.jsonl"]
    assert study.arms[2].convention == "windows-32-bos self"
    assert not study.missing

    cutter = Cutter(tiny_model, 32)
    mine, theirs = split_parts(read_parts(tiny_model, str(tiny_text)), 0, (1, 2))
    calibration, report = cutter.cut("calibration", mine, 4), cutter.cut("report", theirs, 6)
    assert (study.tests[0].tokens, study.arms[0].tokens) == (report.fingerprint, calibration.fingerprint)
    base = measure_perplexity(tiny_model, report, label="float")
    low = measure_perplexity(plan_low(tiny_model, LOW, calibration)(tiny_model), report, label="low")
    expected = paired_difference(low, base)
    found = study.over_float(study.arms[0], study.tests[0])
    assert (found.nats, found.standard_error) == pytest.approx((expected.nats, expected.standard_error), abs=1e-9)

    own, least = (study.reference(test) for test in study.tests)
    assert own == study.arms[0]
    assert least == min(study.arms, key=lambda arm: study.over_float(arm, study.tests[1]).nats)
    rows = {row[0]: row[1:] for row in mismatches(study).rows}
    assert rows["tiny.jsonl"][0] == ""
    assert all(row[0] for name, row in rows.items() if name != "tiny.jsonl")
    assert "measured on tiny.jsonl: calibrated on tiny.jsonl it loses" in " ".join(out.split())
    assert qarat("show", tmp_path / "s").out.strip() == out[: out.index("written:")].strip()
    story = gather([tmp_path / "s"])
    (figure,) = (f for section in assemble(story) for f in figures_in(section.parts) if f.key == "calibration")
    assert len(figure.table.rows) == 4 * 2
    assert "calibration text costs" in verdict(story).headline


def test_a_killed_study_goes_on_and_ends_with_the_same_bytes(
    qarat: Qarat, words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert qarat(*words, "-o", tmp_path / "whole").code == 0
    plan, planned = plan_low, list[str]()

    def killed(model: Model, scheme: str, tokens: Any, progress: Any) -> Any:
        planned.append(tokens.convention)
        if len(planned) == 4:
            raise KeyboardInterrupt
        return plan(model, scheme, tokens, progress=progress)

    monkeypatch.setattr(calibration_study, "plan_low", killed)
    assert qarat(*words, "-o", tmp_path / "cut").code == 130
    assert "not finished; missing: mix:1=self,1=tiny.jsonl" in qarat("show", tmp_path / "cut.partial").out
    assert qarat(*words, "-o", tmp_path / "cut").code == 0
    assert len(planned) == 5
    cut, whole = ((tmp_path / out / "calibration-study.json").read_bytes() for out in ("cut", "whole"))
    assert cut == whole
    assert '"step": "draw 4", "reused": true' in (tmp_path / "cut" / "log.jsonl").read_text()


def test_a_rounding_that_looks_at_calibration(qarat: Qarat, words: list[object], tmp_path: Path) -> None:
    assert qarat(*words, "--low", "w=int4/g32/round-gptq", "--samples", "8", "-o", tmp_path / "s").code == 0
    study = decode_record(tmp_path / "s" / "calibration-study.json", CalibrationStudy)
    assert len({arm.nats for arm in study.arms}) == 4


def test_an_estimate_draws_and_writes_nothing(qarat: Qarat, words: list[object], tmp_path: Path) -> None:
    code, out, _ = qarat(*words, "-o", tmp_path / "s", "--dry-run")
    assert code == 0
    assert "draw calibration" in out
    assert "4 calibrations" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        (["--low", "w=int8/channel"], "does not depend on calibration; give static inputs, or a rounding"),
        (["--low", "w=int8/channel/round-gptk"], "gptq"),
        (["--low", "l=int8/token r=int8/token"], "give a scheme of projections"),
        (["--tests", "self"], "self is for --calibration alone"),
        (["--tests", "mix:1=python,1=english"], "give texts that somebody wrote, one a name"),
        (["--tests", "english", "english"], "--tests: give at least one text, and each once"),
        (["--calibrations", "none.txt"], "no such file: none.txt"),
        (["--calibrations", "mix:1=english,x=python"], "'x=python' is no weight above 0"),
        (["--low", "w=int4/g32/round-gptq", "--samples", "1"], "round-gptq weighs"),
    ],
)
def test_bad_input(changes: list[str], wrong: str, qarat: Qarat, words: list[object], tmp_path: Path) -> None:
    answer = qarat(*words, *changes, "-o", tmp_path / "s")
    assert answer.code in (1, 2)
    assert wrong in answer.err
    assert list(tmp_path.iterdir()) == []


def test_two_texts_of_one_name(qarat: Qarat, words: list[object], other: Path, tmp_path: Path) -> None:
    twin = tmp_path / other.name
    twin.write_bytes(other.read_bytes())
    answer = qarat(*words, "--calibrations", other, twin, "-o", tmp_path / "s")
    assert answer.code == 1
    assert "several texts are called other.jsonl" in answer.err


def test_the_bundled_english_is_split_from_its_report(tiny_llama: Path) -> None:
    model = open_model(str(tiny_llama))
    request = calibration_study.CalibrationRequest(calibrations=("english",), tests=("english",))
    job = calibration_study.CalibrationJob(
        request, Cutter(model, 32), calibration_study.Limits(4, 6), name=str(tiny_llama)
    )
    assert job.tests[0].windows == 6  # and nothing in common, or it had been refused

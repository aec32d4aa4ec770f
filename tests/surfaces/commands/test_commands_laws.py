"""`qarat law`: from a table to a law to an answer, on the command line."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qarat.stages.laws.tables import load_table, read_table
from qarat.values.records.files import decode_record
from qarat.values.records.law import Law

Qarat = Callable[..., Any]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_data_lists_every_table_and_says_each_defect_once(qarat: Qarat) -> None:
    code, out, err = qarat("law", "data")
    assert (code, err) == (0, "")
    for name in ("fig6", "fig8", "t1", "t20"):
        assert sum(line.startswith(f"{name} ") for line in out.splitlines()) == 1
    words = " ".join(out.split())
    assert words.count("The block size of the MXINT-4 runs is not stated") == 1
    assert "almost certainly a missing run" in words
    assert all(len(line) <= 100 for line in out.splitlines())


def test_data_shows_and_writes_one_table(qarat: Qarat, tmp_path: Path) -> None:
    code, out, _ = qarat("law", "data", "fig8", "--where", "ratio=0.9", "block<=32", "-o", "mine.csv")
    assert code == 0
    assert "mine.csv" in out
    rows = read_table(tmp_path / "mine.csv").rows
    assert [(row.model, row.block, row.value) for row in rows] == [
        ("Qwen1.5-7B", 16, 12.1),
        ("Qwen1.5-7B", 32, 9.86),
        ("Qwen1.5-14B", 16, 10.9),
        ("Qwen1.5-14B", 32, 8.2),
    ]
    code, out, _ = qarat("law", "data", "mine.csv", "--json")
    assert json.loads(out)["rows"][0]["value"] == 12.1


def test_a_table_is_named_for_its_rows(qarat: Qarat) -> None:
    code, _, err = qarat("law", "data", "--where", "ratio=0.9")
    assert code == 2
    assert "about one table" in err


def test_forms_are_listed_with_equation_and_printed_coefficients(qarat: Qarat) -> None:
    code, out, _ = qarat("law", "forms")
    words = " ".join(out.split())
    assert code == 0
    assert "weak weak law: size and ratio δ = C · e^(A·Q_r) · N^(−γ_N)" in words
    assert "printed loss 0.04879 nats (ppl+5%), c = 4.83, k = -11.68" in words
    assert "the authors say that the constants do not transfer" in words
    assert set(json.loads(qarat("law", "forms", "--json").out)["forms"]) >= {"weak", "strong", "undertraining"}


def test_fit_writes_a_law_that_show_and_predict_read(qarat: Qarat, tmp_path: Path) -> None:
    code, out, _ = qarat(
        "law", "fit", "t1", "--form", "weak", "--method", "ols", "--draws", "100", "-o", "weak law.json"
    )
    assert code == 0
    assert "A            4.493" in out
    assert "C and γ_N trade off" in out
    law = decode_record(tmp_path / "weak law.json", Law)
    assert law.data_hash == load_table("t1").hash
    shown = qarat("show", "weak law.json").out
    assert shown.strip() == out[: out.index("written:")].strip()
    following = out.splitlines()[-1].removeprefix("try next: ")
    assert following == "qarat law predict 'weak law.json' --size 32B --budget ppl+5%"
    code, out, _ = qarat(*shlex.split(following)[1:])
    assert code == 0
    assert "largest Q_r" in out
    assert "inside the fitted domain" in out


@pytest.mark.parametrize(
    ("words", "following"),
    [
        (["fig6"], "--size 32B --budget ppl+5%"),
        (["fig8", "--where", "block<4000", "--form", "block-power"], "--size 7B --ratio 0.5 --budget ppl+5%"),
        (["t1", "--form", "bits-only"], "--budget ppl+5%"),
    ],
)
def test_what_to_try_next_can_be_tried(words: list[str], following: str, qarat: Qarat) -> None:
    code, out, _ = qarat("law", "fit", *words, "--draws", "0")
    assert code == 0
    last = out.splitlines()[-1].removeprefix("try next: ")
    assert last.endswith(f"law.json {following}")
    assert qarat(*shlex.split(last)[1:]).code == 0


def test_predict_answers_every_way_round(qarat: Qarat) -> None:
    assert qarat("law", "fit", "t1", "--form", "weak", "--method", "ols", "--draws", "100").code == 0

    def ask(*words: str) -> dict[str, Any]:
        answer = qarat("law", "predict", "law.json", *words, "--json")
        assert answer.code == 0, answer.err
        return json.loads(answer.out)

    ratio = ask("--size", "70B", "--budget", "ppl+5%")
    assert (ratio["variable"], round(ratio["value"], 3)) == ("ratio", 0.974)
    assert ratio["outside"] == ["size 70B is 2.19 times above the largest fitted, 32B"]
    assert len(ratio["interval"]) == len(ratio["measured_interval"]) == 2
    size = ask("--ratio", "0.9", "--budget", "ppl+5%")
    assert (size["variable"], round(size["value"] / 1e9)) == ("size", 35)
    loss = ask("--ratio", "0.9", "--size", "35B")
    assert (loss["variable"], round(loss["value"], 3)) == ("loss", 0.049)


def test_predict_takes_published_laws(qarat: Qarat) -> None:
    code, out, _ = qarat("law", "predict", "undertraining", "--size", "7B", "--tokens", "4.51T", "--bits", "4")
    assert code == 0
    assert "0.2187 nats (ppl+24.4%)" in out
    assert "no intervals" in out
    assert "GPTQ on Pythia" in out


def test_a_law_is_fitted_to_several_tables_and_checked_by_another(qarat: Qarat, tmp_path: Path) -> None:
    for name, size in (("small", "size<=1.8B"), ("middle", "size=4B"), ("large", "size>=14B")):
        assert qarat("law", "data", "t1", "--where", size, "-o", f"{name}.csv").code == 0
    joined = qarat("law", "fit", "small.csv", "middle.csv", "--form", "weak", "--method", "ols", "--draws", "100")
    assert joined.code == 0, joined.err
    law = decode_record(tmp_path / "law.json", Law)
    assert len(law.fits[0].points) == 15
    assert law.how == load_table("t1").how
    code, out, err = qarat("law", "check", "law.json", "large.csv")
    assert code == 0, err
    assert "on average over 10 rows; " in out
    assert all(len(line) <= 100 for line in out.splitlines())
    answer = json.loads(qarat("law", "check", "law.json", "large.csv", "--json").out)
    row = answer["rows"][0]
    assert (row["model"], row["known"], len(row["interval"])) == ("Qwen1.5-14B", {"ratio": 0.5, "size": 14e9}, 2)
    assert 0 < answer["error"] < 1
    by_ratio = qarat("law", "check", "law.json", "fig6", "--of", "ratio", "--where", "size>=14B")
    assert by_ratio.code == 0, by_ratio.err
    assert "ppl+10%" in by_ratio.out
    assert qarat("law", "fit", "small.csv", "small.csv").code == 1


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["fit", "none.csv"], 1, "none.csv is no file, and no table that ships"),
        (["fit", "t1", "--form", "stong"], 1, "did you mean strong"),
        (["fit", "t1", "--form", "strong"], 1, "strong needs block"),
        (["fit", "t2", "--form", "weak"], 1, "--standard-error"),
        (["fit", "t9"], 1, "accuracy: no form models that"),
        (["fit", "t1", "--where", "rato=1"], 1, "did you mean ratio"),
        (["check", "undertraining", "t1"], 1, "needs tokens"),
        (["check", "none.json", "t1"], 1, "no published law; published: block-power"),
        (["check", "size-share"], 2, "DATA"),
        (["predict", "none.json"], 1, "no published law; published: block-power"),
        (["predict", "undertraining", "--size", "seven"], 1, "write for example 7B"),
        (["predict", "undertraining", "--size", "7B", "--block", "32"], 1, "undertraining does not model --block"),
        (["predict", "undertraining", "--budget", "5%"], 1, "--budget: '5%' is no budget"),
    ],
)
def test_bad_input_is_plain_words(words: list[str], code: int, says: str, qarat: Qarat) -> None:
    answer = qarat("law", *words)
    assert (answer.code, answer.out) == (code, "")
    assert says in answer.err
    assert "Traceback" not in answer.err


def test_a_law_of_another_version_is_refused(qarat: Qarat, tmp_path: Path) -> None:
    assert qarat("law", "fit", "t1", "--form", "weak", "--draws", "0").code == 0
    path = tmp_path / "law.json"
    path.write_text(path.read_text().replace('"law/1"', '"law/9"'))
    answer = qarat("law", "predict", "law.json", "--size", "7B", "--ratio", "0.9")
    assert answer.code == 1
    assert "law of version 9; this qarat reads version 1" in answer.err

"""Zero-shot tasks, against the harness's own answers."""

import importlib
import math
from typing import Any

import pytest

from qarat.ground.errors import UserError
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.stages.measure.tasks import zero_shot
from qarat.stages.measure.tasks.harness_model import BATCH
from qarat.stages.measure.tasks.zero_shot import measure_tasks
from qarat.stages.quantize import quantize
from qarat.values.plans import assign

pytest.importorskip("lm_eval")

LIMIT = 12


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model("py-128")


def test_a_float_model_gets_what_the_harness_gives_its_folder(model: Model):
    harness: Any = importlib.import_module("lm_eval")
    models: Any = importlib.import_module("lm_eval.models.huggingface")
    ours = measure_tasks(model, ["code_continuation"], label="float", limit=LIMIT)
    theirs = models.HFLM(pretrained=str(model.folder), dtype="float32", device="cpu", batch_size=BATCH)
    task = zero_shot._own_tasks(["code_continuation"], None)["code_continuation"]
    manager = importlib.import_module("lm_eval.tasks").TaskManager(include_defaults=False)
    answer: Any = harness.simple_evaluate(model=theirs, tasks=[task], num_fewshot=0, limit=LIMIT, task_manager=manager)
    row = answer["results"]["code_continuation"]
    (score,) = ours.scores
    assert score.value == row["acc,none"]
    assert score.standard_error == row["acc_stderr,none"]
    samples = sorted(answer["samples"]["code_continuation"], key=lambda s: s["doc_id"])
    assert score.items == tuple(s["acc"] for s in samples)


def test_the_record(model: Model):
    seen: list[tuple[str, int, int]] = []
    record = measure_tasks(
        model,
        ["code_continuation"],
        label="float",
        plan="p",
        limit=LIMIT,
        progress=lambda *step: seen.append(step),
    )
    (score,) = record.scores
    assert (record.label, record.plan) == ("float", "p")
    assert (score.task, score.version, score.metric, len(score.items)) == ("code_continuation", "1.0", "acc", LIMIT)
    assert score.questions == LIMIT
    assert math.isclose(score.value, sum(score.items) / LIMIT)
    assert record.provenance.model == model.fingerprint
    assert record.provenance.convention.startswith("lm-eval ")
    assert seen[0][1] == 0
    assert seen[-1][1] == seen[-1][2] == LIMIT * 4
    assert [s[1] for s in seen] == sorted(s[1] for s in seen)


def test_questions_are_counted_where_none_has_a_score_of_its_own():
    row = {"alias": "a group", "acc,none": 0.5, "acc_stderr,none": "N/A", "sample_len": 30}
    (score,) = zero_shot._scores("group", row, {"samples": {}, "versions": {}})
    assert (score.value, score.items, score.questions) == (0.5, (), 30)


def test_fewer_questions_are_other_tokens(model: Model):
    few, more = (measure_tasks(model, ["code_continuation"], label="float", limit=n) for n in (2, 3))
    assert few.provenance.tokens != more.provenance.tokens


def test_a_quantized_model_answers_for_itself(model: Model):
    """Two bits ruin it, and that shows."""
    plan = assign(model.fingerprint, model.source_bits, model.sites(), "w=int2/channel")
    ruined = measure_tasks(quantize(model, plan, None), ["code_continuation"], label="plan", limit=LIMIT)
    whole = measure_tasks(model, ["code_continuation"], label="float", limit=LIMIT)
    assert ruined.provenance == whole.provenance
    assert ruined.scores[0].value < whole.scores[0].value


def test_a_question_that_the_model_is_too_short_for_is_refused(tiny_model: Model):
    with pytest.raises(UserError, match=f"was trained for {tiny_model.length}"):
        measure_tasks(tiny_model, ["code_continuation"], label="float", limit=2)


def test_unknown_tasks_are_all_named_with_the_nearest():
    wrong = r"'code_continuatoin'.*code_continuation.*; there is no task 'arc_eazy'.*arc_easy"
    with pytest.raises(UserError, match=wrong):
        zero_shot._check_names(["code_continuatoin", "hellaswag", "arc_eazy"], ["arc_easy", "hellaswag"])


def test_without_the_harness_the_extra_is_named(model: Model, monkeypatch: pytest.MonkeyPatch):
    real = importlib.import_module

    def absent(name: str, *rest: Any) -> Any:
        if name.startswith("lm_eval"):
            raise ImportError("No module named 'lm_eval'")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"qarat\[zero-shot\]"):
        measure_tasks(model, ["code_continuation"], label="float")

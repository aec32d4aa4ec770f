"""Local tasks: what rows become, and what is refused."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from qarat.ground.errors import UserError
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.stages.measure.tasks.local_tasks import LOCAL_TASKS, read_task
from qarat.stages.measure.tasks.zero_shot import OWN_TASKS, measure_tasks

SHARED = Path(__file__).parents[5] / "shared" / "data" / "zero_shot"
PIQA = {"query": "Question: How?\n", "choices": ["so", "or so"], "gold": 1}
WINOGRANDE = {"context_options": ["a so a", "a so b"], "continuation": "wins.", "gold": 0}
LAMBADA = {"context": "the last", "continuation": "word"}
HELLASWAG = {
    "activity_label": "Run",
    "ctx_a": "They [substeps] go.",
    "ctx_b": "then they",
    "endings": ["stop [title] here", "run"],
    "label": 0,
    "ind": 7,
}


def write(folder: Path, task: str, *rows: Any) -> Path:
    path = folder / LOCAL_TASKS[task].file
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return folder


def test_what_rows_become(tmp_path: Path):
    def first(task: str, row: dict[str, Any]) -> dict[str, Any]:
        (question,) = read_task(task, write(tmp_path, task, row))
        return question

    assert first("piqa_local", PIQA) == {"context": "Question: How?\nAnswer:", "choices": ["so", "or so"], "answer": 1}
    assert first("copa_local", PIQA)["context"] == "Question: How?\n"
    expected = {"contexts": ["a so a", "a so b"], "continuation": "wins.", "answer": 0}
    assert first("winogrande_local", WINOGRANDE) == expected
    assert first("lambada_openai_local", LAMBADA) == {"context": "the last", "continuation": " word"}
    ended = {"context": "Run: They go. Then they", "choices": ["stop. here", "run"], "answer": 0}
    assert first("hellaswag_local", HELLASWAG) == ended


def test_every_malformed_row_is_named_with_its_line(tmp_path: Path):
    rows = [
        PIQA,
        "{",
        {"query": "q", "choices": ["a", "b"]},
        {**PIQA, "gold": 2},
        "",
        {**PIQA, "choices": ["a"], "gold": 0},
        {**PIQA, "choices": ["a", " "]},
        {**PIQA, "gold": "1"},
        {**PIQA, "gold": -1},
    ]
    with pytest.raises(UserError) as error:
        read_task("piqa_local", write(tmp_path, "piqa_local", *rows))
    said = str(error.value).splitlines()
    lines = [2, 3, 4, 6, 7, 8, 9]
    assert [line.partition(": ")[0] for line in said[:-1]] == [f"{tmp_path}/piqa_val.jsonl, line {n}" for n in lines]
    assert "missing required field `gold`" in said[1]
    assert "number 2 of 2" in said[2]
    assert "fewer than two" in said[3]
    assert "an empty text" in said[4]
    assert said[-1] == "each line of piqa_val.jsonl is an object with query, choices, gold"


def test_files_that_are_not_there_or_empty(tmp_path: Path):
    with pytest.raises(UserError, match=r"piqa_local reads .*piqa_val\.jsonl.*`data`"):
        read_task("piqa_local", tmp_path)
    with pytest.raises(UserError, match="holds no questions"):
        read_task("piqa_local", write(tmp_path, "piqa_local", ""))


@pytest.mark.parametrize("task", LOCAL_TASKS)
def test_the_files_beside_the_project(task: str):
    if not SHARED.is_dir():
        pytest.skip(f"needs the files in {SHARED}")
    assert len(read_task(task, SHARED)) >= 100


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model("py-128")


def test_the_harness_scores_them_as_by_hand(model: Model, tmp_path: Path):
    """One question of each kind, and its log-likelihoods computed from the model's own logits."""
    pytest.importorskip("lm_eval")
    importlib.import_module("lm_eval.tasks")
    piqa = {"query": "def f(x):\n    return", "choices": ["x + 1", "import os class"], "gold": 1}
    winogrande = {"context_options": ["import", "class Foo(object) def"], "continuation": "os", "gold": 0}
    lambada = {"context": "import os\nimport", "continuation": "sys"}
    for task, row in (("copa_local", piqa), ("winogrande_local", winogrande), ("lambada_openai_local", lambada)):
        write(tmp_path, task, row)
    names = ["copa_local", "winogrande_local", "lambada_openai_local"]
    record = measure_tasks(model, names, label="float", data=tmp_path)
    scores = {s.task: s.value for s in record.scores if s.metric == "acc"}

    def likelihood(context: str, continuation: str) -> tuple[float, bool]:
        before = model.tokenizer(context).input_ids
        ids = model.tokenizer(context + continuation, return_tensors="pt").input_ids
        module: Any = model.module()
        logits = module(ids, use_cache=False).logits[0].log_softmax(-1)
        rest = range(len(before), ids.shape[1])
        greedy = all(int(logits[i - 1].argmax()) == int(ids[0, i]) for i in rest)
        return sum(float(logits[i - 1, ids[0, i]]) for i in rest), greedy

    ends = [likelihood(piqa["query"], " " + choice)[0] for choice in piqa["choices"]]
    starts = [likelihood(context, " os")[0] for context in winogrande["context_options"]]
    assert scores["copa_local"] == float(ends[1] > ends[0])
    assert scores["winogrande_local"] == float(starts[0] > starts[1])
    assert scores["lambada_openai_local"] == float(likelihood(lambada["context"], " sys")[1])
    assert (scores["copa_local"], scores["winogrande_local"]) == (0, 1)  # else the questions would tell little


def test_every_file_that_is_no_good_is_named(model: Model, tmp_path: Path):
    pytest.importorskip("lm_eval")
    write(tmp_path, "copa_local", {**PIQA, "gold": 2})
    with pytest.raises(UserError, match=r"(?s)copa_val\.jsonl, line 1: .*piqa_local reads .*piqa_val\.jsonl"):
        measure_tasks(model, ["copa_local", "piqa_local"], label="float", data=tmp_path)


def test_without_their_folder_they_are_refused(model: Model):
    pytest.importorskip("lm_eval")
    with pytest.raises(UserError, match="piqa_local reads questions of your own: give `data`"):
        measure_tasks(model, ["piqa_local"], label="float")
    assert "piqa_local" in OWN_TASKS

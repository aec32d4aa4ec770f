"""Zero-shot accuracy, by the lm-evaluation-harness and nothing else (an optional extra).

The harness scores. A model is handed to it as its own `HFLM` takes one, and what it answers becomes a record; so a
float model gets the numbers that the harness gives its folder, and a quantized one differs by its blocks alone.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qarat.ground.disk import hash_json
from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.ground.runtime import Progress, no_progress
from qarat.model.model import Model
from qarat.model.texts import bundled_documents
from qarat.stages.measure.tasks.code_continuation import make_items
from qarat.stages.measure.tasks.harness import import_harness
from qarat.stages.measure.tasks.harness_model import Answer, share_model, wrap_model
from qarat.stages.measure.tasks.local_tasks import LOCAL_TASKS, read_task
from qarat.values.records.scores import TaskScore, ZeroShot

OWN_TASKS = ("code_continuation", *LOCAL_TASKS)
"""Tasks that this project defines; every other name is the harness's."""


def measure_tasks(
    model: Model,
    tasks: Sequence[str],
    *,
    label: str,
    plan: str = "",
    limit: int | None = None,
    data: Path | None = None,
    answer: Answer | None = None,
    progress: Progress = no_progress,
) -> ZeroShot:
    """Measure a model on tasks, without examples in the prompt.

    Args:
        model: In float or quantized; all its blocks are in memory at once.
        tasks: Names; those of the harness need the network or its cache.
        label: What is evaluated.
        plan: Content hash of the plan behind a quantized model.
        limit: At most so many questions of each task, the first ones.
        data: The folder with the files of the tasks called ``*_local``.
        answer: Asks the model in the place of this process. What is asked together is then otherwise put together, so
            log-likelihoods differ by their rounding.
        progress: Called as questions are answered.

    Raises:
        UserError: The harness is not installed; unknown tasks (with the nearest names); local tasks without their
            files, or with malformed ones (every row of every file, with its line); questions longer than the model's
            windows, the room for a written answer included (the longest of each task).
    """
    harness, stage = import_harness("lm_eval"), f"evaluate {label}"
    with _quiet():
        # Reading the definitions of all the harness's tasks takes a while; our own need none of them.
        theirs = any(name not in OWN_TASKS for name in tasks)
        manager = import_harness("lm_eval.tasks").TaskManager(include_defaults=theirs)
        _check_names(tasks, manager.all_tasks)
        own = _own_tasks(tasks, data)
        answered: Any = harness.simple_evaluate(
            model=wrap_model(model, stage, progress) if answer is None else share_model(answer, stage, progress),
            tasks=[own.get(name, name) for name in dict.fromkeys(tasks)],
            num_fewshot=0,
            limit=limit,
            task_manager=manager,
        )
    questions = {
        task: [(s["doc_id"], s["prompt_hash"], s["target_hash"]) for s in samples]
        for task, samples in answered["samples"].items()
    }
    version = importlib.metadata.version("lm_eval")
    provenance = model.provenance(hash_json(questions), f"lm-eval {version}, no examples")
    scores = tuple(score for task, row in answered["results"].items() for score in _scores(task, row, answered))
    return ZeroShot(label, provenance, plan, scores)


def _scores(task: str, row: Mapping[str, Any], answer: Mapping[str, Any]) -> Iterator[TaskScore]:
    """The metrics of one row of the harness's results; keys there are ``metric,filter``."""
    samples = sorted(answer["samples"].get(task, ()), key=lambda s: s["doc_id"])
    for key, value in row.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = row.get(f"{metric}_stderr,{chosen}")
        items = [s[metric] for s in samples if s.get("filter", chosen) == chosen and metric in s]
        whole = 0 < len(items) == len(samples) and all(isinstance(x, int | float) for x in items)
        # Items whose mean is not the value (a perplexity's are logarithms) say nothing about its error.
        whole = whole and math.isclose(math.fsum(items) / len(items), value, abs_tol=1e-12)
        yield TaskScore(
            task,
            str(answer["versions"].get(task, "")),
            key.removesuffix(",none"),
            float(value),
            float(error) if isinstance(error, int | float) else math.nan,
            tuple(float(x) for x in items) if whole else (),
            row.get("sample_len", 0),
        )


def _own_tasks(tasks: Sequence[str], data: Path | None) -> dict[str, Any]:
    """Those of the tasks that are this project's, by name, as the harness has them."""
    own: dict[str, Any] = {}
    offences: list[str] = []
    for name in dict.fromkeys(tasks):
        if name == OWN_TASKS[0]:
            items = make_items(bundled_documents("report"))
            rows = [{"context": i.context, "choices": list(i.choices), "answer": i.answer} for i in items]
            own[name] = _task(name, rows, ("acc",), target_delimiter="")
        elif name in LOCAL_TASKS and data is None:
            offences.append(f"{name} reads questions of your own: give `data` the folder with its file")
        elif name in LOCAL_TASKS and data is not None:
            try:
                own[name] = _task(name, read_task(name, data), LOCAL_TASKS[name].metrics)
            except UserError as error:
                offences.append(str(error))
    if offences:
        raise UserError("\n".join(offences))
    return own


def _task(name: str, rows: Sequence[Mapping[str, Any]], metrics: Sequence[str], **more: Any) -> Any:
    """Questions as the harness's task; what it is to ask depends on the fields they have (`read_task`)."""
    dataset = import_harness("datasets").Dataset.from_list(list(rows))
    if "choices" in rows[0]:
        fields = {"doc_to_text": "context", "doc_to_choice": "choices", "doc_to_target": "answer"}
    elif "contexts" in rows[0]:  # with several contexts, the harness wants the answer in the place of the text
        fields = {"doc_to_text": "answer", "doc_to_choice": "contexts", "doc_to_target": "continuation"}
    else:
        fields = {"doc_to_text": "context", "doc_to_target": "continuation"}
    config = {
        "task": name,
        "custom_dataset": lambda **_: {"test": dataset},
        "test_split": "test",
        "output_type": "multiple_choice" if "doc_to_choice" in fields else "loglikelihood",
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics],
        "metadata": {"version": 1.0},
    }
    return import_harness("lm_eval.api.task").ConfigurableTask(config=config | fields | more)


def _check_names(tasks: Sequence[str], known: Sequence[str]) -> None:
    names = [*OWN_TASKS, *known]
    unknown = [name for name in tasks if name not in names]
    if unknown:
        raise UserError("; ".join(f"there is no task {name!r}: {nearest_names(name, names)}" for name in unknown))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave the harness's log at errors and its bars undrawn: what it says of its own steps is not for our users."""
    log, steps = logging.getLogger("lm_eval"), import_harness("lm_eval.api.task")
    level, bar = log.level, steps.tqdm
    log.setLevel(logging.ERROR)
    steps.tqdm = lambda rows, **_: rows
    try:
        yield
    finally:
        log.setLevel(level)
        steps.tqdm = bar

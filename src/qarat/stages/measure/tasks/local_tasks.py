"""Zero-shot tasks on files of one's own: known questions from JSON lines, where there is no network to fetch them.

Each task has a file of a known name and rows of a known form; what a row becomes is the prompt that the
lm-evaluation-harness's task of that name uses, as far as the row holds its parts. Since the files are other exports of
the data (other wording, other splits, parts), a score is never to be set beside a published one. What it is good for is
the same questions asked of two models.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from qarat.ground.errors import UserError

UNPUBLISHED = "*_local: prompts and questions are not the published ones; never set these scores beside published ones"
"""What is to be said wherever such a score is shown."""


class _Choices(msgspec.Struct):
    """A question and its answers; other fields are left aside, here and below."""

    query: str
    choices: tuple[str, ...]
    gold: int


class _Contexts(msgspec.Struct):
    """Beginnings, of which one makes sense of the continuation."""

    context_options: tuple[str, ...]
    continuation: str
    gold: int


class _LastWord(msgspec.Struct):
    """A passage and the word it ends with."""

    context: str
    continuation: str


class _Endings(msgspec.Struct):
    """HellaSwag's own form."""

    activity_label: str
    ctx_a: str
    ctx_b: str
    endings: tuple[str, ...]
    label: int


Row = dict[str, Any]


class LocalTask(NamedTuple):
    """How a file's rows become questions.

    Attributes:
        file: Name of the file.
        form: Of a row.
        ask: A row as the fields of a question, as `read_task` gives them.
        metrics: Of the harness.
    """

    file: str
    form: type[Any]
    ask: Callable[[Any], Row]
    metrics: tuple[str, ...]


def _answer(row: _Choices) -> Row:
    """As piqa, arc and boolq: the question, ``Answer:``, and the answers."""
    return {"context": row.query.rstrip() + "\nAnswer:", "choices": list(row.choices), "answer": row.gold}


def _complete(row: _Choices) -> Row:
    """As copa and openbookqa: a sentence and its ends."""
    return {"context": row.query, "choices": list(row.choices), "answer": row.gold}


def _choose_context(row: _Contexts) -> Row:
    """As winogrande: which beginning makes the same continuation likelier."""
    return {"contexts": list(row.context_options), "continuation": row.continuation, "answer": row.gold}


def _end(row: _Endings) -> Row:
    """As hellaswag, whose rules for the artefacts of its sources these are."""
    context = f"{row.activity_label}: {row.ctx_a} {row.ctx_b.capitalize()}"
    return {"context": _tidy(context), "choices": [_tidy(end) for end in row.endings], "answer": row.label}


def _tidy(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _last_word(row: _LastWord) -> Row:
    """As lambada: the one right word, which the model must hold likelier than any other."""
    return {"context": row.context, "continuation": " " + row.continuation.strip()}


_BOTH = ("acc", "acc_norm")

LOCAL_TASKS = {
    "arc_challenge_local": LocalTask("arc_challenge_test.jsonl", _Choices, _answer, _BOTH),
    "arc_easy_local": LocalTask("arc_easy_test.jsonl", _Choices, _answer, _BOTH),
    "boolq_local": LocalTask("boolq_val.jsonl", _Choices, _answer, ("acc",)),
    "copa_local": LocalTask("copa_val.jsonl", _Choices, _complete, ("acc",)),
    "hellaswag_local": LocalTask("hellaswag_val_1000.jsonl", _Endings, _end, _BOTH),
    "lambada_openai_local": LocalTask("lambada_openai_test.jsonl", _LastWord, _last_word, ("acc",)),
    "openbookqa_local": LocalTask("openbook_qa.jsonl", _Choices, _complete, _BOTH),
    "piqa_local": LocalTask("piqa_val.jsonl", _Choices, _answer, _BOTH),
    "winogrande_local": LocalTask("winogrande_dev.jsonl", _Contexts, _choose_context, ("acc",)),
}
"""Name to definition; the name without ``_local`` is the harness's task that it takes after."""


def read_task(name: str, folder: Path) -> list[Row]:
    """A task's questions, in the file's order.

    Args:
        name: One of `LOCAL_TASKS`.
        folder: Where its file lies.

    Returns:
        Of each question its fields: ``context``, ``choices`` and ``answer``, the index of the right one; or
        ``contexts``, ``continuation`` and ``answer``, that of the right beginning; or ``context`` and ``continuation``.

    Raises:
        UserError: No such file, no row in it, or malformed rows: every one with its line.
    """
    task = LOCAL_TASKS[name]
    path = folder / task.file
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{name} reads {path}: {error.strerror}; give `data` a folder that holds it") from error
    questions: list[Row] = []
    offences: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line, type=task.form)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            offences.append(f"{path}, line {number}: {error}")
            continue
        question = task.ask(row)
        if why := _offence(question):
            offences.append(f"{path}, line {number}: {why}")
        questions.append(question)
    if offences:
        fields = ", ".join(task.form.__struct_fields__)
        raise UserError("\n".join([*offences, f"each line of {task.file} is an object with {fields}"]))
    if not questions:
        raise UserError(f"{path} holds no questions")
    return questions


def _offence(question: Row) -> str:
    """What is wrong with a question; empty if nothing is."""
    options: list[str] | None = question.get("choices", question.get("contexts"))
    single = [question[field] for field in ("context", "continuation") if field in question]
    if not all(text.strip() for text in (*single, *(options or []))):
        return "an empty text"
    if options is None:
        return ""
    if len(options) < 2:
        return "fewer than two to choose from"
    if not 0 <= question["answer"] < len(options):
        return f"the right answer is number {question['answer']} of {len(options)} (counted from 0)"
    return ""

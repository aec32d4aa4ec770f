"""Code continuation: a zero-shot task that small models of code can do.

From the files of the report split: 200 characters of a file, and four continuations of 80 characters each, of which one
is what follows there; the other three begin at other lines of the same file. Equal lengths leave nothing to choose by
length, one file leaves nothing to choose by topic or indentation habits. Chance is one in four. What is given up: the
items say nothing about any task people use a model for; they show whether quantizing disturbed what the model knows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from qarat.model.texts import Document

CHOICES = 4
CONTEXT, CONTINUATION = 200, 80  # characters; with BOS they fit the reference family's windows of 256 tokens
STRIDE = 700  # characters between the items of a file, so that no two share a character


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One question.

    Attributes:
        source: The file.
        context: What stands before.
        choices: Four continuations of equal length.
        answer: Index of the true one.
    """

    source: str
    context: str
    choices: tuple[str, ...]
    answer: int


def make_items(documents: Sequence[Document], seed: int = 0) -> tuple[Item, ...]:
    """Every question that the documents hold, in their order.

    Args:
        documents: Files of source code.
        seed: Of the false continuations and the order of the four.
    """
    return tuple(item for document in documents for item in _items_of(document, seed))


def _items_of(document: Document, seed: int) -> list[Item]:
    text = document.text
    starts = [i + 1 for i, c in enumerate(text[: len(text) - CONTINUATION]) if c == "\n"]
    # A continuation that begins with an empty line is mostly the next function's; ask about lines that say something.
    starts = [s for s in starts if len(text[s : s + CONTINUATION].split()) >= 4]
    draw = random.Random(f"{seed} {document.source}")
    items: list[Item] = []
    free_from = CONTEXT
    for start in starts:
        if start < free_from:
            continue
        truth = _cut(text, start)
        others = {_cut(text, s) for s in starts if abs(s - start) >= CONTEXT + CONTINUATION} - {truth}
        if len(others) < CHOICES - 1:
            continue
        choices = [truth, *draw.sample(sorted(others), CHOICES - 1)]
        draw.shuffle(choices)
        items.append(Item(document.source, text[start - CONTEXT : start], tuple(choices), choices.index(truth)))
        free_from = start + STRIDE
    return items


def _cut(text: str, start: int) -> str:
    return text[start : start + CONTINUATION]

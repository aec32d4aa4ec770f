"""Continuations side by side, so that a person sees what a plan did to the model's words."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from qarat.ground.errors import UserError
from qarat.surfaces.tables.layout import visible, words

DEPARTED = "bold underline"
MARK = "≠"  # in the margin, because bold and underlined do not survive a pipe


def continuations(prompt: str, texts: Mapping[str, str]) -> RenderableType:
    """A prompt and each model's greedy continuation, marked from where it first departs from the first one's.

    Args:
        prompt: What the models continue.
        texts: Label to continuation, without the prompt; the first is float's.

    Raises:
        UserError: If there are none.
    """
    if not texts:
        raise UserError("there are no continuations to show")
    float_label, reference = next(iter(texts.items()))
    parts: list[RenderableType] = [words("prompt", "bold"), _lines(words(prompt.rstrip(), "dim"), None)]
    for name, text in texts.items():
        shared = shared_length(reference, text)
        said = "" if name == float_label else departure(float_label, reference, text)
        heading = Text.assemble((visible(name), "bold"), visible(f"  {said}" if said else ""))
        parts += [Text(), heading, _continuation(prompt, text, shared)]
    return Panel(Group(*parts), title="greedy continuations", title_align="left", box=box.ROUNDED, padding=(0, 1))


def departure(first: str, reference: str, text: str) -> str:
    """Where a continuation departs from the first one, in words.

    Args:
        first: Label of the first.
        reference: Its continuation.
        text: The other.
    """
    shared = shared_length(reference, text)
    if text == reference:
        return f"as {first}"
    if shared == len(text):
        return f"ends after {shared} characters, where {first} goes on"
    return f"departs from {first} after {shared} of {len(text)} characters"


def shared_length(a: str, b: str) -> int:
    """Characters up to the first difference."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _continuation(prompt: str, text: str, shared: int) -> RenderableType:
    """The continuation behind the prompt's last line, so that code keeps its indentation."""
    head = visible(prompt.rpartition("\n")[2])
    body = Text.assemble((head, "dim"), visible(text[:shared]), (visible(text[shared:]), DEPARTED))
    return _lines(body, text[:shared].count("\n") if shared < len(text) else None)


def _lines(text: Text, departed: int | None) -> RenderableType:
    """The text's lines, with the mark before those from ``departed`` on."""
    grid = Table.grid(Column(width=1), Column(overflow="fold"), padding=(0, 1))
    for index, line in enumerate(text.split("\n", allow_blank=True)):
        line.expand_tabs(4)
        grid.add_row(Text(MARK if departed is not None and index >= departed else "", "bold"), line)
    return grid

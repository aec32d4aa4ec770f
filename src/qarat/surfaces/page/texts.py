"""The continuations on the page: prompt, shared beginning, and what departs from float's."""

from __future__ import annotations

from qarat.surfaces.page.markup import element, escaped
from qarat.surfaces.tables.continuations import departure, shared_length
from qarat.values.records.scores import Continuations


def texts(record: Continuations) -> str:
    """A prompt, and each model's continuation, marked from where it departs from the first one's."""
    (first, reference), *_ = record.texts.items()
    parts = [
        element("h3", "The same prompt, continued greedily"),
        _text("prompt", "", element("i", escaped(record.prompt))),
    ]
    tail = element("i", escaped(record.prompt.rpartition("\n")[2]))
    for label, text in record.texts.items():
        shared = shared_length(reference, text)
        said = "" if label == first else departure(first, reference, text)
        parts.append(_text(label, said, tail + escaped(text[:shared]) + _marked(text[shared:])))
    return element("div", *parts, class_="texts")


def _marked(text: str) -> str:
    """What departs, line by line; the blanks in front of a line are not marked."""
    return "\n".join(
        line[: len(line) - len(line.lstrip())] + (element("mark", escaped(line.lstrip())) if line.strip() else "")
        for line in text.split("\n")
    )


def _text(label: str, said: str, body: str) -> str:
    """One text; it can be scrolled by keyboard where its lines are long."""
    head = element("h4", escaped(label), *([element("span", escaped(said))] if said else []))
    return head + element("pre", body, tabindex="0", aria_label=f"{label}, text")

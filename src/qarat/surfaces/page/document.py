"""The page: one HTML file with its style, its script and its data in it, which asks the network for nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from qarat.surfaces.page.parts import Part, Terms, figures_in
from qarat.surfaces.page.rendering import DARK, LIGHT, PAGE_FONT, script, vega_config
from qarat.surfaces.page.sections import PARTS, SECTIONS
from qarat.surfaces.page.story import Story
from qarat.surfaces.page.verdict import about, facts, next_lines, subject, verdict
from qarat.surfaces.tables.wording import visible

_HERE = Path(__file__).parent


class Assembled(NamedTuple):
    """A section as it stands on the page.

    Attributes:
        key: Its place.
        title: Its heading.
        lead: What to take from it.
        parts: In their order.
        awaited: Steps that a run has not come to and the section needs.
    """

    key: str
    title: str
    lead: str
    parts: tuple[Part, ...]
    awaited: tuple[str, ...]


def assemble(story: Story) -> tuple[Assembled, ...]:
    """Every section with its parts; sections that have nothing to say and miss nothing are left out."""
    built = (
        Assembled(
            key,
            section.title,
            section.lead,
            tuple(PARTS[key](story)),
            tuple(s for s in section.steps if s in story.missing),
        )
        for key, section in SECTIONS.items()
    )
    return tuple(section for section in built if section.parts or section.awaited)


def document(story: Story, assembled: tuple[Assembled, ...]) -> str:
    """The page's HTML.

    Args:
        story: For the headline and what is missing.
        assembled: From `assemble`.
    """
    headline, summary = verdict(story)
    figures = [figure for section in assembled for figure in figures_in(section.parts)]
    return _environment().get_template("page.html").render(
        subject=subject(story),
        about=about(story),
        headline=headline,
        summary=summary,
        missing=_missing(story),
        facts=Terms("facts", facts(story)),
        next=next_lines(story),
        sections=assembled,
        light=LIGHT,
        dark=DARK,
        style=Markup((_HERE / "page.css").read_text("utf-8")),
        themes={"light": vega_config(LIGHT, PAGE_FONT), "dark": vega_config(DARK, PAGE_FONT)},
        charts={figure.key: figure.definition() for figure in figures},
        library=Markup(script()),
        script=Markup((_HERE / "page.js").read_text("utf-8")),
    )  # fmt: skip


def part_html(part: Part) -> str:
    """One part by itself."""
    return _environment().get_template("parts.html").module.any(part)  # pyright: ignore[reportAttributeAccessIssue]


def _environment() -> Environment:
    """Nothing in text is markup, and control characters are shown."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, finalize=_shown, trim_blocks=True
    )
    environment.filters["prose"] = _prose
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    return environment


def _prose(text: str) -> Markup:
    """A sentence: a number and its per cent sign on one line, exponents and letters below in place."""
    harmless = str(escape(visible(text))).replace(" %", "\u00a0%")
    raised = re.sub(r"\^(?:\(([^()]*)\)|([\w.−-]+))", lambda m: f"<sup>{m[1] or m[2]}</sup>", harmless)
    return Markup(re.sub(r"(?<=\w)_([A-Za-z])\b", r"<sub>\1</sub>", raised))


def _shown(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _missing(story: Story) -> str:
    if not story.missing:
        return ""
    command = story.about.command
    more = f" It continues with the same command: {command}" if command else ""
    return f"This run is not finished. Missing: {', '.join(story.missing)}.{more}"

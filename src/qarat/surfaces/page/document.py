"""The page: one HTML file with its style, its script and its data in it, which asks the network for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qarat.surfaces.page.figures.base import Figure, Folded, Part, figures_in
from qarat.surfaces.page.rendering import DARK, LIGHT, PAGE_FONT, Colours, script, vega_config
from qarat.surfaces.page.sections import PARTS, SECTIONS, portable_command
from qarat.surfaces.page.story import Story, origin
from qarat.surfaces.page.verdict import facts, verdict
from qarat.surfaces.tables.html import definitions, element, escaped, prose, script_data, scrolled
from qarat.values.plans import Plan
from qarat.values.records.law import Law
from qarat.values.records.spike_study import SpikeStudy

_HERE = Path(__file__).parent
Assembled = tuple[tuple[str, tuple[Part, ...]], ...]
"""Sections by their keys."""


def assemble(story: Story) -> Assembled:
    """Every section with its parts; sections that have nothing to say and miss nothing are left out."""
    built = ((key, tuple(PARTS[key](story))) for key in SECTIONS)
    return tuple((key, parts) for key, parts in built if parts or _awaited(key, story))


def document(story: Story, assembled: Assembled) -> str:
    """The page's HTML.

    Args:
        story: For the headline and what is missing.
        assembled: From `assemble`.
    """
    figures = [figure for _, parts in assembled for figure in figures_in(parts)]
    filled = {
        "title": escaped(f"qarat: {_subject(story)}"),
        "style": _colours(LIGHT, ":root") + _dark() + (_HERE / "page.css").read_text("utf-8"),
        "subject": escaped(_subject(story)),
        "verdict": prose(verdict(story)),
        "facts": definitions(facts(story), "facts"),
        "unfinished": _unfinished(story),
        "contents": "".join(f'<li><a href="#{key}">{escaped(SECTIONS[key].title)}</a></li>' for key, _ in assembled),
        "sections": "".join(_section(key, parts, story) for key, parts in assembled),
        "themes": script_data("themes", {"light": vega_config(LIGHT, PAGE_FONT), "dark": vega_config(DARK, PAGE_FONT)}),
        "charts": script_data("charts", {figure.key: figure.definition() for figure in figures}),
        "library": script(),
        "script": (_HERE / "page.js").read_text("utf-8"),
    }
    page = (_HERE / "page.html").read_text("utf-8")
    # Split, not replaced one by one: what is filled in may contain the name of another place.
    first, *rest = page.split("{{")
    return first + "".join(filled[name] + after for name, _, after in (part.partition("}}") for part in rest))


def _subject(story: Story) -> str:
    origins = [where.model for record in story.records if (where := origin(record))]
    models = dict.fromkeys([*(plan.model for plan in story.all(Plan)), *origins])
    law, study = story.one(Law), story.one(SpikeStudy)
    name = f"{Path(study.name).name}, " if study else ""
    return f"{name}model {next(iter(models))[:12]}" if models else law.data if law else "a run"


def _awaited(key: str, story: Story) -> list[str]:
    """The steps that a run has not come to and the section needs."""
    return [step for step in SECTIONS[key].steps if step in story.missing]


def _section(key: str, parts: Sequence[Part], story: Story) -> str:
    section = SECTIONS[key]
    inside = [element("h2", escaped(section.title)), element("p", prose(section.lead), class_="lead")]
    inside += map(_part, parts)
    if awaited := _awaited(key, story):
        inside.append(element("p", escaped(f"Not there yet: {', '.join(awaited)}."), class_="missing"))
    return element("section", *inside, id=key)


def _part(part: Part) -> str:
    if isinstance(part, Folded):
        return element("details", element("summary", escaped(part.title)), *map(_figure, part.figures), class_="fold")
    return _figure(part) if isinstance(part, Figure) else part


def _figure(figure: Figure) -> str:
    rows = element("summary", f"Data ({len(figure.table.rows)} rows)")
    return element(
        "figure",
        element("h3", escaped(figure.title)),
        element("div", class_="chart", id=f"chart-{figure.key}", data_chart=figure.key),
        element("figcaption", prose(figure.caption)),
        element("details", rows, scrolled(figure.table, f"Data of {figure.title}")),
    )


def _unfinished(story: Story) -> str:
    if not story.missing:
        return ""
    missing = f"This run is not finished. Missing: {', '.join(story.missing)}."
    more = f" It continues with the same command: {portable_command(story.command)}" if story.command else ""
    return element("p", escaped(missing + more), class_="missing")


def _dark() -> str:
    """The dark colours: where the system asks for them and nobody chose, and where somebody chose them."""
    chosen = _colours(DARK, ':root[data-theme="dark"]')
    return f"@media (prefers-color-scheme: dark) {{ {_colours(DARK, ':root:not([data-theme])')} }}\n{chosen}"


def _colours(colours: Colours, selector: str) -> str:
    named = (f"--{name}: {value};" for name, value in colours.items() if isinstance(value, str))
    return f"{selector} {{ {' '.join(named)} }}\n"

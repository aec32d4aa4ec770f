"""Every command line of README and docs is one that qarat understands, and every link leads somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from qarat.surfaces.words import parse
from qarat.values.parsing import parse_scheme

HOME = Path(__file__).parents[1]
PAGES = [HOME / "README.md", *sorted((HOME / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(?:bash)?\n(.*?)^```", re.M | re.S)
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


def command_lines() -> Iterator[tuple[str, str]]:
    """Page and line; what is left out (…) or stands for something (VERB) is not to be typed."""
    for page in PAGES:
        for block in _BLOCK.findall(page.read_text("utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split(" && "):
                    if part.startswith("qarat ") and "…" not in part:
                        yield page.name, part


LINES = sorted(set(command_lines()))


def test_there_are_lines_to_check() -> None:
    assert len(LINES) > 50


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_documented_line_is_understood(page: str, line: str) -> None:
    parse(shlex.split(line, comments=True)[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = [link for link in _LINK.findall(page.read_text("utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_schemes_are_schemes(page: Path) -> None:
    for scheme in re.findall(r'--low "(w=[^"…]+)"', page.read_text("utf-8")):
        parse_scheme(scheme)

"""Every example of docs/extending.md runs as it stands there, each by itself."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs" / "extending.md"
_SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.M | re.S)
_EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
EXAMPLES = {title: code for title, text in _SECTION.findall(DOCS.read_text("utf-8")) for code in _EXAMPLE.findall(text)}


def test_every_extension_point_has_one_example() -> None:
    sections = dict(_SECTION.findall(DOCS.read_text("utf-8")))
    assert {title: len(_EXAMPLE.findall(text)) for title, text in sections.items()} == dict.fromkeys(sections, 1)


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_runs(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("extension")  # a module, as it would be in its folder
    monkeypatch.setitem(sys.modules, "extension", module)
    exec(compile(EXAMPLES[title], f"{DOCS.name}: {title}", "exec"), module.__dict__)

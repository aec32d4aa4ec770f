"""What tests of jobs share: a stand-in for an engine."""

import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Engine = Callable[..., Path]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """Makes a stand-in for an engine's Python: the body of its `main`, given request and answer."""

    def make(body: str) -> Path:
        path = tmp_path / "python"
        lines = ["import json, sys, time", "name, request, answer = sys.argv[2:]", "asked = json.load(open(request))"]
        path.write_text("\n".join([f"#!{sys.executable}", *lines, body]))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make

"""Fixtures that several files share; what tests need beyond them is in `qarat.testing`."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that would download fails instead
# Else Ray leaves one in the home folder; and it reads it once a process, so that all tests have to have the same.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

import pytest
import torch
from transformers.utils import logging

from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.surfaces.cli import main
from qarat.testing import tiny_checkpoint, tiny_documents

torch.set_num_threads(1)  # at these sizes threads only wait for one another
logging.disable_progress_bar()

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that no test may change."""
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def tiny_model(tiny_llama: Path) -> Model:
    return open_model(str(tiny_llama))


@pytest.fixture(scope="session")
def stories260k() -> Path:
    """A real trained LLaMA without spikes; it lies beside the project."""
    folder = SHARED / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"needs the trained model at {folder}")
    return folder


@pytest.fixture(scope="session")
def stories() -> Path:
    """2 MiB of TinyStories, which stories260K was trained on."""
    path = SHARED / "text" / "tinystories_sample.txt"
    if not path.is_file():
        pytest.skip(f"needs the text at {path}")
    return path


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text for the tiny models: enough documents to be split into the three token sets."""
    path = tmp_path_factory.mktemp("text") / "tiny.jsonl"
    documents = tiny_documents(24, characters=200)
    path.write_text("".join(json.dumps({"source": d.source, "text": d.text}) + "\n" for d in documents))
    return path


@pytest.fixture(scope="session")
def with_merge() -> Callable[[Path], Path]:
    """Gives the tokenizer of a tiny model's folder one merge, in place: programs refuse a BPE that has none."""

    def add(folder: Path) -> Path:
        path = folder / "tokenizer.json"
        data = json.loads(path.read_text())
        data["model"]["vocab"]["th"] = len(data["model"]["vocab"])
        data["model"]["merges"] = [["t", "h"]]
        path.write_text(json.dumps(data))
        return folder

    return add


class Answer(NamedTuple):
    """What a command line came to.

    Attributes:
        code: Exit code.
        out: What it wrote to stdout.
        err: What it wrote to stderr.
    """

    code: int
    out: str
    err: str


@pytest.fixture
def qarat(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """The command line, inside this process."""

    def run(*words: object) -> Answer:
        capsys.readouterr()
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        return Answer(code, printed.out, printed.err)

    return run


@pytest.fixture
def small(tiny_text: Path) -> list[str]:
    """Options that keep a command on a tiny model to a fraction of a second."""
    sizes = ["--samples", "4", "--report-samples", "6", "--length", "32", "--threads", "1"]
    return ["--calibration", str(tiny_text), *sizes]


PEAK = """
from pathlib import Path

import torch


def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


torch.set_num_threads(1)
"""


@pytest.fixture
def printed_by() -> Callable[..., list[int]]:
    """The numbers that a script of its own process prints; ``peak()`` is the most memory it held so far, in MiB."""
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read as Linux tells it")

    def run(script: str, *words: object) -> list[int]:
        command = [sys.executable, "-c", PEAK + script, *map(str, words)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        return list(map(int, answer.stdout.split()))

    return run

"""Fixtures that several files share; what tests need beyond them is in `qarat.testing`."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that would download fails instead

import pytest
import torch
from transformers.utils import logging

from qarat.models import Model, open_model
from qarat.testing import tiny_checkpoint

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

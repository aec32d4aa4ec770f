"""A model and its tokens, that tests of searches share."""

from pathlib import Path

import pytest

from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.model.tokens import TokenSet


@pytest.fixture
def opened(tiny_llama: Path, tiny_text: Path) -> tuple[Model, tuple[TokenSet, TokenSet, TokenSet]]:
    model = open_model(str(tiny_llama))
    return model, load_token_sets(model, calibration=str(tiny_text), samples=4, report_samples=6, length=32)

"""A real LLaMA of 135 M parameters, which a Python package holds; skipped where that is not installed."""

import pytest

from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.reference_models import PACKAGED
from qarat.model.token_sets import load_token_sets
from qarat.stages.observe import observe
from qarat.stages.spikes import find_spikes

NAME = "smollm2-135m"

pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.skipif(not PACKAGED[NAME].path, reason=f"needs {NAME}: pip install {PACKAGED[NAME].install}"),
]


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model(NAME)


def test_it_knows_what_it_was_taught(model: Model) -> None:
    """That its logits are transformers' to the last bit takes a minute to see: test_gguf does so on tiny models."""
    ids = model.tokenizer("The capital of France is Paris. The capital of Germany is", return_tensors="pt").input_ids
    hidden = model.embed(ids)
    for index, block in model.walk():
        hidden = model.run_block(index, block, hidden)
    assert model.tokenizer.decode(model.logits(hidden)[0, -1].argmax()) == " Berlin"


def test_numbers_stand_alone_and_nothing_is_put_in_front(model: Model) -> None:
    tokenizer = model.tokenizer
    assert tokenizer.tokenize("In 1986 it's") == ["In", "Ġ", "1", "9", "8", "6", "Ġit", "'s"]
    assert tokenizer.decode(tokenizer("Größe: 3 µm\n").input_ids) == "Größe: 3 µm\n"
    assert tokenizer("a").input_ids[0] != tokenizer.bos_token_id


def test_its_spikes_are_where_they_are_known_to_be(model: Model) -> None:
    calibration = load_token_sets(model, length=128, samples=2, report_samples=2)[0]
    stats = observe(model, calibration, attention=False)
    spikes = [stream for stream in find_spikes(stats, "ratio", None).flagged if stream.endswith("down_in")]
    assert "model.layers.11.down_in" in spikes
    assert stats.stream("model.layers.11.down_in").ratio > 500

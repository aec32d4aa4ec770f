from pathlib import Path

import pytest
from msgspec.structs import replace

from qarat.ground.errors import UserError
from qarat.model.families import family_of, known_families
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.testing import check_family, tiny_checkpoint
from qarat.values.roles import OPERANDS, Role

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "opt": "OPTForCausalLM",
}


def test_every_family_is_tested_here():
    assert set(known_families()) == set(ARCHITECTURES.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_family_keeps_its_promises(architecture: str, tmp_path: Path):
    model = open_model(str(tiny_checkpoint(tmp_path, architecture=architecture)))  # type: ignore[arg-type]
    check_family(family_of([ARCHITECTURES[architecture]]), model)
    assert len(model.family.projections) == (6 if architecture == "opt" else 7)


def test_a_family_that_breaks_them_is_told_which(tiny_model: Model):
    attention, output, mlp, down = tiny_model.family.streams
    half, rest = replace(mlp, readers=("mlp.gate_proj",)), replace(down, readers=("mlp.up_proj",))
    broken = {
        "is the role of one stream": (attention, output, mlp, replace(down, role=Role.MLP_INPUT)),
        "none is left out": (attention, output, half, down),
        "no one tensor": (attention, output, replace(mlp, readers=("mlp.gate_proj", "mlp.down_proj")), rest),
    }
    for message, streams in broken.items():
        tiny_model.family = replace(tiny_model.family, streams=streams)
        with pytest.raises(AssertionError, match=message):
            check_family(tiny_model.family, tiny_model)


def test_stream_names_are_distinct():
    for family in known_families().values():
        names = [*(stream.name for stream in family.streams), *OPERANDS]
        assert len(names) == len(set(names))


def test_the_first_supported_architecture_decides():
    assert family_of(["Unheard", "Qwen2ForCausalLM"]) is known_families()["Qwen2ForCausalLM"]


@pytest.mark.parametrize("asked", [["GPT2LMHeadModel"], ["LlamaForSequenceClassification"], []])
def test_unsupported_architecture_names_the_supported(asked: list[str]):
    with pytest.raises(UserError) as caught:
        family_of(asked)
    message = str(caught.value)
    assert (asked[0] if asked else "none given") in message
    assert all(name in message for name in ARCHITECTURES.values())

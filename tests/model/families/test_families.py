from pathlib import Path

import pytest
from torch import nn

from qarat.ground.errors import UserError
from qarat.model.families import family_of, known_families
from qarat.model.families.base import ATTENTION_OPERANDS
from qarat.model.model import open_model
from qarat.testing import tiny_checkpoint

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def test_every_family_is_tested_here():
    assert set(known_families()) == set(ARCHITECTURES.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_wiring_names_what_is_there(architecture: str, tmp_path: Path):
    model = open_model(str(tiny_checkpoint(tmp_path, architecture=architecture)))  # type: ignore[arg-type]
    family = family_of([ARCHITECTURES[architecture]])
    whole = model.module()
    for path in (family.blocks, family.embedding, family.rotary, family.norm, family.head):
        whole.get_submodule(path)
    for block in whole.get_submodule(family.blocks).children():
        block.get_submodule(family.attention)
        for stream in family.streams:
            block.get_submodule(stream.source)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_projection_reads_exactly_one_stream(architecture: str, tmp_path: Path):
    model = open_model(str(tiny_checkpoint(tmp_path, architecture=architecture)))  # type: ignore[arg-type]
    family = model.family
    linears = {name for name, module in model.empty_block(0).named_modules() if isinstance(module, nn.Linear)}
    assert sorted(family.projections) == sorted(linears)  # each once, none left out
    assert len(linears) == 7


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_readers_of_a_stream_are_equally_wide(architecture: str, tmp_path: Path):
    model = open_model(str(tiny_checkpoint(tmp_path, architecture=architecture)))  # type: ignore[arg-type]
    widths: dict[str, set[int]] = {}
    for site in model.sites():
        if site.kind == "projection":
            (stream,) = site.streams
            widths.setdefault(stream, set()).add(site.shape[1])
    assert all(len(width) == 1 for width in widths.values())


def test_stream_names_are_distinct():
    for family in known_families().values():
        names = [*(stream.name for stream in family.streams), *ATTENTION_OPERANDS]
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

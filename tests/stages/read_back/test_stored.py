"""Reading a quantization config: what is refused, and in which words."""

import json
from pathlib import Path
from typing import Any

import pytest

from qarat.ground.errors import UserError
from qarat.stages.read_back.stored import Args, read_config

WEIGHTS = {"num_bits": 8, "type": "int", "strategy": "channel"}
GROUP = {"targets": ["Linear"], "weights": WEIGHTS}


def write(folder: Path, config: Any) -> Path:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


def quantized(**body: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"g": GROUP}, **body}}


REFUSED: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "cannot be read"),
    "a list": ([], "is not quantized"),
    "a float model": ({"model_type": "llama"}, "is not quantized"),
    "a word in its place": ({"quantization_config": "fp8"}, "quant_method is None"),
    "another method": ({"quantization_config": {"quant_method": "gptq"}}, "quant_method is 'gptq'"),
    "no groups": (quantized(config_groups={}), "config_groups is empty"),
    "groups that are none": (quantized(config_groups=[1]), "quantization_config: Expected `object`"),
    "a preset": (quantized(config_groups={"W8A8": ["Linear"]}), "W8A8: a preset's name with a list of targets"),
    "no targets": (quantized(config_groups={"g": {"weights": WEIGHTS}}), "g: Object missing required field `targets`"),
    "bits in words": (
        quantized(config_groups={"g": {**GROUP, "weights": {**WEIGHTS, "num_bits": "eight"}}}),
        "g: Expected `int`, got `str` - at `$.weights.num_bits`",
    ),
    "a broken pattern": (quantized(config_groups={"g": {**GROUP, "targets": ["re:["]}}), "is no regular expression"),
    "a broken pattern in ignore": (quantized(ignore=["re:*"]), "ignore: 're:*' is no regular expression"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    config, text = REFUSED[name]
    with pytest.raises(UserError) as raised:
        read_config(write(tmp_path, config))
    assert text in str(raised.value)


def test_all_offences_at_once(tmp_path: Path) -> None:
    groups = {"a": ["Linear"], "b": {"weights": WEIGHTS}, "c": {**GROUP, "targets": ["re:("]}}
    with pytest.raises(UserError) as raised:
        read_config(write(tmp_path, quantized(config_groups=groups, ignore=["re:)"])))
    assert len(str(raised.value).splitlines()) == 5


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no config\.json"):
        read_config(tmp_path)


CONTRADICTIONS = {
    "static token": (Args(strategy="token"), "input_activations", "static token strategy"),
    "groups without a size": (Args(strategy="group"), "weights", "without a positive group_size"),
    "a size without groups": (Args(strategy="channel", group_size=8), "weights", "group_size 8 with strategy channel"),
    "blocks without a structure": (Args(strategy="block"), "weights", "without block_structure"),
    "dynamic weights": (Args(strategy="tensor", dynamic=True), "weights", "weights quantized at run time"),
    "inputs by channel": (Args(strategy="channel"), "input_activations", "strategy channel for an input"),
    "floats of 5 bits": (Args(num_bits=5, type="float"), "weights", "float numbers of 5 bits"),
    "16 bits": (Args(num_bits=16), "weights", "int numbers of 16 bits"),
    "unknown": (Args(strategy="row"), "weights", "strategy 'row' is none of a projection's"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions(name: str) -> None:
    args, role, text = CONTRADICTIONS[name]
    assert any(text in why for why in args.contradictions(role))


def test_strategy_is_inferred_from_the_group_size() -> None:
    assert [Args(group_size=size).kind for size in (None, -1, 32)] == ["tensor", "channel", "group"]


def test_blocks_in_either_spelling() -> None:
    assert Args(strategy="block", block_structure="128x64").block == (128, 64)
    assert Args(strategy="block", block_structure=(128, 64)).block == (128, 64)

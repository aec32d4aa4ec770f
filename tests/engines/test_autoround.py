"""AutoRound's own resolver with our layer_config: every layer as the plan says."""

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from qarat.values.schemes import Granularity, LinearScheme

pytest.importorskip("auto_round", reason="needs AutoRound: make test-engines")

RULES = (
    ("1.down", "float"),
    ("0.down", "w=e4m3/channel a=e4m3/token"),
    ("1.o", "w=int4/g32"),
    ("0.o", "w=int8/tensor a=int8/tensor/static"),
    ("*.0.self_attn.[qkv]_proj", "w=mxfp4 a=mxfp4"),
)


@pytest.mark.parametrize("base", ["INT8", "W4A16", "MXFP4"])  # whatever AutoRound is started with
def test_every_layer(subject: Any, base: str, tmp_path: Any) -> None:
    from auto_round.compressors.utils import set_layer_config
    from auto_round.utils import INNER_SUPPORTED_LAYER_TYPES, SUPPORTED_LAYER_TYPES

    subject = subject._replace(out=tmp_path)
    plan, folder = subject.export("autoround", "w=int8/channel a=int8/token", *RULES)
    layers = json.loads((folder / "layer_config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(subject.folder, dtype=torch.float32)
    types = SUPPORTED_LAYER_TYPES, INNER_SUPPORTED_LAYER_TYPES
    found, outside, patterns = set_layer_config(model, layers, base, torch.float16, *types)
    assert not outside
    assert not patterns
    sites = [a for a in plan.assignments if isinstance(a.scheme, LinearScheme)]
    assert found.keys() == {a.site.name for a in sites}
    sizes = {Granularity(): 0, Granularity(1, None): -1, Granularity(1, 32): 32}
    for a in sites:
        layer = found[a.site.name]
        for scheme, key in ((a.scheme.weight, ""), (a.scheme.input, "act_")):
            assert layer[f"{key}bits"] == (scheme.number_format.bits if scheme else 16), a.site.name
            if scheme is not None:
                assert layer[f"{key}group_size"] == sizes[scheme.granularity]
                kind = "mx_fp" if scheme.scale == "e8m0" else "int" if scheme.number_format.is_integer else "fp"
                assert layer[f"{key}data_type"] == kind
        if a.scheme.input is not None:
            assert layer["act_dynamic"] == (not a.scheme.input.static)

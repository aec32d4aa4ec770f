"""Caches in exports: one scheme and two scales a block in compressed-tensors, a reason everywhere else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qarat.ground.errors import UserError
from qarat.jobs.verify import AgainstRun, verify
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.export import EXPORTERS
from qarat.stages.export.base import export_model
from qarat.stages.export.compressed_tensors import check, tensor_bytes
from qarat.stages.observe import observe
from qarat.stages.quantize import quantize
from qarat.stages.read_back.readback import logits_of, transformers_logits
from qarat.testing import tiny_checkpoint
from qarat.values.plans import Plan, assign

STATIC = "w=int8/channel a=int8/tensor/static"
FP8 = "c=e4m3/tensor/static"


def token_set() -> TokenSet:
    ids = torch.randint(2, 98, (4, 16), generator=torch.Generator().manual_seed(7))
    return TokenSet("calibration", "windows-16-nobos", ids, ("text",) * 4, ("0" * 64,), ("text",))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, with_merge: Callable[[Path], Path]) -> Model:
    sizes: dict[str, Any] = {"hidden": 64, "heads": 4, "kv_heads": 2, "intermediate": 96}
    return open_model(str(with_merge(tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", **sizes))))


def plan_of(model: Model, *rules: tuple[str, str]) -> Plan:
    return assign(model.fingerprint, model.source_bits, model.sites(), STATIC, rules)


@pytest.mark.parametrize(("scheme", "kind"), [(FP8, "float"), ("c=int8/tensor/static", "int")])
def test_it_is_held_read_back_and_computed_by_transformers(source: Model, tmp_path: Path, scheme: str, kind: str):
    stats = observe(source, token_set())
    plan = plan_of(source, ("*_cache", scheme))
    small = quantize(source, plan, stats)
    notes = export_model(small, plan, tmp_path / "out", "compressed-tensors")
    assert any("vLLM refuses a cache in int8" in note for note in notes) == (kind == "int")
    held = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]["kv_cache_scheme"]
    assert held == {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "tensor", "dynamic": False}
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert sum(t.nbytes for t in tensors.values()) == tensor_bytes(source, plan)
    largest = stats.stream("model.layers.1.v_cache").maximum
    scale = tensors["model.layers.1.self_attn.v_scale"]
    torch.testing.assert_close(scale, torch.tensor([largest / (448 if kind == "float" else 127)]))
    verified = verify(tmp_path / "out", ["transformers"], against=AgainstRun(small, plan, token_set()))
    assert verified.verdict == "passes"
    assert not [f for f in verified.findings if f.severity == "not judged"]
    ids = token_set().windows
    ours, theirs = logits_of(small, ids), transformers_logits(tmp_path / "out", torch.float32, ids)
    without = logits_of(quantize(source, plan_of(source), stats), ids)
    # A last bit of a key may end in another code; that a cache was rounded at all is far above.
    assert (theirs - ours).abs().median() < 1e-3 * (without - ours).abs().median()


def test_other_scales_than_the_runs_are_found(source: Model, tmp_path: Path):
    stats, plan = observe(source, token_set()), plan_of(source, ("*_cache", FP8))
    small = quantize(source, plan, stats)
    export_model(small, plan, tmp_path / "out", "compressed-tensors")
    other = quantize(source, plan_of(source, ("*_cache", "c=e4m3/tensor/static/reach-2")), stats)
    verified = verify(tmp_path / "out", ["transformers"], against=AgainstRun(other, plan, token_set()))
    found = [f for f in verified.findings if f.what == "its static scales differ from the run's"]
    assert sorted(name for f in found for name in f.modules) == [
        f"model.layers.{block}.self_attn.{leaf}" for block in (0, 1) for leaf in ("k_cache", "v_cache")
    ]
    assert verified.verdict == "fails"


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ([("*_cache", "c=int8/token")], r"caches are c=e4m3/tensor/static or c=int8/tensor/static"),
        ([("*_cache", "c=int8/g16/static")], r"caches are c=e4m3"),
        ([("*_cache", f"{FP8}/past-only")], r"read a token's own key and value from the cache too; drop past-only"),
        ([("*_cache", "c=int4/g16/2d")], r"engines shift and scale no channel of a cache; drop 2d"),
        ([("*.k_cache", FP8)], r"one scheme in all blocks, and the plan has c=e4m3/tensor/static .*, float \("),
        ([("*_cache", FP8), ("1.v_cache", "c=int8/tensor/static")], r"one scheme in all blocks"),
    ],
)
def test_what_has_no_words_is_refused(source: Model, rules: list[tuple[str, str]], why: str):
    with pytest.raises(UserError, match=why):
        check(source, plan_of(source, *rules))


@pytest.mark.parametrize("format", sorted({*EXPORTERS.names()} - {"compressed-tensors"}))
def test_no_other_format_takes_one(source: Model, format: str):
    with pytest.raises(UserError, match="caches of keys and values are left in float there"):
        EXPORTERS.load(format).check(source, plan_of(source, ("*_cache", FP8)))


def test_shards_have_no_file_for_scales_alone(tmp_path: Path):
    model = open_model(str(tiny_checkpoint(tmp_path / "tiny", blocks=3, max_shard_size="60KB")))
    plan = plan_of(model, ("*_cache", FP8))
    small = quantize(model, plan, observe(model, token_set()))
    export_model(small, plan, tmp_path / "out", "compressed-tensors")
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())["weight_map"]
    home = json.loads((tmp_path / "tiny/model.safetensors.index.json").read_text())["weight_map"]
    assert {*index.values()} == {*home.values()}
    assert "model.layers.2.self_attn.k_scale" in index

"""What a command would take: of a config alone, beside what it took, and bounds that nothing goes through."""

from __future__ import annotations

import json
import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from qarat.ground.disk import check_room
from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.jobs import estimates
from qarat.jobs.estimates import estimate, measuring, observing, pricing
from qarat.model.opening import open_model
from qarat.testing import tiny_checkpoint

LOW = "w=int8/channel a=int8/tensor/static"


@pytest.fixture
def config_alone(tmp_path: Path, tiny_llama: Path) -> Path:
    folder = tmp_path / "config-alone"
    folder.mkdir()
    for path in tiny_llama.iterdir():
        if path.suffix == ".json":
            shutil.copyfile(path, folder / path.name)
    return folder


def test_a_config_alone_is_enough_for_an_estimate(config_alone: Path, qarat: Any, small: list[str], tmp_path: Path):
    whole = qarat("run", config_alone, *small, "-o", tmp_path / "out", "--dry-run")
    assert whole.code == 0, whole.err
    assert "holds no weights" in whole.err
    assert "no weight was checked" in whole.err
    assert all(step in whole.out for step in ("profile", "damage", "plan", "quantize", "disk"))
    assert not (tmp_path / "out").exists()
    said = qarat("profile", config_alone, *small, "-o", tmp_path / "s")
    assert said.code == 1
    assert "holds no safetensors weights" in said.err


def test_estimates_of_a_config_are_those_of_its_model(config_alone: Path, tiny_llama: Path):
    work = {"profile": observing(1 << 20), "damage": pricing(1 << 20, 2), "plan": measuring(1 << 20, 3)}
    models = (open_model(str(f), Runtime(memory=1), outline=True) for f in (config_alone, tiny_llama))
    first, second = (estimate(model, work, states=512, disk=7) for model in models)
    assert first.disk_bytes == second.disk_bytes == 7
    assert abs(first.memory_bytes - second.memory_bytes) < 0.1 * second.memory_bytes
    assert first.steps.keys() == second.steps.keys()


def test_time_grows_with_tokens_and_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def seconds(blocks: int, tokens: int) -> float:
        model = open_model(
            str(tiny_checkpoint(tmp_path / f"{blocks}", blocks=blocks, vocabulary=64)), Runtime(memory=1)
        )
        found = estimate(model, {"profile": observing(tokens)})
        return found.steps["profile"]

    monkeypatch.setattr(estimates, "measure_rates", lambda _: estimates.Rates(1e11, 2e-9, 5e-9))
    assert seconds(2, 1 << 24) / seconds(2, 1 << 22) == pytest.approx(4, rel=0.01)
    assert seconds(8, 1 << 24) / seconds(2, 1 << 24) == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize(("bound", "said"), [("1MB", "the process alone"), ("{held}", "give at least")])
def test_a_bound_below_one_block_says_what_it_takes(
    bound: str, said: str, qarat: Any, tmp_path: Path, monkeypatch: Any
):
    monkeypatch.setattr("qarat.surfaces.commands.common.held_bytes", lambda device: 10**9)
    folder = tiny_checkpoint(tmp_path / "model")
    given = bound.format(held=10**9 + 1000)
    answer = qarat("profile", folder, "--memory", given, "-o", tmp_path / "s")
    assert answer.code == 1
    assert said in answer.err
    assert "1,000 MB" in answer.err
    assert not (tmp_path / "s").exists()


def test_a_disk_that_would_fill_is_said_before_work(
    qarat: Any, small: list[str], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 5000, 5000))
    answer = qarat("run", tiny_llama, *small, "-o", tmp_path / "out")
    assert answer.code == 1
    assert "5,000 bytes free" in answer.err
    assert int(re.findall(r"will take ([\d,]+)", answer.err)[0].replace(",", "")) > 5000
    assert not list(tmp_path.glob("out*"))


def test_what_an_earlier_call_wrote_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 100))
    out = tmp_path / "out"
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "written").write_bytes(bytes(500))
    check_room(out, 600)
    with pytest.raises(UserError, match="100 bytes free, and out will take 601"):
        check_room(out, 601)


def test_a_config_of_a_large_model_opens_without_its_size(tmp_path: Path, config_alone: Path):
    path = config_alone / "config.json"
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    path.write_text(json.dumps(json.loads(path.read_text()) | sizes | {"num_key_value_heads": 8, "head_dim": 128}))
    model = open_model(str(config_alone), outline=True)
    assert sum(site.parameters for site in model.sites()) == 80 * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672)
    found = estimate(model.unkept(), {"profile": observing(512)}, states=512)
    assert found.memory_bytes < 16e9  # of 274 GB of weights in float32

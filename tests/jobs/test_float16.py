"""Numbers beyond float16 in a checkpoint that engines run in float16 are said wherever they can be seen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qarat.jobs.float16 import beyond_float16, float16_notes
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.observe import observe
from qarat.testing import tiny_checkpoint

Qarat = Callable[..., Any]
UP, DOWN = (f"model.layers.0.mlp.{part}_proj.weight" for part in ("up", "down"))


def amplified(folder: Path, dtype: torch.dtype) -> Path:
    """A model whose product of gate and up goes beyond 65504, its weights well within, and its function as it was."""
    tiny_checkpoint(folder, dtype=dtype)
    state = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    factor = 60000 / float(state[UP].abs().max())
    state[UP] *= factor
    state[DOWN] /= factor
    gate = UP.replace("up", "gate")
    state[gate] *= 100 / float(state[gate].abs().max())
    save_file({name: value.to(dtype) for name, value in state.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return amplified(tmp_path_factory.mktemp("wide") / "float16", torch.float16)


def tokens() -> TokenSet:
    ids = torch.randint(2, 98, (2, 16), generator=torch.Generator().manual_seed(3))
    return TokenSet("calibration", "windows-16-nobos", ids, ("a", "b"), ("0" * 64,), ("text",))


def test_the_streams_beyond_are_named_with_their_maximum(wide: Path) -> None:
    model = open_model(str(wide))
    stats = observe(model, tokens())
    (line,) = beyond_float16(model.checkpoint, stats)
    reached = stats.stream("model.layers.0.down_in").maximum
    assert reached > 65504
    assert line.startswith("streams beyond 65504")
    assert f"0.down_in {reached:,.0f}" in line
    assert float16_notes(model, stats) == (f"{line}; serve it in bfloat16 (vLLM: `dtype` bfloat16)",)


def test_nothing_is_said_where_another_dtype_is_declared(tmp_path: Path) -> None:
    model = open_model(str(amplified(tmp_path / "bfloat16", torch.bfloat16)))
    stats = observe(model, tokens())
    assert stats.stream("model.layers.0.down_in").maximum > 65504
    assert float16_notes(model, stats) == ()


def test_weights_that_float16_cannot_hold(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", dtype=torch.float16)
    state = load_file(folder / "model.safetensors")
    state[DOWN] = state[DOWN].float()
    state[DOWN][0, 0] = 70000
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    model = open_model(str(folder))
    lines = beyond_float16(model.checkpoint, observe(model, tokens()))
    assert "weights beyond 65504, which is as far as float16 reaches" in lines[0]
    assert f"{DOWN} 70,000" in lines[0]


def test_profile_run_export_and_verify_say_it(wide: Path, small: list[str], qarat: Qarat, tmp_path: Path) -> None:
    said, out = "serve it in bfloat16", tmp_path / "out"
    profiled = qarat("profile", wide, *small, "-o", tmp_path / "s.safetensors")
    assert "note: streams beyond 65504" in profiled.err
    assert said in profiled.err
    ran = qarat(
        "run",
        wide,
        *small,
        "-o",
        out,
        "--sites",
        "0.down",
        "--no-rewrites",
        "--no-page",
        "--export",
        "compressed-tensors",
    )
    assert ran.code == 0, ran.err
    assert "note: streams beyond 65504" in ran.err
    exported = qarat("export", out, "-o", tmp_path / "exported")
    assert "0.down_in" in exported.err
    assert "(vLLM: --dtype bfloat16)" in exported.err
    native = qarat("export", out / "model", "-o", tmp_path / "again")  # without the run's stats: 0.down is in float
    assert native.code == 0
    for against in (out, wide):
        answer = qarat("verify", tmp_path / "exported", "--against", against, *small)
        assert said in answer.out.replace("\n", " "), answer.out
        assert answer.code == 0


def test_a_static_input_that_reaches_beyond_is_seen_without_the_run(
    wide: Path, small: list[str], qarat: Qarat, tmp_path: Path
) -> None:
    words = ["--no-rewrites", "--no-page", "--budget", "nats+99"]
    assert qarat("run", wide, *small, "-o", tmp_path / "out", *words).code == 0
    exported = qarat("export", tmp_path / "out" / "model", "-o", tmp_path / "exported")
    assert "static inputs beyond 65504" in exported.err
    assert "0.down " in exported.err
    answer = qarat("verify", tmp_path / "exported", "--engine", "vllm")
    assert "the static input reaches" in answer.out


def test_what_a_transform_mends_is_said_of_the_model_as_it_came(wide: Path, tmp_path: Path) -> None:
    source = open_model(str(wide))
    within = open_model(str(tiny_checkpoint(tmp_path / "within", dtype=torch.float16)))
    stats, before = observe(within, tokens()), observe(source, tokens())
    assert float16_notes(within, stats) == ()
    (line,) = float16_notes(within, stats, (source, before))
    assert line.startswith("before it was transformed: streams beyond 65504")
    assert line.endswith("Transformed it stays within")
    assert float16_notes(source, before, (source, before)) == float16_notes(source, before)

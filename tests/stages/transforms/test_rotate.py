"""Rotations that are folded into weights: exact on every wiring they fit, and in every folder that is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qarat.ground.errors import UserError
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.stages.observe import observe
from qarat.stages.read_back.readback import logits_of
from qarat.stages.transforms import parse_transform
from qarat.stages.transforms.rotate import rotate_residual, rotate_values
from qarat.testing import tiny_checkpoint

Qarat = Callable[..., Any]


@pytest.mark.parametrize(
    ("architecture", "more"),
    [("llama", {"attention_bias": True, "mlp_bias": True}), ("qwen2", {}), ("mistral", {}), ("qwen3", {})],
)
def test_the_function_stays_and_the_residual_stream_turns(architecture: Any, more: dict[str, Any], tmp_path: Path):
    model = open_model(str(tiny_checkpoint(tmp_path / "model", architecture=architecture, **more)))
    windows = torch.arange(2, 34).view(2, 16)
    turned = rotate_residual(model)
    before, after = logits_of(model, windows), logits_of(turned, windows)
    assert 0 < (after - before).abs().max() <= 1e-5 * before.abs().max()
    whole = turned.module()(input_ids=windows, use_cache=False).logits
    torch.testing.assert_close(whole, after)
    entered, was = turned.embed(windows), model.embed(windows)
    assert (entered - was).abs().max() > 0.1 * was.abs().max()
    torch.testing.assert_close(entered.norm(dim=-1), was.norm(dim=-1))
    assert set(turned.outside()["model.norm.weight"].tolist()) == {1.0}


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_each_head_s_values_turn_alone(architecture: Any, tmp_path: Path, tiny_text: Path):
    model = open_model(str(tiny_checkpoint(tmp_path / "model", architecture=architecture)))
    tokens = load_token_sets(model, calibration=str(tiny_text), length=32, samples=2, report_samples=4)[0]
    turned = rotate_values(model)
    before, after = logits_of(model, tokens.windows), logits_of(turned, tokens.windows)
    assert 0 < (after - before).abs().max() <= 1e-5 * before.abs().max()
    for name, stream in observe(model, tokens, attention=False).streams.items():
        other = observe(turned, tokens, attention=False).stream(name)
        assert other.median_energy == pytest.approx(stream.median_energy, rel=1e-4), name
        assert (other.maximum != pytest.approx(stream.maximum, rel=1e-4)) == (stream.kind == "o_in"), name


@pytest.mark.parametrize("spelling", ["rotate/values", "rotate/residual"])
def test_what_is_written_holds_it(qarat: Qarat, tmp_path: Path, small: list[str], spelling: str):
    model = tiny_checkpoint(tmp_path / "model")
    low = ["--low", "w=int8/channel a=int8/token", "--transform", spelling]
    ran = qarat("run", model, *small, *low, "-o", tmp_path / "r", "--export", "compressed-tensors", "--no-page")
    assert ran.code == 0, ran.err
    folder = tmp_path / "r" / "compressed-tensors"
    verified = qarat("verify", folder, "--against", tmp_path / "r")
    assert verified.code == 0, verified.out + verified.err


@pytest.mark.parametrize(
    ("architecture", "more", "why"),
    [
        ("llama", {"tied": True}, "ties its head to the embedding"),
        ("gemma2", {}, "norms are not LLaMA's"),
        ("gemma3_text", {}, "norms are not LLaMA's"),
        ("opt", {}, "norms are not LLaMA's"),
    ],
)
def test_where_it_cannot_be_folded_it_is_refused(architecture: Any, more: dict[str, Any], why: str, tmp_path: Path):
    model = open_model(str(tiny_checkpoint(tmp_path / "model", architecture=architecture, **more)))
    with pytest.raises(UserError, match=why):
        rotate_residual(model)


def test_widths_without_a_hadamard_matrix_and_other_words_are_refused(tmp_path: Path):
    model = open_model(str(tiny_checkpoint(tmp_path / "model", hidden=66, heads=2, kv_heads=1, head_dim=6)))
    for turn, width in ((rotate_residual, 66), (rotate_values, 6)):
        with pytest.raises(UserError, match=f"no Hadamard matrix of order {width}"):
            turn(model)
    for text in ("rotate", "rotate/keys", "rotate/values/2"):
        with pytest.raises(UserError, match="rotate/values"):
            parse_transform(text)

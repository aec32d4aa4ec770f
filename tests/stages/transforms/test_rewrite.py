"""Fitted rewrites as a transform: the function is kept, shapes follow, and what belongs to another model is refused."""

from functools import partial
from pathlib import Path

import msgspec
import pytest
import torch

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.jobs.rewriting import fit_rewrites, refusal
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.stages.observe import observe
from qarat.stages.read_back.readback import logits_of
from qarat.stages.transforms import parse_transform
from qarat.stages.transforms.rewrite import columns_for
from qarat.testing import plant_spike, tiny_checkpoint
from qarat.values.records.files import decode_record, encode_record
from qarat.values.records.rewrites import Rewrites
from qarat.values.schemes import LOW

IDS = torch.arange(2, 50).view(2, 24)
COLUMNS = 16


def opened(folder: Path, **config: object) -> Model:
    source = tiny_checkpoint(folder / "source", intermediate=48, **config)  # type: ignore[arg-type]
    return open_model(str(source))


def fitted(model: Model, text: Path, columns: int = COLUMNS) -> Rewrites:
    calibration, selection, _ = load_token_sets(model, calibration=str(text), length=32, samples=4, report_samples=4)
    return fit_rewrites(model, selection, observe(model, calibration, attention=False), LOW, columns=columns)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="llama"),
        pytest.param({"architecture": "qwen2"}, id="biases"),
        pytest.param({"architecture": "gemma2"}, id="norms that add one"),
        pytest.param({"dtype": torch.bfloat16}, id="bfloat16"),
        pytest.param({"architecture": "opt"}, id="no gate, behind a ReLU"),
    ],
)
@pytest.mark.parametrize("columns", [0, COLUMNS])
def test_the_function_is_kept(config: dict[str, object], columns: int, tmp_path: Path, tiny_text: Path) -> None:
    model = opened(tmp_path, **config)
    rewrites = fitted(model, tiny_text)
    rewritten = parse_transform(f"rewrite/{columns}").apply(model, rewrites)
    before, after = logits_of(model, IDS), logits_of(rewritten, IDS)
    assert float((before - after).abs().max()) < 1e-5 * float(before.abs().max())
    assert rewritten.inner_width == model.inner_width + columns
    assert rewritten.fingerprint.startswith(f"{model.fingerprint}+rewrite/{columns}@")


def test_norms_of_a_bfloat16_checkpoint_are_divided_without_being_rounded(tmp_path: Path, tiny_text: Path) -> None:
    model = opened(tmp_path, dtype=torch.bfloat16)
    rewritten = parse_transform("rewrite/0").apply(model, fitted(model, tiny_text))
    for name, value in rewritten.block(0).state_dict().items():
        if "layernorm" in name:
            torch.testing.assert_close(value, value.bfloat16().float(), rtol=1e-6, atol=0)


def test_the_record_is_read_back_equal(tmp_path: Path, tiny_text: Path) -> None:
    rewrites = fitted(opened(tmp_path), tiny_text)
    (tmp_path / "rewrites.json").write_bytes(encode_record(rewrites))
    assert decode_record(tmp_path / "rewrites.json", Rewrites) == rewrites
    assert [s.sites[0].rpartition(".")[2] for s in rewrites.streams[:4]] == [
        "q_proj", "o_proj", "gate_proj", "down_proj",
    ]  # fmt: skip
    assert rewrites.damage(COLUMNS) <= rewrites.damage(0) <= rewrites.naive


def test_a_spike_is_copied_and_reaches_less(tmp_path: Path, tiny_text: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "source", intermediate=48)
    plant_spike(folder, block=1, channel=5, factor=256.0)
    model = open_model(str(folder))
    rewrites = fitted(model, tiny_text)
    assert rewrites.damage(COLUMNS) < rewrites.naive / 2


def test_the_outline_has_the_shapes_of_the_result(tmp_path: Path, tiny_text: Path) -> None:
    model = opened(tmp_path)
    outline = parse_transform(f"rewrite/{COLUMNS}").outline
    assert outline is not None
    rewritten = parse_transform(f"rewrite/{COLUMNS}").apply(model, fitted(model, tiny_text))
    assert [s.shape for s in outline(model).sites()] == [s.shape for s in rewritten.sites()]
    own, shared = model.outside(), rewritten.outside()
    assert [own[name].data_ptr() for name in own] == [shared[name].data_ptr() for name in own]  # in memory once


@pytest.mark.parametrize("spelling", ["smooth/0.5/all", "rewrite", "split/8"])
def test_what_would_go_through_an_activation_that_is_no_relu_is_refused(
    spelling: str, tmp_path: Path, tiny_text: Path
) -> None:
    model = opened(tmp_path, architecture="opt", activation_function="gelu")
    calibration = load_token_sets(model, calibration=str(tiny_text), length=32, samples=4, report_samples=4)[0]
    assert "only with relu" in refusal(model, LOW)
    step = parse_transform(spelling)
    stats = observe(model, calibration, attention=False)
    act = partial(fitted, model, tiny_text) if step.needs == "rewrites" else partial(step.apply, model, stats)
    with pytest.raises(UserError, match="that is gelu, and only with relu"):
        act()


def test_the_bound_on_memory_changes_nothing(tmp_path: Path, tiny_text: Path) -> None:
    """Every block is seen once, with all windows, however little is free."""
    source = str(tiny_checkpoint(tmp_path / "source", intermediate=48))
    wide, narrow = (open_model(source, Runtime(memory=memory, batch_tokens=32)) for memory in (1 << 30, 1))
    assert fitted(narrow, tiny_text) == fitted(wide, tiny_text)


@pytest.mark.parametrize("spelling", ["rewrite/", "rewrite/x", "rewrite/-1", "rewrite/1/2"])
def test_nonsense_is_refused(spelling: str) -> None:
    with pytest.raises(UserError, match="write rewrite"):
        parse_transform(spelling)


def test_what_was_not_fitted_to_this_is_refused(tmp_path: Path, tiny_text: Path) -> None:
    model = opened(tmp_path)
    rewrites = fitted(model, tiny_text)
    with pytest.raises(UserError, match="fitted for 0, 16 columns, not for 32"):
        parse_transform("rewrite/32").apply(model, rewrites)
    elsewhere = msgspec.structs.replace(rewrites.provenance, model="f" * 64)
    foreign = msgspec.structs.replace(rewrites, provenance=elsewhere)
    with pytest.raises(UserError, match="fitted to another model"):
        parse_transform("rewrite/0").apply(model, foreign)
    with pytest.raises(UserError, match="made from rewrites"):
        parse_transform("rewrite/0").apply(model, None)


@pytest.mark.parametrize(("inner", "columns"), [(48, 16), (176, 16), (352, 32), (1536, 64), (11008, 448), (101, 4)])
def test_columns_are_a_twentyfourth_in_steps_that_the_width_has(inner: int, columns: int, tiny_model: Model) -> None:
    class Wide:
        family, inner_width = tiny_model.family, inner

    assert columns_for(Wide()) == columns  # type: ignore[arg-type]

"""Splitting: tensors equal to the bit, shapes that follow everywhere, and the range that it is for."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.maths.splitting import choose_copies
from qarat.maths.static_scales import reach_of
from qarat.model.families import opt
from qarat.model.families.base import Family
from qarat.model.families.llama import FAMILY
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.stages.observe import observe
from qarat.stages.read_back.readback import logits_of
from qarat.stages.transforms import hadamard, parse_transform, smooth, split
from qarat.stages.transforms.folding import fold_copies, fold_scales
from qarat.testing import plant_spike, tiny_checkpoint
from qarat.values.records.streams import ActivationStats
from qarat.values.roles import Role

INNER, EXTRA = 48, 20
IDS = torch.arange(2, 50).view(2, 24)


def seen(model: Model, text: Path) -> ActivationStats:
    tokens = load_token_sets(model, calibration=str(text), length=32, samples=4, report_samples=4)[0]
    return observe(model, tokens, attention=False)


def opened(folder: Path, **config: object) -> Model:
    return open_model(str(tiny_checkpoint(folder / "source", intermediate=INNER, **config)))  # type: ignore[arg-type]


@pytest.fixture
def llama(tmp_path: Path) -> Model:
    return opened(tmp_path)


# ---------------------------------------------------------------- one block


def gated(dtype: torch.dtype) -> dict[str, Tensor]:
    """A gated MLP's tensors, biases and all, and one that is no part of it."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"gate_proj": (3, 5), "up_proj": (3, 5), "down_proj": (5, 3)}
    state: dict[str, Tensor] = {"input_layernorm.weight": torch.ones(5, dtype=dtype)}
    for name, shape in shapes.items():
        state[f"mlp.{name}.weight"] = torch.randn(shape, generator=generator).to(dtype)
        state[f"mlp.{name}.bias"] = torch.randn(shape[0], generator=generator).to(dtype)
    return state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_copy_is_equal_to_the_bit(dtype: torch.dtype) -> None:
    state, copies = gated(dtype), torch.tensor([1, 4, 2])
    before = {name: value.clone() for name, value in state.items()}
    after = fold_copies(state, FAMILY, copies, 9)
    origin = [0, 1, 1, 1, 1, 2, 2]
    parts = torch.tensor([1, 4, 4, 4, 4, 2, 2], dtype=dtype)
    for leaf in ("weight", "bias"):
        gate, up = (after[f"mlp.{name}.{leaf}"] for name in ("gate_proj", "up_proj"))
        assert gate.dtype == up.dtype == dtype
        assert torch.equal(gate[:7], state[f"mlp.gate_proj.{leaf}"][origin])
        # Bigger by k again, it is what it was: dividing lost nothing.
        whole = up[:7] * parts.view(-1, *[1] * (up.dim() - 1))
        assert torch.equal(whole, state[f"mlp.up_proj.{leaf}"][origin])
        assert not gate[7:].any()
        assert not up[7:].any()
    assert torch.equal(after["mlp.down_proj.weight"][:, :7], state["mlp.down_proj.weight"][:, origin])
    assert not after["mlp.down_proj.weight"][:, 7:].any()
    for untouched in ("mlp.down_proj.bias", "input_layernorm.weight"):
        assert after[untouched] is state[untouched]
    assert all(torch.equal(before[name], value) for name, value in state.items())


def test_where_there_is_no_gate_the_first_projection_is_divided() -> None:
    fc1, fc2 = nn.Linear(5, 3), nn.Linear(3, 5)
    state = {f"{n}.{leaf}": v for n, m in (("fc1", fc1), ("fc2", fc2)) for leaf, v in m.state_dict().items()}
    after = fold_copies(state, opt.FAMILY, torch.tensor([2, 1, 8]), 12)
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    inner = torch.relu(x @ after["fc1.weight"].T + after["fc1.bias"])
    torch.testing.assert_close(inner @ after["fc2.weight"].T + after["fc2.bias"], fc2(torch.relu(fc1(x))))


@pytest.mark.parametrize("family", [FAMILY, opt.FAMILY])
def test_scales_leave_what_is_read_as_it_was(family: Family) -> None:
    stream = family.stream(Role.ATTENTION_OUTPUT)
    generator = torch.Generator().manual_seed(2)
    shared, head, kv = 2, 3, 2  # two query heads to each of two value heads
    state = {f"{stream.source}.weight": torch.randn(kv * head, 4, generator=generator)}
    state |= {f"{stream.readers[0]}.weight": torch.randn(5, kv * shared * head, generator=generator)}
    scales = torch.tensor([1.0, 2, 4, 8, 16, 32])
    after = fold_scales(state, stream, scales, head=head)
    x = torch.randn(4, generator=generator)

    def through(tensors: dict[str, Tensor]) -> Tensor:
        values = (tensors[f"{stream.source}.weight"] @ x).view(kv, 1, head).expand(kv, shared, head)
        return tensors[f"{stream.readers[0]}.weight"] @ values.flatten()

    torch.testing.assert_close(through(after), through(state))
    assert torch.equal(after[f"{stream.source}.weight"], state[f"{stream.source}.weight"] / scales[:, None])


# ---------------------------------------------------------------- a model


def test_a_bfloat16_checkpoint_keeps_every_weight(tmp_path: Path, tiny_text: Path) -> None:
    model = opened(tmp_path, dtype=torch.bfloat16)
    stats = seen(model, tiny_text)
    wide = split.apply(model, stats, EXTRA)
    for index in range(model.blocks):
        copies = choose_copies(reach_of(stats, f"model.layers.{index}.down_in"), EXTRA)
        assert copies.max() > 1
        for name, value in wide.block(index).state_dict().items():
            assert torch.equal(value, value.bfloat16().float()), name
    narrow = split.apply(open_model(str(model.folder), Runtime(dtype="bfloat16")), stats, EXTRA).block(0).state_dict()
    assert all(torch.equal(narrow[name].float(), value) for name, value in wide.block(0).state_dict().items())


def test_shapes_follow_everywhere_and_the_checkpoint_stays(llama: Model, tiny_text: Path) -> None:
    wide = split.apply(llama, seen(llama, tiny_text), EXTRA)
    assert (llama.inner_width, wide.inner_width) == (INNER, INNER + EXTRA)
    assert (llama.config.intermediate_size, wide.config.intermediate_size) == (INNER, INNER + EXTRA)
    assert wide.checkpoint.config.intermediate_size == INNER
    shapes = {s.leaf: s.shape for s in wide.sites() if s.block == 1 and s.kind == "projection"}
    assert shapes["gate_proj"] == shapes["up_proj"] == (INNER + EXTRA, 32)
    assert shapes["down_proj"] == (32, INNER + EXTRA)
    assert shapes["o_proj"] == (32, 32)
    assert wide.tensor_shapes()["model.layers.0.mlp.down_proj.weight"] == shapes["down_proj"]
    assert wide.block_bytes() - llama.block_bytes() == 3 * 32 * EXTRA * 4
    found = {f"model.layers.0.{n}": tuple(v.shape) for n, v in wide.block(0).state_dict().items()}
    assert found.items() <= wide.tensor_shapes().items()
    assert wide.module().config is wide.config
    for other in (open_model(str(llama.folder)), llama):
        assert [s.shape for s in other.sites()] == [s.shape for s in llama.sites()]


def test_outlined_it_has_the_shapes_of_the_real_one(llama: Model, tiny_text: Path) -> None:
    step = parse_transform(f"split/{EXTRA}")
    assert step.outline is not None
    outlined, real = step.outline(llama), step.apply(llama, seen(llama, tiny_text))
    assert outlined.sites() == real.sites()
    assert outlined.tensor_shapes() == real.tensor_shapes()
    assert outlined.empty_block(0).state_dict().keys() == real.block(0).state_dict().keys()


def test_a_spike_in_a_channel_is_divided_and_each_block_has_copies_of_its_own(tmp_path: Path, tiny_text: Path) -> None:
    folder = plant_spike(tiny_checkpoint(tmp_path / "source", intermediate=INNER), 1, 3, 4096.0)
    model = open_model(str(folder))
    before = seen(model, tiny_text)
    wide = split.apply(model, before, 15)
    after = seen(wide, tiny_text)
    for index in range(model.blocks):
        name = f"model.layers.{index}.down_in"
        reach = reach_of(before, name)
        left = (reach / choose_copies(reach, 15)).max().item()
        assert after.stream(name).maximum == pytest.approx(left, rel=1e-5)
    assert after.stream("model.layers.1.down_in").maximum * 16 == pytest.approx(
        before.stream("model.layers.1.down_in").maximum, rel=1e-5
    )


def test_channels_that_are_dead_only_get_neighbours(tmp_path: Path, tiny_text: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "source", intermediate=INNER)
    model = open_model(str(folder))
    wide = split.apply(model, seen(model, tiny_text), EXTRA)
    # Filled-up channels are as dead as channels come: splitting and smoothing again goes around them.
    again = split.apply(wide, seen(wide, tiny_text), EXTRA)
    smoothed = smooth.apply(again, seen(again, tiny_text), 0.7, everywhere=True)
    rotated = hadamard.apply(smoothed)
    assert again.inner_width == rotated.inner_width == INNER + 2 * EXTRA
    before = logits_of(model, IDS)
    for other in (again, smoothed, rotated):
        assert (logits_of(other, IDS) - before).abs().max() <= 1e-5 * before.abs().max()


def test_opt_is_split_behind_a_relu_and_nothing_else(tmp_path: Path, tiny_text: Path) -> None:
    model = opened(tmp_path, architecture="opt")
    wide = split.apply(model, seen(model, tiny_text), EXTRA)
    assert wide.config.ffn_dim == INNER + EXTRA
    before = logits_of(model, IDS)
    assert 0 < (logits_of(wide, IDS) - before).abs().max() <= 1e-5 * before.abs().max()
    other = opened(tmp_path / "other", architecture="opt", activation_function="gelu")
    with pytest.raises(UserError, match=r"OPTForCausalLM has no gate, .* that is gelu"):
        split.apply(other, seen(other, tiny_text), EXTRA)
    with pytest.raises(UserError, match="that is gelu"):
        split.outline(other, EXTRA)


# ---------------------------------------------------------------- what is refused


def test_splitting_needs_the_stats_of_the_very_model(llama: Model, tiny_text: Path) -> None:
    stats = seen(llama, tiny_text)
    with pytest.raises(UserError, match="splitting needs stats of the very model"):
        split.apply(split.apply(llama, stats, EXTRA), stats, EXTRA)
    assert split.apply(llama, stats, EXTRA).fingerprint.startswith(f"{llama.fingerprint}+split/{EXTRA}@")


def test_a_rotated_model_is_not_split(llama: Model, tiny_text: Path) -> None:
    rotated = hadamard.apply(llama)
    with pytest.raises(UserError, match="split first"):
        split.apply(rotated, seen(rotated, tiny_text), EXTRA)
    with pytest.raises(UserError, match="split first"):
        split.outline(rotated, EXTRA)

"""Transforms: another model with the same function; the fixtures are every kind of wiring."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.model.layers import RotatedMlp, Rotation
from qarat.model.model import ROTATION, Model
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.model.tokens import TokenSet
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.observe import observe
from qarat.stages.quantize import quantize
from qarat.stages.read_back.readback import logits_of
from qarat.stages.transforms import TRANSFORMS, hadamard, parse_transform, smooth
from qarat.testing import plant_spike, tiny_checkpoint
from qarat.testing.extensions import check_transform
from qarat.values.fingerprints import source_of
from qarat.values.plans import PlanError, assign
from qarat.values.records.scores import paired_difference
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import LOW

KINDS = ("llama", "qwen2", "mistral", "qwen3", "llama-bf16", "gemma2", "gemma3_text")
SPELLINGS = ("hadamard", "rotate/values", "smooth/0.5", "smooth/0.8/all", "split/24")
WIDTH = 80  # of the MLP: 20 · 4


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Grouped queries; biases (qwen2), norms on q and k (qwen3), 16 bits, norms of 1 + w (Gemma)."""
    architecture, _, dtype = request.param.partition("-")
    kind = torch.bfloat16 if dtype else torch.float32
    return tiny_checkpoint(tmp_path / "model", architecture=architecture, intermediate=WIDTH, dtype=kind)


@pytest.fixture
def model(folder: Path) -> Model:
    return open_model(str(folder))


@pytest.fixture
def llama(tmp_path: Path) -> Model:
    return open_model(str(tiny_checkpoint(tmp_path / "llama", intermediate=WIDTH)))


def calibration(model: Model, text: Path) -> TokenSet:
    return load_token_sets(model, calibration=str(text), length=32, samples=4, report_samples=4)[0]


def seen(model: Model, text: Path) -> ActivationStats:
    return observe(model, calibration(model, text), attention=False)


def transformed(model: Model, spelling: str, text: Path) -> Model:
    step = parse_transform(spelling)
    return step.apply(model, seen(model, text) if step.needs else None)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_transform_keeps_its_promises(spelling: str) -> None:
    check_transform(parse_transform(spelling))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_float_outputs_stay(spelling: str, model: Model, tiny_text: Path):
    windows = calibration(model, tiny_text).windows
    before, after = logits_of(model, windows), logits_of(transformed(model, spelling, tiny_text), windows)
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()


def test_an_mlp_without_a_gate_is_smoothed_and_not_rotated(tmp_path: Path, tiny_text: Path):
    model = open_model(str(tiny_checkpoint(tmp_path / "opt", architecture="opt", intermediate=WIDTH)))
    windows = calibration(model, tiny_text).windows
    before, after = logits_of(model, windows), logits_of(transformed(model, "smooth/0.8/all", tiny_text), windows)
    assert 0 < (after - before).abs().max() <= 1e-5 * before.abs().max()
    with pytest.raises(UserError, match="fc2 stands in the block itself; leave it out"):
        transformed(model, "hadamard", tiny_text)


@pytest.fixture(scope="module")
def trained() -> tuple[Model, TokenSet, ActivationStats]:
    model = open_model("py-128")
    tokens = load_token_sets(model, length=64, samples=2, report_samples=2)[0]
    return model, tokens, observe(model, tokens, attention=False)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_float_outputs_stay_on_real_weights(spelling: str, trained: tuple[Model, TokenSet, ActivationStats]):
    model, tokens, stats = trained
    other = parse_transform(spelling).apply(model, stats)
    before, after = logits_of(model, tokens.windows), logits_of(other, tokens.windows)
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    same = measure_perplexity(model, tokens, label="float"), measure_perplexity(other, tokens, label=spelling)
    assert abs(paired_difference(*same).nats) < 1e-5


def test_one_transform_upon_another_keeps_the_outputs(llama: Model, tiny_text: Path):
    both = transformed(transformed(llama, "smooth/0.5/all", tiny_text), "hadamard", tiny_text)
    again = transformed(both, "smooth/0.7", tiny_text)
    windows = calibration(llama, tiny_text).windows
    before = logits_of(llama, windows)
    assert (logits_of(again, windows) - before).abs().max() <= 1e-5 * before.abs().max()
    words = again.fingerprint.split("+")
    assert [word.partition("@")[0] for word in words[1:]] == ["smooth/0.5/all", "hadamard", "smooth/0.7"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_generation_goes_through_the_transform(spelling: str, llama: Model, tiny_text: Path):
    windows = calibration(llama, tiny_text).windows
    other = transformed(llama, spelling, tiny_text)
    with torch.no_grad():
        whole = other.module()(input_ids=windows, use_cache=False).logits
    torch.testing.assert_close(whole, logits_of(other, windows))


# ---------------------------------------------------------------- identity


def test_stats_and_plans_of_one_are_refused_by_the_other(llama: Model, tiny_text: Path):
    rotated = hadamard.apply(llama)
    low = (rotated.fingerprint, 32, llama.sites(), LOW)
    with pytest.raises(PlanError, match=rf"made for the model \w{{12}}…\+{ROTATION}, this is"):
        quantize(llama, assign(*low), seen(llama, tiny_text))
    with pytest.raises(UserError, match="stats are of another model"):
        quantize(rotated, assign(*low), seen(llama, tiny_text))


def test_other_calibration_is_another_model(llama: Model, tiny_text: Path):
    stats = seen(llama, tiny_text)
    tokens = load_token_sets(llama, calibration=str(tiny_text), length=32, samples=2, report_samples=4)[0]
    other = observe(llama, tokens, attention=False)
    assert smooth.apply(llama, stats, 0.5).fingerprint == smooth.apply(llama, stats, 0.5).fingerprint
    assert smooth.apply(llama, stats, 0.5).fingerprint != smooth.apply(llama, other, 0.5).fingerprint
    assert smooth.apply(llama, stats, 0.5).fingerprint != smooth.apply(llama, stats, 0.6).fingerprint


def test_losses_are_compared_with_the_model_it_was_made_from(llama: Model, tmp_path: Path, tiny_text: Path):
    tokens = calibration(llama, tiny_text)
    rotated = hadamard.apply(llama)
    before = measure_perplexity(llama, tokens, label="float")
    after = measure_perplexity(rotated, tokens, label="rotated")
    assert after.provenance.model == rotated.fingerprint != before.provenance.model
    assert source_of(after.provenance.model) == llama.fingerprint
    assert abs(paired_difference(after, before).nats) < 1e-6
    stranger = open_model(str(tiny_checkpoint(tmp_path / "stranger", intermediate=WIDTH, seed=1)))
    with pytest.raises(UserError, match="do not belong together: model"):
        paired_difference(after, measure_perplexity(stranger, tokens, label="stranger"))


def test_the_narrow_model_reopened_in_float32_is_transformed_too(tmp_path: Path, tiny_text: Path):
    folder = str(tiny_checkpoint(tmp_path / "model", intermediate=WIDTH))
    narrow = hadamard.apply(open_model(folder, Runtime(dtype="bfloat16")))
    wide = hadamard.apply(open_model(folder))
    assert narrow.in_float32().fingerprint == wide.fingerprint
    windows = calibration(wide, tiny_text).windows
    assert torch.equal(logits_of(narrow.in_float32(), windows), logits_of(wide, windows))


# ---------------------------------------------------------------- the rotation


def test_only_down_proj_meets_the_rotation_and_a_printed_model_shows_it(llama: Model, tiny_text: Path):
    rotated = hadamard.apply(llama)
    before, after = seen(llama, tiny_text), seen(rotated, tiny_text)
    for name, stream in before.streams.items():
        same = math.isclose(stream.maximum, after.stream(name).maximum, rel_tol=1e-4)
        assert same == (stream.kind != "down_in"), name
        # A rotation keeps every token's length.
        assert math.isclose(stream.median_energy, after.stream(name).median_energy, rel_tol=1e-4)
    assert "Hadamard, 20 x 2 x 2" in str(rotated.module())
    assert "Hadamard" not in str(llama.module())


def test_a_planted_spike_is_spread_by_the_root_of_the_width(tmp_path: Path, tiny_text: Path):
    folder = plant_spike(tiny_checkpoint(tmp_path / "model", intermediate=WIDTH), 1, 3, 4096.0)
    model = open_model(str(folder))
    before = seen(model, tiny_text).stream("model.layers.1.down_in").maximum
    after = seen(hadamard.apply(model), tiny_text).stream("model.layers.1.down_in").maximum
    # The spike is 4096 times everything else, so nothing else shows.
    assert after == pytest.approx(before / math.sqrt(WIDTH), rel=0.01)


def test_a_model_is_rotated_once(llama: Model):
    with pytest.raises(UserError, match="rotated already"):
        hadamard.apply(hadamard.apply(llama))


def test_a_width_without_a_hadamard_matrix_is_refused(tmp_path: Path):
    model = open_model(str(tiny_checkpoint(tmp_path / "model", intermediate=66)))
    with pytest.raises(UserError, match="no Hadamard matrix of order 66"):
        hadamard.apply(model)


def test_an_mlp_of_another_kind_is_refused():
    mlp = nn.ModuleDict({"fc1": nn.Linear(4, 8), "fc2": nn.Linear(8, 4)})
    with pytest.raises(UserError, match="an MLP of fc1, fc2 cannot be rotated"):
        RotatedMlp(mlp, Rotation.of(8, "cpu"))


# ---------------------------------------------------------------- smoothing


def test_the_scale_is_the_paper_s_by_hand():
    reach, weight = torch.tensor([16.0, 1.0, 0.25, 0.0]), torch.tensor([0.25, 1.0, 4.0, 1.0])
    # 16^½ / 0.25^½ = 8; 1; 0.25^½ / 4^½ = ¼; a channel that calibration never saw stays.
    assert torch.equal(smooth.smoothing_scales(reach, weight, 0.5), torch.tensor([8.0, 1.0, 0.25, 1.0]))
    # α = 1 evens the inputs out, α = 0 the weights.
    torch.testing.assert_close(reach[:3] / smooth.smoothing_scales(reach, weight, 1.0)[:3], torch.ones(3))
    torch.testing.assert_close((weight * smooth.smoothing_scales(reach, weight, 0.0))[:3], torch.ones(3))


def test_full_strength_evens_the_channels_out(llama: Model, tiny_text: Path):
    after = seen(transformed(llama, "smooth/1/all", tiny_text), tiny_text)
    for stream in after.streams.values():
        if stream.kind in ("attn_in", "mlp_in", "down_in"):
            reach = torch.maximum(-stream.arrays["channel_min"], stream.arrays["channel_max"])
            torch.testing.assert_close(reach, torch.ones(stream.width), rtol=1e-4, atol=0)
    # Of the inputs of o, two query heads share a value head, and its largest channel is 1.
    o_in = after.stream("model.layers.0.o_in")
    reach = torch.maximum(-o_in.arrays["channel_min"], o_in.arrays["channel_max"]).view(2, 2, 8)  # (kv, shared, head)
    torch.testing.assert_close(reach.amax(1), torch.ones(2, 8), rtol=1e-4, atol=0)


def test_the_original_leaves_the_inputs_of_o_and_down_alone(llama: Model, tiny_text: Path):
    before, other = llama.block(0).state_dict(), transformed(llama, "smooth/0.5", tiny_text)
    changed = {name for name, value in other.block(0).state_dict().items() if not value.equal(before[name])}
    readers = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    norms = ("input_layernorm", "post_attention_layernorm")
    assert changed == {f"{name}.weight" for name in (*readers, *norms)}


def test_smoothing_needs_the_stats_of_the_very_model(llama: Model, tiny_text: Path):
    with pytest.raises(UserError, match="stats of the very model"):
        smooth.apply(hadamard.apply(llama), seen(llama, tiny_text), 0.5)


def test_a_rotated_down_proj_cannot_be_smoothed(llama: Model, tiny_text: Path):
    with pytest.raises(UserError, match="smooth first"):
        transformed(hadamard.apply(llama), "smooth/0.5/all", tiny_text)


# ---------------------------------------------------------------- spelling


def test_the_folder_is_the_registry():
    assert TRANSFORMS.names() == ["hadamard", "rewrite", "rotate", "smooth", "split"]


def test_auto_leaves_the_strength_to_be_chosen():
    assert parse_transform("smooth/0.5").choices == ()
    assert parse_transform("smooth/auto/all").choices == tuple(f"smooth/{a:g}/all" for a in smooth.STRENGTHS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hadamar", "unknown transform 'hadamar'; .*hadamard"),
        ("hadamard/2", "transform 'hadamard/2': nothing goes with it"),
        ("smooth", "transform 'smooth': write smooth/STRENGTH"),
        ("smooth/1.5", "from 0 to 1"),
        ("smooth/-0.5", "from 0 to 1"),
        ("smooth/nan", "from 0 to 1"),
        ("smooth/0.5/al", "write smooth/STRENGTH"),
        ("split", "transform 'split': write split/N"),
        ("split/0", "write split/N"),
        ("split/-8", "write split/N"),
        ("split/1.5", "write split/N"),
        ("split/8/all", "write split/N"),
        ("folding", "unknown transform 'folding'"),
    ],
)
def test_what_is_no_transform_says_what_is(text: str, message: str):
    with pytest.raises(UserError, match=message):
        parse_transform(text)

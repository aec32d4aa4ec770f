"""Roundings: each keeps the promises of its kind, and GPTQ is what its paper says."""

from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.maths.tensors import quantize_tensor
from qarat.model.native import read_native, write_native
from qarat.model.opening import open_model
from qarat.model.passes import draw_labels
from qarat.stages.prices.pricing import price
from qarat.stages.quantize import quantize
from qarat.stages.rounding import ROUNDINGS, Merged, Rounding, fisher, gptq, gptq_ordered, round_weight, weighing
from qarat.stages.rounding.inputs import Calibration, inputs_of
from qarat.testing import tiny_checkpoint
from qarat.testing.drawn import block_of, normal, plan_of, tokens
from qarat.testing.extensions import WEIGHTS, KnownInputs, check_rounding
from qarat.values.parsing import parse_scheme, parse_tensor_scheme

GPTQ = "w=int3/g8/round-gptq"
FISHER = "w=int3/g8/round-fisher"


def correlated(inner: int) -> KnownInputs:
    return KnownInputs(normal(200, inner, seed=1) @ normal(inner, inner, seed=2))


@pytest.mark.parametrize("name", ROUNDINGS.names())
def test_every_rounding_keeps_its_promises(name: str) -> None:
    check_rounding(ROUNDINGS.load(name))


def test_the_folder_lists_them_and_a_scheme_names_one() -> None:
    assert ROUNDINGS.names() == ["clip", "fisher", "gptq", "gptq-ordered", "gwq", "nearest", "squeezellm"]
    scheme = parse_scheme(GPTQ)
    assert str(scheme) == GPTQ
    assert parse_scheme("w=int3/g8/round-nearest") == parse_scheme("w=int3/g8")
    assert str(parse_scheme("w=mxfp4/round-gptq")) == "w=mxfp4/round-gptq"
    with pytest.raises(UserError, match="belongs to a weight"):
        parse_scheme("a=int8/token/round-gptq")
    with pytest.raises(UserError, match="unknown rounding 'gptp'; did you mean gptq"):
        round_weight(normal(4, 8), parse_tensor_scheme("int4/g8/round-gptp", "w"))


@pytest.mark.parametrize("rounding", [gptq, gptq_ordered, fisher])
@pytest.mark.parametrize("spelling", WEIGHTS)
def test_white_inputs_give_the_nearest(spelling: str, rounding: Rounding) -> None:
    class White:
        moments = 3 * torch.eye(16)
        weighted_moments = inputs = fisher = gradient = moments

    weight, scheme = normal(12, 16), parse_tensor_scheme(spelling, "w")
    codes = rounding.round_weight(weight, scheme, White()).codes
    assert torch.equal(codes, quantize_tensor(weight, scheme).codes)


@pytest.mark.parametrize("rounding", [gptq, gptq_ordered, fisher])
@pytest.mark.parametrize("spelling", WEIGHTS)
def test_codes_do_not_depend_on_the_band(spelling: str, rounding: Rounding, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, scheme, context = normal(12, 40), parse_tensor_scheme(spelling, "w"), correlated(40)
    codes: list[Tensor] = []
    for band in (1, 7, 40, 128):
        monkeypatch.setattr(gptq, "BAND", band)
        codes.append(rounding.round_weight(weight, scheme, context).codes)
    assert all(torch.equal(codes[0], other) for other in codes[1:])
    assert not torch.equal(codes[0], quantize_tensor(weight, scheme).codes)


def test_it_is_the_elimination_of_one_column_after_the_other() -> None:
    """Optimal brain surgeon, as the paper's equation 2 has it: with H⁻¹ updated by Gaussian elimination each time."""
    weight, scheme, context = normal(5, 8), parse_tensor_scheme("int4/channel", "w"), correlated(8)
    ours = gptq.round_weight(weight, scheme, context)
    moments = context.moments.double()
    inverse = (moments + gptq.DAMPING * moments.diagonal().mean() * torch.eye(8, dtype=torch.float64)).inverse()
    left, values = weight.double(), torch.zeros(5, 8, dtype=torch.float64)
    for j in range(8):
        values[:, j] = (left[:, j] / ours.scales.scale[:, 0]).round().clamp(-8, 7) * ours.scales.scale[:, 0]
        left = left - ((left[:, j] - values[:, j]) / inverse[j, j])[:, None] * inverse[j]
        inverse = inverse - inverse[:, j, None] * inverse[j] / inverse[j, j]
    assert torch.equal(ours.dequantize(), values.float())


def test_order_is_that_of_the_inputs_and_groups_stay_where_they_lie() -> None:
    """Columns sorted beforehand, a scale a row: GPTQ of the sorted ones, put back. Groups: the scales of `nearest`."""
    weight, context = normal(12, 40), correlated(40)
    order = sorted(range(40), key=lambda j: -float(context.moments[j, j]))
    by_row = parse_tensor_scheme("int3/channel", "w")
    ours = gptq_ordered.round_weight(weight, by_row, context).codes
    theirs = gptq.round_weight(weight[:, order], by_row, KnownInputs(context.inputs[:, order])).codes
    assert torch.equal(ours[:, order], theirs)
    assert not torch.equal(ours, gptq.round_weight(weight, by_row, context).codes)
    groups = parse_tensor_scheme("int3/g8", "w")
    scales = gptq_ordered.round_weight(weight, groups, context).scales
    assert torch.equal(scales.scale, quantize_tensor(weight, groups).scales.scale)


@pytest.mark.parametrize("rounding", [gptq, gptq_ordered, fisher])
def test_singular_moments_are_damped(rounding: Rounding) -> None:
    """A channel twice and one never seen: without damping there is no inverse."""
    inputs = normal(200, 16, seed=1)
    inputs[:, 3], inputs[:, 5] = inputs[:, 2], 0.0
    weight, scheme = normal(12, 16), parse_tensor_scheme("int4/g8", "w")
    rounded = rounding.round_weight(weight, scheme, KnownInputs(inputs)).dequantize()
    nearest = quantize_tensor(weight, scheme).dequantize()
    assert torch.equal(rounded[:, 5], nearest[:, 5])  # it neither gives nor takes
    ours, theirs = (float((inputs @ (w - weight).T).square().sum()) for w in (rounded, nearest))
    assert ours < theirs


@pytest.mark.parametrize("spelling", ["int4/g8", "int3/channel/asymmetric", "mxfp4/g8"])
def test_it_lowers_the_output_error(spelling: str) -> None:
    weight, scheme, context = normal(24, 40), parse_tensor_scheme(spelling, "w"), correlated(40)
    by_gptq, by_nearest = (
        float((context.inputs @ (rounded.dequantize() - weight).T).square().sum())
        for rounded in (gptq.round_weight(weight, scheme, context), quantize_tensor(weight, scheme))
    )
    assert by_gptq < 0.8 * by_nearest


def test_where_all_tokens_count_alike_least_damage_is_gptq_and_else_it_spares_those_that_count() -> None:
    weight, scheme, inputs = normal(24, 40), parse_tensor_scheme("int3/g8", "w"), correlated(40).inputs
    alike = KnownInputs(inputs, torch.full((200,), 2.0**-20))  # a power of two: not a bit changes but the exponent
    ours, theirs = (rounding.round_weight(weight, scheme, alike).codes for rounding in (fisher, gptq_ordered))
    assert torch.equal(ours, theirs)
    weights = normal(200, seed=3).exp().square()
    unlike = KnownInputs(inputs, weights)
    spared, even = (
        float(
            (
                (inputs @ (rounding.round_weight(weight, scheme, unlike).dequantize() - weight).T).square().T @ weights
            ).sum()
        )
        for rounding in (fisher, gptq_ordered)
    )
    assert spared < 0.95 * even


@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_weighted_moments_are_those_of_the_whole_model_s_gradients(tiny_llama: Path, memory: int) -> None:
    """Autograd through the whole model at once, against the walk with gradients, whatever memory it has."""
    model = open_model(str(tiny_llama))
    whole, read, put = model.module(), dict[str, Tensor](), dict[str, Tensor]()
    sites = [s for s in model.sites() if s.kind == "projection"]

    def keep(name: str, _: object, operands: tuple[Tensor, ...], output: Tensor) -> None:
        read[name], put[name] = operands[0].detach()[:, 1:].flatten(0, 1), output

    for site in sites:
        whole.get_submodule(site.name).register_forward_hook(partial(keep, site.name))
    embedded = model.embed(tokens().windows).detach().requires_grad_(True)  # weights have no gradients
    logits = whole(inputs_embeds=embedded).logits.log_softmax(-1)
    objective = draw_labels(weighing.SEED)
    total = sum((objective(window, j, 0) for j, window in enumerate(logits)), torch.zeros(()))
    gradients = torch.autograd.grad(total, list(put.values()))
    model.memory = memory
    context = Calibration(model, tokens(), first=1)
    for site, gradient in zip(put, gradients, strict=True):
        weights = gradient[:, 1:].flatten(0, 1).square().mean(1)
        expected = (read[site] * weights[:, None]).T @ read[site] / len(weights)
        ours = context.of(next(s for s in sites if s.name == site)).weighted_moments
        assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max())), site


def test_moments_are_of_what_the_float_model_reads(tiny_llama: Path) -> None:
    model = open_model(str(tiny_llama))
    site = next(s for s in model.sites() if s.name.endswith("1.mlp.down_proj"))
    read: list[Tensor] = []
    whole = model.module()
    handle = whole.get_submodule(site.name).register_forward_pre_hook(lambda _, operands: read.append(operands[0]))
    with torch.no_grad():
        whole(tokens().windows)
    handle.remove()
    rows = torch.cat(read)[:, 1:].flatten(0, 1)
    context = Calibration(model, tokens(), first=1).of(site)
    assert torch.allclose(context.inputs, rows, rtol=1e-4, atol=1e-5)
    assert torch.allclose(context.moments, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("memory", "times"), [(1, 4), (1 << 30, 1)])
def test_a_block_s_moments_come_from_one_run_where_they_fit(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, memory: int, times: int
) -> None:
    model = open_model(str(tiny_llama))
    model.memory = memory
    sites = [s for s in model.sites() if s.block == 0 and s.kind == "projection"]
    apart = {s.name: Calibration(model, tokens()).moments(s) for s in sites}
    runs: list[int] = []
    run = model.run_block

    def counted(index: int, *operands: Any) -> Tensor:
        runs.append(index)
        return run(index, *operands)

    monkeypatch.setattr(model, "run_block", counted)
    together = Calibration(model, tokens())
    for site in sites:
        assert torch.equal(together.moments(site), apart[site.name])
    assert len(runs) == times * len(tokens().batches(model.runtime.batch_tokens))


@pytest.mark.parametrize("low", [GPTQ, FISHER])
def test_prices_and_quantization_use_the_rounding_that_the_plan_names(
    tmp_path: Path, tiny_llama: Path, low: str
) -> None:
    model = open_model(str(tiny_llama))
    plan = plan_of(model, low)
    small = quantize(model, plan, calibration=tokens())
    write_native(small, plan, tmp_path / "out")
    stored, read = read_native(tmp_path / "out")
    assert read == plan
    name = "mlp.down_proj"
    ours = block_of(small, 1).get_submodule(name).quantized
    assert torch.equal(ours.codes, block_of(stored, 1).get_submodule(name).quantized.codes)
    weight = block_of(model, 1).get_submodule(name).weight.detach()
    nearest = quantize_tensor(weight, ours.scheme)
    assert not torch.equal(ours.codes, nearest.codes)
    assert torch.equal(ours.scales.scale, nearest.scales.scale)
    # The price of the weight's error is that of the very codes.
    schemes = [parse_scheme(low)]
    menu = price(model, tokens("selection", 6), schemes, metric="weight-error", calibration=tokens())
    damage = menu.damages(low)[f"model.layers.1.{name}"]
    assert damage == pytest.approx(float((ours.dequantize() - weight).double().square().sum()), rel=1e-12)


@pytest.mark.parametrize("low", [GPTQ, FISHER])
@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_blocks_may_be_built_in_any_order(tiny_llama: Path, memory: int, low: str) -> None:
    model = open_model(str(tiny_llama))
    model.memory = memory
    there, back = (quantize(model, plan_of(model, low), calibration=tokens()) for _ in range(2))
    ours = [block_of(there, index).get_submodule("self_attn.q_proj").quantized.codes for index in (0, 1)]
    theirs = [block_of(back, index).get_submodule("self_attn.q_proj").quantized.codes for index in (1, 0)]
    assert all(map(torch.equal, ours, reversed(theirs)))


@pytest.mark.parametrize("memory", [1 << 20, 1 << 30])
def test_from_the_front_each_block_of_calibration_runs_once(
    tiny_llama: Path, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for the matrices of a block together, whether or not there is any for the states of every block."""
    model = open_model(str(tiny_llama))
    model.memory = memory
    calibration = Calibration(model, tokens())
    ran: list[int] = []

    def run(index: int, *more: Any, inner: Any = model.run_block) -> Tensor:
        ran.append(index)
        return inner(index, *more)

    monkeypatch.setattr(model, "run_block", run)
    small = quantize(model, plan_of(model, GPTQ), calibration=calibration)
    for index in range(model.blocks):
        block_of(small, index)
    batches = len(tokens().batches(model.runtime.batch_tokens))
    assert ran == [index for index in range(model.blocks) for _ in range(batches)]


@pytest.mark.parametrize(("name", "rounded"), [("gptq", 4), ("clip", 4), ("fisher", 7)])
def test_what_engines_merge_under_one_scale_is_rounded_as_one(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, name: str, rounded: int
) -> None:
    """Of q, k and v the first asks for all, where the tokens' weights do not tell them apart."""
    model, module = open_model(str(tiny_llama)), ROUNDINGS.load(name)
    scheme, seen = parse_tensor_scheme(f"e4m3/tensor/round-{name}", "w"), list[Tensor]()
    block, sites = model.block(0), [s for s in model.sites() if s.block == 0 and s.kind == "projection"]
    merged = {site: Merged.of(block, "model.layers.0.", site, sites) for site in sites}
    alone = Calibration(model, tokens())
    wanted = {site: round_weight(merged[site], scheme, alone.of(site)) for site in sites}

    def count(weight: Tensor, *more: Any, inner: Any = module.round_weight) -> Any:
        seen.append(weight)
        return inner(weight, *more)

    monkeypatch.setattr(module, "round_weight", count)
    kept = Calibration(model, tokens())
    for site in sites:
        ours = kept.round_weight(site, merged[site], scheme)
        assert torch.equal(ours.codes, wanted[site].codes)
        assert torch.equal(ours.scales.scale, wanted[site].scales.scale)
    assert len(seen) == rounded


@pytest.mark.parametrize("low", [GPTQ, FISHER])
def test_what_was_rounded_is_kept_for_this_model_and_these_positions(tiny_llama: Path, low: str) -> None:
    model, other = (open_model(str(tiny_llama)) for _ in range(2))
    kept = Calibration(model, tokens())
    assert inputs_of(model, kept) is kept
    for anew in (inputs_of(other, kept), inputs_of(model, kept, 1), inputs_of(model, kept.tokens)):
        assert anew is not None
        assert anew is not kept
        assert anew.tokens is kept.tokens
    assert inputs_of(model, None) is None
    name, (first, again) = "mlp.up_proj", (quantize(model, plan_of(model, low), calibration=kept) for _ in range(2))
    ours, theirs = (block_of(small, 1).get_submodule(name).quantized for small in (first, again))
    plain = block_of(quantize(model, plan_of(model, low), calibration=tokens()), 1).get_submodule(name).quantized
    for quantized in (theirs, plain):
        assert torch.equal(ours.codes, quantized.codes)
        assert torch.equal(ours.scales.scale, quantized.scales.scale)
    assert ours.scheme == theirs.scheme


def test_without_calibration_tokens_it_is_refused_before_any_work(tmp_path: Path) -> None:
    model = open_model(str(tiny_checkpoint(tmp_path / "tiny")))
    with pytest.raises(UserError, match="round-gptq looks at what a projection reads"):
        quantize(model, plan_of(model, GPTQ))
    with pytest.raises(UserError, match="round-gptq looks at what a projection reads"):
        price(model, tokens(), [parse_scheme(GPTQ)])


def test_fewer_tokens_than_channels_are_refused_with_both_numbers(tmp_path: Path) -> None:
    model = open_model(str(tiny_checkpoint(tmp_path / "tiny")))
    wide = max(site.shape[1] for site in model.sites() if site.kind == "projection")
    few = tokens()
    few = msgspec.structs.replace(few, windows=few.windows[:1], sources=few.sources[:1])
    with pytest.raises(UserError, match=f"weighs {wide} input channels .* which 24 calibration tokens"):
        quantize(model, plan_of(model, GPTQ), calibration=few)
    with pytest.raises(UserError, match=f"at least {wide} tokens"):
        price(model, tokens("selection", 6), [parse_scheme(GPTQ)], calibration=few)

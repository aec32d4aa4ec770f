"""SqueezeLLM and GWQ: what they keep, what they ask for, and what becomes of it in prices, folders and exports."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.maths.sparse import highest
from qarat.model.native import read_native, write_native
from qarat.model.opening import open_model
from qarat.model.passes import draw_labels, next_tokens
from qarat.stages.export import EXPORTERS, gguf
from qarat.stages.prices.pricing import price
from qarat.stages.quantize import quantize
from qarat.stages.rounding import check_roundings, round_weight, weighing
from qarat.stages.rounding.inputs import Calibration
from qarat.testing import tiny_checkpoint
from qarat.testing.drawn import block_of, normal, plan_of, tokens
from qarat.testing.extensions import KnownInputs
from qarat.values.parsing import parse_scheme, parse_tensor_scheme
from qarat.values.schemes import TensorScheme

SQUEEZED = "w=kmeans3/channel/sparse-0.45/round-squeezellm"
GWQ = "w=int3/g8/sparse-1/round-gwq"


def w(words: str) -> TensorScheme:
    return parse_tensor_scheme(words, "w")


def counted(error: Tensor, importance: Tensor) -> float:
    return float((error.double().square() * importance.double()).sum())


def test_tables_are_found_where_errors_cost_most() -> None:
    """By the Fisher information they err less than tables of the weights alone, and those err less without it."""
    weight, context = normal(12, 200), KnownInputs(normal(64, 200, seed=1) * normal(200, seed=2).exp())
    ours = round_weight(weight, w("kmeans3/channel/round-squeezellm"), context).dequantize() - weight
    plain = round_weight(weight, w("kmeans3/channel")).dequantize() - weight
    linear = round_weight(weight, w("int3/channel/mse")).dequantize() - weight
    assert counted(ours, context.fisher) < 0.8 * counted(plain, context.fisher)
    ones = torch.ones_like(weight)
    assert counted(plain, ones) < counted(ours, ones)
    assert counted(plain, ones) < counted(linear, ones)


def test_a_row_that_costs_nothing_is_rounded_by_its_weights() -> None:
    class Indifferent(KnownInputs):
        @property
        def fisher(self) -> Tensor:
            return super().fisher * (torch.arange(12) != 3)[:, None]

    context, weight = Indifferent(normal(64, 40, seed=1)), normal(12, 40)
    ours = round_weight(weight, w("kmeans2/channel/round-squeezellm"), context)
    assert torch.equal(ours.dequantize()[3], round_weight(weight, w("kmeans2/channel")).dequantize()[3])


def test_sensitive_weights_first_then_the_largest() -> None:
    """Of 8000 weights 0.05 per cent are 4, and 0.45 per cent 36."""
    weight, context = normal(40, 200), KnownInputs(normal(64, 200, seed=1), outputs=40)
    sparse = round_weight(weight, w("kmeans2/channel/sparse-0.45/round-squeezellm"), context).sparse
    assert sparse is not None
    sensitive = highest(context.fisher, 4)
    expected = sensitive | highest(weight.abs().masked_fill(sensitive, -1.0), 32)
    assert int(expected.sum()) == len(sparse.values) == 36
    assert torch.equal(sparse.columns.long(), expected.nonzero()[:, 1])
    assert torch.equal(sparse.ends.long(), expected.sum(1).cumsum(0))


def test_the_largest_gradients_stay() -> None:
    weight, context = normal(12, 100), KnownInputs(normal(64, 100, seed=1))
    ours = round_weight(weight, w("int3/g25/sparse-1/round-gwq"), context).dequantize()
    kept = highest(context.gradient.abs(), 12)
    assert torch.equal(ours[kept], weight[kept].half().float())
    assert torch.equal(ours[~kept], round_weight(weight.masked_fill(kept, 0.0), w("int3/g25")).dequantize()[~kept])


@pytest.mark.parametrize("kind", ["fisher", "gradient"])
@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_gradients_are_those_of_the_whole_model(tiny_llama: Path, kind: str, memory: int) -> None:
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
    objective = draw_labels(weighing.SEED) if kind == "fisher" else next_tokens(tokens())
    total = sum((objective(window, j, 0) for j, window in enumerate(logits)), torch.zeros(()))
    gradients = torch.autograd.grad(total, list(put.values()))
    model.memory = memory
    context = Calibration(model, tokens(), first=1)
    for site, gradient in zip(put, gradients, strict=True):
        rows = gradient[:, 1:].flatten(0, 1)
        products = rows[:, :, None] * read[site][:, None, :]  # of each token
        expected = (products.square() if kind == "fisher" else products).mean(0)
        ours = getattr(context.of(next(s for s in sites if s.name == site)), kind)
        assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max())), site


@pytest.mark.parametrize("low", [SQUEEZED, GWQ, "w=kmeans4/g16", "w=int4/g8/asymmetric/sparse-2"])
def test_prices_folders_and_counts_are_of_what_the_plan_names(tmp_path: Path, tiny_llama: Path, low: str) -> None:
    model = open_model(str(tiny_llama))
    plan = plan_of(model, low)
    small = quantize(model, plan, calibration=tokens())
    write_native(small, plan, tmp_path / "out")
    stored, read = read_native(tmp_path / "out")
    assert read == plan
    assert str(plan.assignments[0].scheme) == low
    for index in range(model.blocks):
        for name in model.family.projections:
            ours, theirs = (block_of(m, index).get_submodule(name).quantized for m in (small, stored))
            assert torch.equal(ours.dequantize(), theirs.dequantize())
            assert ours.nbytes == theirs.nbytes
    menu = price(model, tokens("selection", 6), [parse_scheme(low)], metric="weight-error", calibration=tokens())
    name = "mlp.down_proj"
    weight = block_of(model, 1).get_submodule(name).weight.detach()
    error = block_of(small, 1).get_submodule(name).quantized.dequantize() - weight
    assert menu.damages(low)[f"model.layers.1.{name}"] == pytest.approx(float(error.double().square().sum()), rel=1e-12)


@pytest.mark.parametrize("low", ["w=kmeans4/channel/sparse-0.45", "w=kmeans3/channel", "w=int3/g32/sparse-1"])
def test_bits_counted_are_the_bytes_on_disk(tmp_path: Path, low: str) -> None:
    """Within 1 per cent: what else there is, is that rows of codes end with whole bytes."""
    folder = tiny_checkpoint(tmp_path / "tiny", hidden=64, intermediate=192)
    model = open_model(str(folder))
    plan = plan_of(model, low)
    write_native(quantize(model, plan), plan, tmp_path / "out")
    size = 0
    for file in (tmp_path / "out").glob("block-*.safetensors"):
        size += sum(t.nbytes for name, t in load_file(file).items() if "norm" not in name)
    weights = sum(a.site.parameters for a in plan.assignments)
    assert size * 8 == pytest.approx(plan.bits_per_weight() * weights, rel=0.01)


def test_damage_on_disk_is_named(tmp_path: Path, tiny_llama: Path) -> None:
    model = open_model(str(tiny_llama))
    plan = plan_of(model, "w=int4/g8/sparse-2")
    write_native(quantize(model, plan), plan, tmp_path / "out")
    file = tmp_path / "out" / "block-000.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.sparse_columns"].fill_(-1)  # the last of 65536
    save_file(tensors, file)
    stored, _ = read_native(tmp_path / "out")
    with pytest.raises(UserError, match=r"up_proj is damaged: .*column beyond the .* of the weight; quantize again"):
        stored.block(0)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("int4/g8/round-squeezellm", "int4 is one; write kmeans4/channel"),
        ("int4/g8/round-gwq", "none is named; add sparse-1"),
        ("kmeans4/channel/round-gwq", "none is named; add sparse-1"),
        ("kmeans4/channel/round-gptq", "kmeans4 has none; use round-squeezellm"),
        ("int4/g8/sparse-1/round-gptq-ordered", "sparse leaves some out; use round-gwq"),
        ("int4/g8/sparse-1/round-fisher", "sparse leaves some out; use round-gwq"),
        ("kmeans4/g8/sparse-1/round-clip", "use round-squeezellm"),
    ],
)
def test_what_a_rounding_cannot_is_refused_before_any_work(tiny_llama: Path, words: str, why: str) -> None:
    model = open_model(str(tiny_llama))
    site = model.sites()[0]
    with pytest.raises(UserError, match=why):
        check_roundings([(site, parse_scheme(f"w={words}"))], 10**6)
    with pytest.raises(UserError, match=why):
        round_weight(normal(8, 16), w(words))
    with pytest.raises(UserError, match=why):
        quantize(model, plan_of(model, f"w={words}"), calibration=tokens())


@pytest.mark.parametrize("low", [SQUEEZED, GWQ])
def test_without_calibration_tokens_they_are_refused(tiny_llama: Path, low: str) -> None:
    with pytest.raises(UserError, match="looks at what a projection reads"):
        quantize(open_model(str(tiny_llama)), plan_of(open_model(str(tiny_llama)), low))


@pytest.mark.parametrize("format", EXPORTERS.names())
@pytest.mark.parametrize(
    ("low", "why"),
    [("w=kmeans4/channel", "has no tables by row; use int4"), ("w=int8/channel/sparse-1", "leave sparse out")],
)
def test_every_export_refuses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, low: str, why: str
) -> None:
    monkeypatch.setattr(gguf, "check_tokenizer", lambda model: None)  # which this one's would not pass
    model = open_model(str(tiny_checkpoint(tmp_path / "tiny", hidden=64, intermediate=96)))
    plan = plan_of(model, low)
    with pytest.raises(UserError, match=why) as error:
        EXPORTERS.load(format).check(model, plan)
    assert "model.layers.1.mlp.down_proj" in str(error.value)

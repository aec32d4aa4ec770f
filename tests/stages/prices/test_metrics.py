"""The other metrics, each against its formula on an ordinary transformers model, and laws that hold for all of them."""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.maths.dimension import local_dimensions
from qarat.model import capture, passes
from qarat.model.attention import PRODUCTS
from qarat.model.capture import PRODUCT_SITES
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.passes import draw_labels
from qarat.model.states import States
from qarat.model.tokens import TokenSet
from qarat.stages import prices as damage
from qarat.stages.prices.pricing import price
from qarat.stages.quantize import quantize
from qarat.testing import tiny_checkpoint
from qarat.testing.extensions import check_metric
from qarat.values.parsing import parse_scheme
from qarat.values.plans import assign
from qarat.values.records.prices import NATS, Menu
from qarat.values.roles import CACHES
from qarat.values.schemes import LinearScheme, MatmulScheme

INT8 = "w=int8/channel a=int8/token"
PRODUCT = "l=int8/token r=int8/token"
METRICS = ["elementwise", "fisher", "gradient-error", "kl", "lid", "output-error", "weight-error"]


def token_set(windows: int = 5, length: int = 16, seed: int = 4) -> TokenSet:
    ids = torch.randint(2, 40, (windows, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 0
    sources = tuple(f"text {i}" for i in range(windows))
    return TokenSet("selection", f"windows-{length}-bos", ids, sources, ("0" * 64,), ("text",))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return tiny_checkpoint(folder, hidden=16, blocks=2, heads=2, kv_heads=1, intermediate=24, vocabulary=48)


def priced(folder: Path, metric: str, *spellings: str, tokens: TokenSet | None = None, **runtime: Any) -> Menu:
    model = open_model(str(folder), Runtime(**runtime))
    return price(model, tokens or token_set(), [parse_scheme(s) for s in spellings], metric=metric)


# ---------------------------------------------------------------- each against its formula


class Seen(NamedTuple):
    """One projection: its weight, input, output's gradient, and what int8 changes of the three."""

    weight: Tensor
    x: Tensor
    gradient: Tensor
    weight_error: Tensor
    x_error: Tensor
    change: Tensor


def int8_error(x: Tensor) -> Tensor:
    """What symmetric int8 with one scale a row changes."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round().clamp(-128, 127) * scale - x


def by_autograd(folder: Path, tokens: TokenSet, objective: Callable[[Tensor, int, int], Tensor]) -> dict[str, Seen]:
    """Every projection by one ordinary backward pass through the whole model."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    caught: dict[str, tuple[Any, Tensor, Tensor]] = {}

    def keep(name: str, module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        caught[name] = (module, args[0], output)

    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.register_forward_hook(lambda m, args, y, name=name: keep(name, m, args, y))
    log_probabilities = model(tokens.windows).logits.log_softmax(-1)
    torch.stack([objective(window, j, 0) for j, window in enumerate(log_probabilities)]).sum().backward()
    found = {}
    for name, (module, x, y) in caught.items():
        weight, x = module.weight.detach(), x.detach()
        assert y.grad is not None
        dw, dx = int8_error(weight), int8_error(x)
        found[name] = Seen(weight, x, y.grad, dw, dx, (x + dx) @ (weight + dw).T - x @ weight.T)
    return found


def assert_prices(menu: Menu, wanted: dict[str, Tensor]) -> None:
    """The menu has the mean and standard error of these prices by window."""
    assert {e.site for e in menu.entries} == wanted.keys()
    for entry in menu.entries:
        windows = wanted[entry.site].double()
        assert entry.damage == pytest.approx(float(windows.mean()), rel=1e-3), entry.site
        assert entry.standard_error == pytest.approx(float(windows.std()) / len(windows) ** 0.5, rel=1e-3), entry.site


def test_elementwise_squares_every_channel_by_itself(tiny: Path):
    seen = by_autograd(tiny, token_set(), draw_labels(0))
    wanted = {name: (s.gradient * s.change).square().sum(-1).mean(-1) / 2 for name, s in seen.items()}
    assert_prices(priced(tiny, "elementwise", INT8), wanted)


def test_elementwise_is_fisher_where_outputs_have_one_channel(tmp_path: Path):
    folder = tiny_checkpoint(tmp_path / "narrow", hidden=16, heads=2, kv_heads=1, intermediate=1, vocabulary=48)
    fisher, elementwise = (priced(folder, m, INT8).damages(INT8) for m in ("fisher", "elementwise"))
    narrow = [name for name in fisher if name.endswith(("gate_proj", "up_proj"))]
    assert len(narrow) == 4
    for name in narrow:  # squared in float32 by the one, in float64 by the other
        assert elementwise[name] == pytest.approx(fisher[name], rel=1e-6, abs=0)
    for name in fisher:
        if "self_attn" in name:
            assert elementwise[name] != pytest.approx(fisher[name], rel=1e-3, abs=0)


def test_output_error_is_the_mean_squared_change_of_the_output(tiny: Path):
    seen = by_autograd(tiny, token_set(), draw_labels(0))
    wanted = {name: s.change.square().sum(-1).mean(-1) for name, s in seen.items()}
    assert_prices(priced(tiny, "output-error", INT8), wanted)


def test_output_error_of_a_weight_alone_is_that_of_the_second_moments(tiny: Path):
    """tr(ΔW H ΔWᵀ), H the mean of x xᵀ over tokens."""
    menu = priced(tiny, "output-error", "w=int8/channel")
    for name, s in by_autograd(tiny, token_set(), draw_labels(0)).items():
        x = s.x.flatten(0, 1).double()
        moments = x.T @ x / len(x)
        error = s.weight_error.double()
        assert menu.damages("w=int8/channel")[name] == pytest.approx(float((error @ moments * error).sum()), rel=1e-3)


def test_gradient_error_is_first_order_in_absolute_value(tiny: Path):
    tokens = token_set()

    def loss(log_probabilities: Tensor, window: int, first: int) -> Tensor:
        return torch.nn.functional.nll_loss(log_probabilities[:-1], tokens.windows[window, 1:])

    wanted = {}
    for name, s in by_autograd(tiny, tokens, loss).items():
        by_weight = torch.stack([(g.T @ x * s.weight_error).abs().sum() for g, x in zip(s.gradient, s.x, strict=True)])
        wanted[name] = by_weight + (s.gradient @ s.weight * s.x_error).abs().sum((1, 2))
    assert_prices(priced(tiny, "gradient-error", INT8), wanted)


def test_weight_error_is_the_squared_error_of_the_weight_whatever_the_tokens(tiny: Path):
    menu = priced(tiny, "weight-error", INT8, PRODUCT)
    seen = by_autograd(tiny, token_set(), draw_labels(0))
    assert {e.scheme for e in menu.entries} == {INT8}
    for entry in menu.entries:
        assert entry.damage == pytest.approx(float(seen[entry.site].weight_error.square().sum()), rel=1e-4)
        assert entry.standard_error == 0.0
    other = priced(tiny, "weight-error", INT8, tokens=token_set(3, 8, seed=9))
    assert other.entries == menu.entries
    assert other.provenance.tokens != menu.provenance.tokens
    assert set(priced(tiny, "weight-error", "a=int4/token").damages("a=int4/token").values()) == {0.0}


def test_weight_error_of_products_alone_is_refused(tiny: Path):
    with pytest.raises(UserError, match="attention products and caches have none"):
        priced(tiny, "weight-error", PRODUCT)


@torch.no_grad()
def test_kl_is_that_of_the_logits(tiny: Path):
    """From whole transformers modules, the quantized one made by conversion."""
    model, tokens = open_model(str(tiny)), token_set()
    menu = priced(tiny, "kl", INT8, PRODUCT)
    plan = assign(model.fingerprint, model.source_bits, model.sites(), "float")
    original: Any = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    before = original(tokens.windows).logits.double().log_softmax(-1)
    assert len(menu.entries) == 2 * 9
    for entry in menu.entries:
        low: Any = quantize(model, plan.with_schemes({entry.site: parse_scheme(entry.scheme)}, "test")).module()
        after = low(tokens.windows).logits.double().log_softmax(-1)
        wanted = float((before.exp() * (before - after)).sum(-1).mean())
        assert entry.damage == pytest.approx(wanted, rel=1e-3), entry.site
        assert entry.damage > 0


@torch.no_grad()
def test_lid_is_what_moves_behind_the_block(tiny: Path):
    """From the quantized model's own blocks."""
    model, tokens = open_model(str(tiny)), token_set()
    menu = priced(tiny, "lid", INT8, PRODUCT)
    assert (menu.unit, len(menu.entries)) == ("change of local dimension", 2 * 9)
    plan = assign(model.fingerprint, model.source_bits, model.sites(), "float")
    for entry in menu.entries[::4]:
        low = quantize(model, plan.with_schemes({entry.site: parse_scheme(entry.scheme)}, "test"))
        hidden, index = model.embed(tokens.windows), int(entry.site.split(".")[2])
        for before in range(index):
            hidden = model.run_block(before, model.block(before), hidden)
        dimensions = [local_dimensions(m.run_block(index, m.block(index), hidden)) for m in (model, low)]
        windows = (dimensions[1] - dimensions[0]).abs().mean(-1)
        assert entry.damage == pytest.approx(float(windows.mean()), rel=1e-4), entry.site
        assert entry.standard_error == pytest.approx(float(windows.std()) / 5**0.5, rel=1e-4), entry.site


# ---------------------------------------------------------------- all of them


def test_the_folder_lists_the_metrics():
    assert damage.METRICS.names() == METRICS
    assert damage.DEFAULT in METRICS
    for name, line in damage.METRICS.describe().items():
        assert name == import_module(f"qarat.stages.prices.{name.replace('-', '_')}").METRIC.name
        assert line.endswith((".", ")")), line


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_keeps_its_promises(metric: str):
    check_metric(damage.METRICS.load(metric))


def test_an_unknown_metric_is_told_the_nearest():
    with pytest.raises(UserError, match="fisher"):
        damage.METRICS.load("fischer")
    with pytest.raises(UserError, match="unknown damage metric 'capture'"):
        damage.METRICS.load("capture")


@pytest.mark.parametrize("metric", METRICS)
def test_a_scheme_that_changes_nothing_costs_exactly_nothing(tiny: Path, metric: str):
    menu = price(open_model(str(tiny)), token_set(), [LinearScheme(), MatmulScheme()], metric=metric)
    assert len(menu.entries) == 2 * (7 if metric == "weight-error" else 9)
    assert {e.damage for e in menu.entries} == {0.0}


@pytest.mark.parametrize("metric", METRICS)
def test_batches_and_memory_change_nothing(tiny: Path, metric: str):
    spellings = (INT8, PRODUCT)
    whole = priced(tiny, metric, *spellings, batch_tokens=1024, memory=1 << 30)
    assert priced(tiny, metric, *spellings, batch_tokens=1024, memory=1) == whole
    for one, other in zip(priced(tiny, metric, *spellings, batch_tokens=32).entries, whole.entries, strict=True):
        assert (one.site, one.scheme) == (other.site, other.scheme)
        assert one.damage == pytest.approx(other.damage, rel=1e-5)


@pytest.mark.parametrize("metric", ["fisher", "gradient-error", "kl"])
def test_windows_whose_states_do_not_fit_go_in_groups(tiny: Path, metric: str, monkeypatch: pytest.MonkeyPatch):
    held: list[int] = []
    forward = passes.forward_states

    def watched(model: Model, batches: Sequence[Tensor], *rest: Any) -> States:
        held.append(len(batches))
        return forward(model, batches, *rest)

    for module in (passes, import_module("qarat.stages.prices.kl")):
        monkeypatch.setattr(module, "forward_states", watched)
    whole = priced(tiny, metric, INT8, PRODUCT, batch_tokens=16, memory=1 << 30)
    one = 16 * 16 * 4  # bytes of the hidden states of one window
    states = {"kl": 2 + 11}.get(metric, 2 + 1)  # on disk, but for kl's sites
    monkeypatch.setattr(passes, "room_on_disk", lambda: 2 * states * one)
    assert priced(tiny, metric, INT8, PRODUCT, batch_tokens=16, memory=4 * 2 * states * one) == whole
    monkeypatch.setattr(passes, "room_on_disk", lambda: 1)
    calls: list[tuple[str, int, int]] = []
    model = open_model(str(tiny), Runtime(batch_tokens=16, memory=1))
    price(model, token_set(), [parse_scheme(INT8)], metric=metric, progress=lambda *call: calls.append(call))
    assert held == [5, 2, 2, 1, 1, 1, 1, 1, 1]
    assert calls[-1][1] == calls[-1][2]
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


@pytest.mark.parametrize("memory", [1 << 30, 1])
@pytest.mark.parametrize("metric", METRICS)
def test_pricing_costs_the_forwards_that_are_counted(
    tiny: Path, metric: str, memory: int, monkeypatch: pytest.MonkeyPatch
):
    model, tokens = open_model(str(tiny), Runtime(memory=memory)), token_set()
    spent, run = [0, 0], Model.run_block

    def count(self: Model, index: int, block: Any, hidden: Tensor) -> Tensor:
        # Hidden states carry gradients where a backward follows, which counts two more.
        spent[hidden.requires_grad] += hidden.shape[0] * hidden.shape[1]
        return run(self, index, block, hidden)

    monkeypatch.setattr(Model, "run_block", count)
    schemes = [parse_scheme(spelling) for spelling in (INT8, "w=int4/channel", PRODUCT)]
    price(model, tokens, schemes, metric=metric)
    counted = damage.METRICS.load(metric).block_forwards(model, tokens, schemes)
    assert counted * tokens.windows.numel() == spent[False] + 3 * spent[True]


@pytest.mark.parametrize("metric", METRICS)
def test_fewer_bits_cost_more_and_the_unit_is_told(tiny: Path, metric: str):
    spellings = [f"w=int{b}/channel a=int{b}/token" for b in (8, 4, 2)]
    model = open_model(str(tiny))
    menu = price(model, token_set(), [parse_scheme(s) for s in spellings], metric=metric)
    eight, four, two = (menu.damages(s) for s in spellings)
    assert all(0 < eight[name] < four[name] < two[name] for name in eight)
    assert menu.metric == metric
    assert menu.in_nats == (menu.unit == NATS) == (metric in ("fisher", "kl"))
    nothing_left_behind(model)


def nothing_left_behind(model: Model) -> None:
    for index in range(model.blocks):
        for name, module in model.block(index).named_modules():
            assert not module._forward_hooks
            assert not name.endswith(PRODUCTS)


@pytest.mark.parametrize("metric", METRICS)
def test_a_quantized_model_is_refused(tiny: Path, metric: str):
    model = open_model(str(tiny))
    low = quantize(model, assign(model.fingerprint, model.source_bits, model.sites(), INT8))
    with pytest.raises(UserError, match="quantized already"):
        price(low, token_set(), [parse_scheme(INT8)], metric=metric)


@pytest.mark.parametrize("attention", [(), PRODUCT_SITES, CACHES, (*PRODUCT_SITES, *CACHES)])
@pytest.mark.parametrize("length", [8, 64])
def test_what_keeping_graphs_takes_is_bounded_from_above(tiny: Path, attention: tuple[str, ...], length: int):
    model = open_model(str(tiny))
    windows = torch.arange(2 * length).reshape(2, length) % 40
    weights = {p.untyped_storage().data_ptr() for _, block in model.walk() for p in block.parameters()}
    kept: dict[int, int] = {}
    alive: list[Any] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hidden = model.embed(windows)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for index, block in model.walk():
            graph = capture.build_graph(model, index, block, hidden, attention)
            hidden = graph.output.detach()
            alive.append(graph)
            for captured in (graph.captured.outputs.values(), *graph.captured.operands.values()):
                list(map(keep, captured))
    bound = capture.graph_bytes(model, length) * windows.numel()
    assert 0.1 * bound < sum(kept.values()) <= bound


def test_labels_are_drawn_from_the_model_however_many_tokens_come_at_once():
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    tokens = 4096
    log_p = probabilities.log().expand(tokens, -1).contiguous().requires_grad_(True)
    objective = draw_labels(0)
    (whole,) = torch.autograd.grad(objective(log_p, 3, 0), log_p)
    assert torch.equal(whole.sum(-1), torch.ones(tokens))  # one label a token
    expected, seen = probabilities * tokens, whole.sum(0)
    assert seen[1] == 0
    assert (seen - expected).abs().le(4 * expected.sqrt() + 1e-9).all()
    pieces = [torch.autograd.grad(objective(log_p[at : at + 100], 3, at), log_p)[0] for at in range(0, tokens, 100)]
    assert torch.equal(torch.stack(pieces).sum(0), whole)

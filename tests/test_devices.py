"""A GPU computes what a CPU does: every path that computes, from the walk to the folder, once on each.

Without a GPU one is pretended (`qarat.testing.pretended`), which refuses whatever mixes devices, and computes attention
by another algorithm than the CPU's; with one (`make test-gpu`) the numbers of its own kernels are compared.

Bounds. Weights are rounded by operations that IEEE 754 rounds alike everywhere, so codes and scales are equal to the
bit. Losses in float differ by the order of float32 sums, 1e-7 each: `FLOAT` is a hundred of them, and a tenth of what
TF32 (which torch leaves off) would make. Where inputs are rounded, a number that lies as close to a tie goes up here
and down there: of the N codes of a window f. Each turns one rounding error round, and errors are independent, so all
together change √(4f/N) of what rounding does: of N = 10,000 with f = 5, some 4 per cent. That is `ROUNDED`, a share of
what was added to float's losses; of prices, which are losses by rounding, a share of the largest.
"""

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file

from qarat.ground.runtime import Runtime, no_progress
from qarat.jobs.rewriting import fit_rewrites
from qarat.maths.kernels import KERNELS, choose, reference
from qarat.maths.scales import choose_scale
from qarat.maths.tensors import quantize_tensor
from qarat.model.drawing import draw_windows
from qarat.model.layers import QuantLinear
from qarat.model.model import Model
from qarat.model.native import read_native, write_native
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.learned_tables import learn_table
from qarat.stages.measure.divergence import measure_divergence
from qarat.stages.measure.generation import continue_all
from qarat.stages.measure.outliers import measure_float_columns
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.observe import observe
from qarat.stages.observe.collectors import BlockCollectors, Collector
from qarat.stages.prices.pricing import price
from qarat.stages.quantize import quantize
from qarat.stages.transforms import parse_transform
from qarat.stages.tuning import tune
from qarat.testing import pretended_cuda, tiny_checkpoint
from qarat.testing.pretended import MEMORY
from qarat.values.parsing import parse_scheme, parse_tensor_scheme
from qarat.values.plans import Plan, assign
from qarat.values.records.streams import ActivationStats
from qarat.values.roles import Role
from qarat.values.schemes import LOW, Granularity

FLOAT, ROUNDED = 1e-5, 0.05
INSIDE = [("*.qk", "l=int8/tensor/static r=int8/tensor/static"), ("*.v_cache", "c=int8/token")]
PAIR = ("cpu", "cuda")


@pytest.fixture(params=["pretended", pytest.param("cuda", marks=pytest.mark.gpu)], autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of which kind the device is that is called cuda."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("torch sees no CUDA device")
        yield "cuda"
        return
    if torch.cuda.is_available():
        pytest.skip("the CUDA device of this machine is tested with")
    with pretended_cuda():
        yield "pretended"


def drawn(name: str, windows: int, seed: int) -> TokenSet:
    ids = torch.randint(2, 98, (windows, 16), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 0
    return TokenSet(name, "windows-16-bos", ids, ("random",) * windows, (f"{seed:064}",), ("random",))


CALIBRATION, REPORT = drawn("calibration", 4, 0), drawn("report", 2, 1)


def opened(folder: Path, where: str, kernels: Literal["reference", "fast"] = "reference", memory: int = 0) -> Model:
    return open_model(str(folder), Runtime(where, memory=memory, kernels=kernels))


@cache
def seen(folder: Path, prefix: int = 0) -> ActivationStats:
    """Of the CPU, so that both devices get the same static scales."""
    return observe(opened(folder, "cpu"), CALIBRATION, prefix=prefix)


def plan_of(model: Model, low: str = LOW, rules: list[tuple[str, str]] | None = None) -> Plan:
    return assign(model.fingerprint, model.source_bits, model.sites(), low, rules or [])


def nats(model: Model) -> torch.Tensor:
    return torch.tensor(measure_perplexity(model, REPORT, label="x").nats, dtype=torch.float64)


def added(model: Model, quantized: Model) -> torch.Tensor:
    return nats(quantized) - nats(model)


def agree(results: list[torch.Tensor], bound: float) -> None:
    """Differences, by the largest number."""
    here, there = results
    assert there.device.type == here.device.type == "cpu"
    assert float(here.abs().max()) > 0
    assert float((here - there).abs().max()) <= bound * float(here.abs().max())


def test_what_a_float_model_loses(tiny_llama: Path) -> None:
    agree([nats(opened(tiny_llama, where)) for where in PAIR], FLOAT)


@pytest.mark.parametrize("architecture", ["gemma2", "opt"])  # soft caps and sliding windows; positions that are learnt
def test_families_of_another_wiring(tmp_path: Path, architecture: Literal["gemma2", "opt"]) -> None:
    more: dict[str, Any] = {"sliding_window": 8} if architecture == "gemma2" else {}
    folder = tiny_checkpoint(tmp_path / architecture, architecture=architecture, **more)
    agree([nats(opened(folder, where)) for where in PAIR], FLOAT)
    stats = seen(folder)
    models = [opened(folder, where) for where in PAIR]
    agree([added(model, quantize(model, plan_of(model), stats)) for model in models], ROUNDED)


def test_statistics_of_the_same_numbers() -> None:
    x = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(0))

    def collected(where: str) -> Collector:
        seen = BlockCollectors("model.layers.0", 0, sampled=1, first_token=0)
        seen.see(Role.KEYS, x.to(where))
        return seen.collectors[Role.KEYS].to_cpu()

    here, there = map(collected, PAIR)
    assert here.peaks == there.peaks
    for name in ("channel_min", "channel_max", "histogram", "token_maxima", "position_sum"):  # no sum that rounds
        assert torch.equal(getattr(here, name), getattr(there, name)), name
    agree([here.square_sum, there.square_sum], 1e-6)  # of 8 float32 products, then float64


def test_statistics_of_a_model(tiny_llama: Path) -> None:
    here, there = seen(tiny_llama), observe(opened(tiny_llama, "cuda"), CALIBRATION)
    assert here.streams.keys() == there.streams.keys()
    for name, stream in here.streams.items():
        other = there.streams[name]
        for array in stream.arrays.keys() & {"channel_min", "channel_max", "channel_square", "position_maxima"}:
            agree([stream.arrays[array], other.arrays[array]], FLOAT)
        assert [(p.window, p.position, p.channel) for p in stream.peaks[:1]] == [
            (p.window, p.position, p.channel) for p in other.peaks[:1]
        ]


@pytest.mark.parametrize("metric", ["fisher", "gradient-error", "output-error", "kl", "lid", "weight-error"])
def test_prices(tiny_llama: Path, metric: str) -> None:
    """A label at the very edge between two tokens would be drawn otherwise: one in a million."""
    schemes = [parse_scheme(s) for s in (LOW, "w=int4/g16 a=int8/token")]
    if metric in ("fisher", "kl"):
        schemes += [parse_scheme("l=int8/tensor/static r=int8/token"), parse_scheme("c=int4/tensor/static/past-only")]
    menus = [price(opened(tiny_llama, w), REPORT, schemes, seen(tiny_llama), metric=metric) for w in PAIR]
    agree([torch.tensor([entry.damage for entry in menu.entries]) for menu in menus], ROUNDED)


def test_with_states_on_disk_and_no_block_kept(tiny_llama: Path) -> None:
    losses, prices = list[torch.Tensor](), list[torch.Tensor]()
    for where in PAIR:
        model = opened(tiny_llama, where, memory=40_000)
        assert not model.keeps_blocks
        losses.append(nats(model))
        menu = price(model, REPORT, [parse_scheme(LOW)], seen(tiny_llama))
        prices.append(torch.tensor([entry.damage for entry in menu.entries]))
    agree(losses, FLOAT)
    agree(prices, ROUNDED)


@pytest.mark.parametrize(
    ("low", "rules"),
    [
        (LOW, INSIDE),
        ("w=mxfp4/g16 a=mxfp4/g16", []),
        ("w=int4/g16/asymmetric a=int8/token/asymmetric", []),
        ("w=e4m3/8x8 a=e4m3/tensor/static/p99.9", []),
        ("w=nvfp4/g16 a=float", [("0.down", "w=kmeans2/channel/sparse-1 a=float")]),
        ("w=int8/channel a=int8/token/outliers-2", []),
    ],
)
def test_what_a_quantized_model_loses_and_diverges(tiny_llama: Path, low: str, rules: list[tuple[str, str]]) -> None:
    losses, divergences = list[torch.Tensor](), list[torch.Tensor]()
    for where in PAIR:
        model = opened(tiny_llama, where)
        quantized = quantize(model, plan_of(model, low, rules), seen(tiny_llama))
        losses.append(added(model, quantized))
        divergences.append(torch.tensor(measure_divergence(quantized, model, REPORT, label="x").nats))
    agree(losses, ROUNDED)
    agree(divergences, ROUNDED)


EXACT = (
    LOW,
    "w=int4/g16/asymmetric a=float",
    "w=int3/g16/scale-float16 a=float",
    "w=int4/g16/scale-uint8 a=float",
    "w=mxfp4/g16 a=float",
    "w=nvfp4/g16 a=float",
    "w=e4m3/8x8 a=float",
    "w=int4/channel/p99 a=float",
    "w=int4/g16/sparse-1 a=float",
)


@pytest.mark.parametrize("low", EXACT)
def test_what_is_written_from_either_is_the_same_and_read_by_the_other(
    tiny_llama: Path, tmp_path: Path, low: str
) -> None:
    folders = [tmp_path / where for where in PAIR]
    for where, folder in zip(PAIR, folders, strict=True):
        model = opened(tiny_llama, where)
        write_native(quantize(model, plan_of(model, low), seen(tiny_llama)), plan_of(model, low), folder)
    for path in folders[0].glob("*.safetensors"):
        here, there = (load_file(folder / path.name) for folder in folders)
        assert here.keys() == there.keys()
        for name, tensor in here.items():
            assert torch.equal(tensor.view(torch.uint8), there[name].view(torch.uint8)), name
    crossed = zip(folders[::-1], PAIR, strict=True)
    agree([added(opened(tiny_llama, w), read_native(folder, Runtime(w))[0]) for folder, w in crossed], ROUNDED)


def test_roundings_that_look_at_sums(tiny_llama: Path) -> None:
    """What they weigh are sums of float32, so a weight between two codes may get the other one, and pass that on."""
    each = {
        "q": "int4/g16/round-gptq",
        "k": "int4/g16/round-gptq-ordered",
        "v": "int4/g16/round-fisher",
        "o": "int4/g16/round-clip",
        "gate": "kmeans2/channel/sparse-1/round-squeezellm",
        "up": "int4/g16/sparse-1/round-gwq",
        "down": "int4/channel/mse",
    }
    rules, made = [(f"0.{leaf}", f"w={words} a=float") for leaf, words in each.items()], list[dict[str, torch.Tensor]]()
    for where in PAIR:
        model = opened(tiny_llama, where)
        block = quantize(model, plan_of(model, "float", rules), calibration=CALIBRATION).block(0)
        layers = {name: cast(QuantLinear, block.get_submodule(name)) for name in model.family.projections}
        made.append({name: layer.value.cpu() for name, layer in layers.items()})
    for name, here in made[0].items():
        assert float(((here - made[1][name]).abs() <= 1e-6).double().mean()) >= 0.999, name


@pytest.mark.parametrize("spelled", ["hadamard", "smooth/0.5/all", "split/4", "rotate/values", "rotate/residual"])
def test_transforms(tiny_llama: Path, spelled: str) -> None:
    models = (opened(tiny_llama, where) for where in PAIR)
    agree([nats(parse_transform(spelled).apply(model, seen(tiny_llama))) for model in models], FLOAT)


def test_rewrites(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qarat.maths.step_fit.DESCENT", 3)
    monkeypatch.setattr("qarat.maths.step_fit.AGAIN", 2)
    found, losses = list[torch.Tensor](), list[torch.Tensor]()
    for where in PAIR:
        model = opened(tiny_llama, where)
        rewrites = fit_rewrites(model, REPORT, seen(tiny_llama), LOW, columns=4)
        found.append(torch.tensor([stream.naive for stream in rewrites.streams]))
        losses.append(nats(parse_transform("rewrite/4").apply(model, rewrites)))
    agree(found, ROUNDED)
    agree(losses, FLOAT)


def test_the_same_tokens_are_written(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qarat.stages.measure.generation._NEW", 8)
    texts: list[dict[str, str]] = []
    for where in PAIR:
        model = opened(tiny_llama, where)
        low = quantize(model, plan_of(model, LOW, INSIDE), seen(tiny_llama))
        models = {"float": partial(lambda m: m, model), "low": partial(lambda m: m, low)}
        texts.append(dict(continue_all(model, REPORT, models, REPORT.windows[0].tolist()[:8], no_progress).texts))
    assert texts[0] == texts[1]
    assert len(set(texts[0].values())) == 2


def test_the_same_windows_are_drawn(tiny_llama: Path) -> None:
    here, there = (draw_windows(opened(tiny_llama, where), 2, 8, "each") for where in PAIR)
    assert here.equal(there)


def test_a_prefix_in_float(tiny_llama: Path, tmp_path: Path) -> None:
    stats, results = seen(tiny_llama, prefix=1), list[torch.Tensor]()
    for where in PAIR:
        model = opened(tiny_llama, where)
        plan = replace(plan_of(model, LOW, INSIDE), prefix=(0,))
        write_native(quantize(model, plan, stats), plan, tmp_path / where)
        results.append(added(model, read_native(tmp_path / where, model.runtime)[0]))
    agree(results, ROUNDED)


def test_tuning_tables_and_shares_of_columns(tiny_llama: Path) -> None:
    results, tables, shares = list[torch.Tensor](), [], list[torch.Tensor]()
    for where in PAIR:
        model = opened(tiny_llama, where)
        plan = plan_of(model, "w=int3/g16 a=int8/token", [("*.down", "float")])
        results.append(added(model, tune(model, quantize(model, plan), CALIBRATION, plan, 2)))
        tables.append(learn_table(model, 3, Granularity(1, 16)).values)
        outliers = quantize(model, plan_of(model, "w=int8/channel a=int8/token/outliers-2"))
        shares.append(torch.tensor([*measure_float_columns(outliers, REPORT).values()]))
    agree(results, ROUNDED)
    assert tables[0] == tables[1]
    agree(shares, 0.0)


@pytest.mark.parametrize(
    ("kernel", "weight", "inputs"),
    [
        ("int8", "int8/channel", "int8/token"),
        ("int8", "int4/channel/asymmetric", "int8/tensor/static/asymmetric"),
        ("int8", "int8/tensor", "int8/token/outliers-2"),
        ("fp8", "e4m3/channel", "e4m3/token"),
        ("fp8", "e4m3/tensor", "e4m3/tensor/static"),
    ],
)
@pytest.mark.parametrize("shape", [(1, 96), (2, 35, 77)])
def test_kernels_equal_the_reference(kernel: str, weight: str, inputs: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*s, generator=generator) for s in (shape, (40, shape[-1])))
    scheme, bias = parse_tensor_scheme(inputs, "a"), torch.randn(40, generator=generator).to("cuda")
    x, low = x.to("cuda"), quantize_tensor(w.to("cuda"), parse_tensor_scheme(weight, "w"))
    chosen = choose(low.scheme, scheme, (40, shape[-1]), x.device, "fast")
    if chosen.kernel == "reference":
        pytest.skip(chosen.why)  # whose sums on this device are not exact is not used, and need not agree
    assert chosen.kernel == kernel
    scales = choose_scale(x, scheme) if scheme.static else None
    ours, theirs = (k.linear(x, low, bias, scheme, scales).cpu() for k in (KERNELS.load(kernel), reference))
    agree([theirs, ours], FLOAT)


def test_a_model_by_fast_kernels(tiny_llama: Path) -> None:
    results = list[torch.Tensor]()
    for kernels in ("reference", "fast"):
        model = opened(tiny_llama, "cuda", kernels)
        found = measure_perplexity(quantize(model, plan_of(model), seen(tiny_llama)), REPORT, label="x")
        results.append(torch.tensor(found.nats, dtype=torch.float64) - nats(model))
        if kernels == "fast":
            assert found.kernels == {"int8": 14}
    agree(results, ROUNDED)


def test_memory_is_that_of_the_device(device: str) -> None:
    free = MEMORY if device == "pretended" else torch.cuda.mem_get_info()[0]
    assert 0 < Runtime("cuda").memory_bytes() <= free
    if device == "pretended":
        assert Runtime("cuda").memory_bytes() == MEMORY // 2

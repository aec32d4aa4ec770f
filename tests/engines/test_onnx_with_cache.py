"""The ONNX decoder graph: with a cache, engines give the logits and tokens that the simulation gives without one.

Weights are INT7, so that sums saturate on no CPU, and tokens such that no input lies at the edge of a step, where sums
in another order round the other way: so engines can be held to rounding errors.
"""

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from qarat.ground.runtime import Runtime
from qarat.jobs.live import Live
from qarat.jobs.verify import AgainstRun, verify
from qarat.model.folders import MARK
from qarat.model.layers import QuantLinear
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.stages.export.onnx_with_cache import CONFIG
from qarat.values.engines import FILE_ENGINES
from qarat.values.plans import Plan
from qarat.values.records.files import decode_record

onnx = pytest.importorskip("onnx", reason="needs onnx: make test-engines")

LOW = "w=int7/channel a=int8/tensor/static"
RULES = (("0.down", "float"), ("1.o", "w=int7/channel"))
LENGTH, NEW = 24, 12
Walked = Callable[[Model, Tensor], Tensor]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, export_graph: Callable[..., Any]) -> Any:
    """Of a split model."""
    return export_graph(tmp_path_factory.mktemp("cached"), "onnx-with-cache", LOW, *RULES, blocks=2, split=8)


class Decoder(NamedTuple):
    """The graph in an engine.

    Attributes:
        model: What was exported.
        run: Inputs to outputs, by name.
    """

    model: Model
    run: Callable[[dict[str, Any]], dict[str, Any]]

    def step(self, tokens: Tensor, mask: Tensor, past: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Logits of the tokens, and what is cached then; positions are counted where the mask is."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        given = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
        found = self.run({name: value.contiguous().numpy() for name, value in given.items()} | past)
        logits = torch.from_numpy(found.pop("logits"))
        return logits, {name.replace("present", "past_key_values"): value for name, value in found.items()}

    def empty(self, batch: int) -> dict[str, Any]:
        """A past of no tokens."""
        nothing = torch.zeros(batch, self.model.config.num_key_value_heads, 0, self.model.head_width).numpy()
        parts = [(index, part) for index in range(self.model.blocks) for part in ("key", "value")]
        return {f"past_key_values.{index}.{part}": nothing for index, part in parts}

    def logits(self, tokens: Tensor, cuts: Sequence[int] = (), padding: Sequence[int] = (0, 0)) -> Tensor:
        """Of all tokens, with a step at every cut; so many of each row, from the left, are padding."""
        mask = (torch.arange(tokens.shape[1]) >= torch.tensor(padding)[:, None]).long()
        past, found = self.empty(len(tokens)), []
        for first, last in itertools.pairwise([0, *cuts, tokens.shape[1]]):
            logits, past = self.step(tokens[:, first:last], mask[:, :last], past)
            found.append(logits)
        return torch.cat(found, dim=1)

    def generate(self, tokens: Tensor) -> list[list[int]]:
        """The likeliest tokens, one after the other, with the cache."""
        new, past = tokens, self.empty(len(tokens))
        for _ in range(NEW):
            logits, past = self.step(new, torch.ones_like(tokens), past)
            new = logits[:, -1:].argmax(-1)
            tokens = torch.cat([tokens, new], dim=1)
        return tokens.tolist()


@pytest.fixture
def decoder(exported: Any, start: Callable[..., Any]) -> Decoder:
    return Decoder(exported.quantized, start(exported.folder / "model.onnx"))


EDGE = 3e-5  # steps from the middle between two codes


def off_edges(model: Model, walked: Walked, rows: int) -> Tensor:
    """Random tokens, (rows, LENGTH), of which no input of a projection lies at the edge of a step."""
    nearest: list[float] = []

    def look(layer: QuantLinear, given: tuple[Tensor]) -> None:
        if layer.input_scales is not None:
            steps = given[0] / layer.input_scales.scale
            nearest.append(float((steps - steps.floor() - 0.5).abs().min()))

    blocks = [model.block(index) for index in range(model.blocks)]
    for layer in (layer for block in blocks for layer in block.modules() if isinstance(layer, QuantLinear)):
        layer.register_forward_pre_hook(look)
    generator, watched, found = torch.Generator().manual_seed(7), model.with_blocks(blocks.__getitem__), []
    while len(found) < rows:
        row = torch.randint(2, 98, (1, LENGTH), generator=generator)
        nearest.clear()
        walked(watched, row)
        if min(nearest) > EDGE:
            found.append(row)
    return torch.cat(found)


def some_tokens(length: int) -> Tensor:
    return torch.randint(2, 98, (2, length), generator=torch.Generator().manual_seed(7))


def without_cache(model: Model, walked: Walked) -> list[list[int]]:
    """What the simulation generates, every step from all tokens."""
    tokens = some_tokens(5)
    for _ in range(NEW):
        tokens = torch.cat([tokens, walked(model, tokens)[:, -1:].argmax(-1)], dim=1)
    assert all(len({*row[5:]}) > 2 for row in tokens.tolist())  # it does not say one thing alone
    return tokens.tolist()


@pytest.mark.parametrize("cuts", [(), (1,), (8, 9, 10, 20), range(1, LENGTH)])
def test_logits_are_the_simulation(decoder: Decoder, cuts: Sequence[int], walked: Walked) -> None:
    tokens = off_edges(decoder.model, walked, 2)
    expected = walked(decoder.model, tokens)
    assert (decoder.logits(tokens, cuts) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_padding_on_the_left_changes_nothing(decoder: Decoder, walked: Walked) -> None:
    tokens = off_edges(decoder.model, walked, 2)
    expected = walked(decoder.model, tokens)
    padded = tokens.clone()
    padded[0, 3:], padded[0, :3] = tokens[0, :-3], 0
    found = decoder.logits(padded, (9, 10), padding=(3, 0))
    assert (found[0, 3:] - expected[0, :-3]).abs().max() < 1e-5 * expected.abs().max()
    assert (found[1] - expected[1]).abs().max() < 1e-5 * expected.abs().max()


def test_the_likeliest_tokens_are_those_without_a_cache(decoder: Decoder, walked: Walked) -> None:
    assert decoder.generate(some_tokens(5)) == without_cache(decoder.model, walked)


def test_onnx_runtime_genai_generates_the_same(exported: Any, tmp_path: Path, walked: Walked) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai: make test-engines")
    wanted = without_cache(exported.quantized, walked)
    shutil.copytree(exported.folder, tmp_path / "folder")
    settings = json.loads((tmp_path / "folder" / CONFIG).read_text())
    settings["model"]["eos_token_id"] = min({*range(128)} - {*wanted[0], *wanted[1]})  # so that nothing ends it early
    (tmp_path / "folder" / CONFIG).write_text(json.dumps(settings))
    model = genai.Model(str(tmp_path / "folder"))
    for row, expected in zip(some_tokens(5), wanted, strict=True):
        options = genai.GeneratorParams(model)
        options.set_search_options(max_length=5 + NEW)
        generator = genai.Generator(model, options)
        generator.append_tokens(row.numpy().astype("int32"))
        while not generator.is_done():
            generator.generate_next_token()
        assert generator.get_sequence(0).tolist() == expected


def test_inputs_of_weights_that_are_quantized_alone_are_rounded_unless_it_is_said(
    exported: Any, start_onnxruntime: Callable[..., Any], walked: Walked
) -> None:
    tokens = off_edges(exported.quantized, walked, 2)
    expected = walked(exported.quantized, tokens)
    decoders = [
        Decoder(exported.quantized, start_onnxruntime(exported.folder / "model.onnx", accuracy=accuracy))
        for accuracy in ("1", "4")
    ]
    exact, rounded = ((decoder.logits(tokens) - expected).abs().max() / expected.abs().max() for decoder in decoders)
    assert exact < 1e-5
    assert rounded > 1e-3


def test_openvino_rounds_inputs_of_weights_alone_with_vnni_unless_it_is_said(
    exported: Any, compile_openvino: Callable[..., Any], walked: Walked, has_vnni: bool
) -> None:
    tokens = off_edges(exported.quantized, walked, 2)
    expected = walked(exported.quantized, tokens)

    def error(group: int) -> Tensor:
        model = compile_openvino(exported.folder / "model.onnx", group)
        decoder = Decoder(
            exported.quantized, lambda given: {o.get_any_name(): v.copy() for o, v in model(given).items()}
        )
        return (decoder.logits(tokens) - expected).abs().max() / expected.abs().max()

    assert error(0) < 1e-5
    assert (error(32) > 1e-3) == has_vnni


def test_a_split_model_is_written_as_wide_as_it_is(exported: Any) -> None:
    assert json.loads((exported.folder / "config.json").read_text())["intermediate_size"] == 64 + 8
    graph = onnx.load(exported.folder / "model.onnx", load_external_data=False).graph
    shapes = Counter(tuple(tensor.dims) for tensor in graph.initializer if len(tensor.dims) == 2)
    assert shapes[32, 72] + shapes[72, 32] == 6  # gate, up and down of both blocks


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_verify_says_what_ran_and_what_it_lost(exported: Any, engine: str, walked: Walked) -> None:
    pytest.importorskip(engine, reason=f"needs {engine}: make test-engines")
    sources = ("a", "b", "c", "d")
    ids = off_edges(exported.quantized, walked, 4)
    report = TokenSet("report", f"windows-{LENGTH}-nobos", ids, sources, ("0" * 64,), ("text",))
    against = AgainstRun(exported.quantized, decode_record(exported.folder / MARK, Plan), report)
    record = verify(exported.folder, live=Live(engine, lambda _: report, Runtime()), against=against)
    [run] = record.live
    assert run.version in FILE_ENGINES[engine].ran
    assert Counter(module.scheme for module in run.modules) == {"int8": 12, "float": 1, "int8 weights": 1}
    assert all(module.agrees and module.expected for module in run.modules)
    [loss] = run.losses
    assert loss.nats == pytest.approx(loss.ours, abs=1e-5)
    assert record.verdict == "passes"

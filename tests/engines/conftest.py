"""What the tests against other programs share: a tiny model and a mixed plan with static scales, and ONNX graphs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages import quantize as conversion
from qarat.stages.export.base import export_model
from qarat.stages.export.onnx_with_cache import ACCURACY
from qarat.stages.observe import observe
from qarat.stages.transforms import parse_transform
from qarat.testing import tiny_checkpoint
from qarat.values.plans import Plan, assign
from qarat.values.records.streams import ActivationStats

LENGTH = 24


class Subject(NamedTuple):
    """A tiny model with the stats that static scales come from.

    Attributes:
        folder: Of the float model.
        model: Opened.
        stats: Of `windows`.
        windows: (windows, tokens) ids.
        out: An empty folder for exports.
    """

    folder: Path
    model: Model
    stats: ActivationStats
    windows: Tensor
    out: Path

    def plan(self, low: str, *rules: tuple[str, str]) -> Plan:
        return assign(self.model.fingerprint, self.model.source_bits, self.model.sites(), low, rules)

    def quantized(self, plan: Plan) -> Model:
        return conversion.quantize(self.model, plan, self.stats)

    def export(self, format: str, low: str, *rules: tuple[str, str]) -> tuple[Plan, Path]:
        plan = self.plan(low, *rules)
        folder = self.out / format
        export_model(self.quantized(plan), plan, folder, format)
        return plan, folder


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Two blocks, widths that hold whole groups of 32."""
    home = tmp_path_factory.mktemp("engines")
    folder = tiny_checkpoint(home / "tiny", hidden=64, intermediate=96)
    model = open_model(str(folder))
    ids = torch.randint(2, 98, (6, LENGTH), generator=torch.Generator().manual_seed(5))
    ids[:, 0] = 0
    sources = tuple(f"text {i}" for i in range(len(ids)))
    tokens = TokenSet("calibration", f"windows-{LENGTH}-bos", ids, sources, ("0" * 64,), ("text",))
    return Subject(folder, model, observe(model, tokens), ids, home / "out")


@pytest.fixture(scope="session")
def walked() -> Callable[[Model, Tensor], Tensor]:
    """Logits by the walk."""

    @torch.no_grad()
    def logits(model: Model, tokens: Tensor) -> Tensor:
        hidden = model.embed(tokens)
        for index, block in model.walk():
            hidden = model.run_block(index, block, hidden)
        return model.logits(hidden)

    return logits


Run = Callable[[dict[str, Any]], dict[str, Any]]
"""A loaded graph: inputs to outputs, by name."""


class Graph(NamedTuple):
    """An ONNX export of a tiny model.

    Attributes:
        quantized: What was exported.
        float_model: What it was made from.
        folder: Of the export.
        notes: What the exporter said.
    """

    quantized: Model
    float_model: Model
    folder: Path
    notes: tuple[str, ...]


def _export_graph(
    home: Path, format: str, low: str, *rules: tuple[str, str], blocks: int = 1, split: int = 0, **shape: Any
) -> Graph:
    """One block, unless it is asked for more: tracing takes seconds for each."""
    pytest.importorskip("onnxscript", reason="needs onnx and onnxscript: make test-engines")
    model = open_model(str(tiny_checkpoint(home / "tiny", blocks=blocks, **shape)))
    ids = torch.randint(2, 98, (6, LENGTH), generator=torch.Generator().manual_seed(5))
    tokens = TokenSet("calibration", f"windows-{LENGTH}-nobos", ids, tuple("abcdef"), ("0" * 64,), ("text",))
    if split:
        model = parse_transform(f"split/{split}").apply(model, observe(model, tokens, attention=False))
    plan = assign(model.fingerprint, model.source_bits, model.sites(), low, rules)
    quantized = conversion.quantize(model, plan, observe(model, tokens, attention=False))
    notes = export_model(quantized, plan, home / "out", format)
    return Graph(quantized, model, home / "out", tuple(notes))


@pytest.fixture(scope="session")
def export_graph() -> Callable[..., Graph]:
    """Makes a tiny model, quantizes and exports it."""
    return _export_graph


@pytest.fixture(scope="session")
def start_onnxruntime() -> Callable[..., Run]:
    """Loads a graph; which of the graph is optimized, and how accurate inputs of weights alone are, may be said."""
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime: make test-engines")

    def start(path: Path, level: str = "ORT_ENABLE_ALL", accuracy: str = "1") -> Run:
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.add_session_config_entry(ACCURACY, accuracy)
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return lambda given: dict(zip(names, session.run(None, given), strict=True))

    return start


@pytest.fixture(scope="session")
def compile_openvino() -> Callable[..., Any]:
    """Loads a graph in OpenVINO, and compiles it for this CPU; inputs of weights alone may be rounded in groups."""
    ov = pytest.importorskip("openvino", reason="needs openvino: make test-engines")
    core = ov.Core()

    def compile(path: Path, group: int = 0) -> Any:
        options = {"INFERENCE_NUM_THREADS": 1, "DYNAMIC_QUANTIZATION_GROUP_SIZE": group}
        return core.compile_model(core.read_model(path), "CPU", options)

    return compile


@pytest.fixture(params=["onnxruntime", "openvino"])
def start(request: pytest.FixtureRequest) -> Callable[[Path], Run]:
    """Loads a graph in either engine, as it comes."""
    if request.param == "onnxruntime":
        return request.getfixturevalue("start_onnxruntime")
    compile_openvino = request.getfixturevalue("compile_openvino")

    def run(path: Path) -> Run:
        model = compile_openvino(path)
        return lambda given: {output.get_any_name(): value.copy() for output, value in model(given).items()}

    return run


@pytest.fixture(scope="session")
def has_vnni() -> bool:
    """Whether INT8 products are summed exactly here."""
    info = Path("/proc/cpuinfo")
    return not info.is_file() or "vnni" in info.read_text()

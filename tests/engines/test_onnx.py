"""The ONNX graph in ONNX Runtime: logits of the simulation, INT8 kernels in use, protected sites in float."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.export.base import export_model
from qarat.stages.observe import observe
from qarat.stages.quantize import quantize
from qarat.testing import tiny_checkpoint
from qarat.values.plans import Plan, assign

onnx = pytest.importorskip("onnx", reason="needs onnx: make test-engines")
ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime: make test-engines")

LOW = "w=int8/channel a=int8/tensor/static"
RULES = (("0.down", "float"), ("0.o", "w=int8/tensor a=int8/tensor/static/asymmetric"), ("0.q", LOW))


class Exported(NamedTuple):
    float_model: Model
    quantized: Model
    folder: Path
    notes: list[str]


def plan_of(model: Model, *rules: tuple[str, str]) -> Plan:
    return assign(model.fingerprint, model.source_bits, model.sites(), LOW, rules)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One block: tracing takes seconds for each."""
    home = tmp_path_factory.mktemp("onnx")
    model = open_model(str(tiny_checkpoint(home / "tiny", blocks=1, attention_bias=True)))
    ids = torch.randint(2, 98, (6, 24), generator=torch.Generator().manual_seed(5))
    tokens = TokenSet("calibration", "windows-24-nobos", ids, tuple("abcdef"), ("0" * 64,), ("text",))
    stats = observe(model, tokens, attention=False)
    plan = plan_of(model, *RULES)
    quantized = quantize(model, plan, stats)
    notes = export_model(quantized, plan, home / "out", "onnx")
    return Exported(model, quantized, home / "out", list(notes))


def session(folder: Path, level: Any, optimized: Path | None = None) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("shape", [(1, 1), (2, 8), (3, 24)])  # batch and length are free
@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
def test_logits_are_the_simulation(
    exported: Exported, shape: tuple[int, int], level: str, walked: Callable[[Model, Tensor], Tensor]
) -> None:
    tokens = torch.randint(2, 98, shape, generator=torch.Generator().manual_seed(7))
    runner = session(exported.folder, getattr(ort.GraphOptimizationLevel, level))
    found = torch.from_numpy(runner.run(None, {"input_ids": tokens.numpy()})[0])
    expected, plain = walked(exported.quantized, tokens), walked(exported.float_model, tokens)
    # One code that falls on the other side of a tie moves a logit by far more than rounding does.
    assert (found - expected).abs().mean() < 0.02 * (plain - expected).abs().mean()


def test_int8_kernels_do_the_products(exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "optimized.onnx"
    session(exported.folder, ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, path)
    kinds = Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
    assert kinds["MatMulIntegerToFloat"] == 6  # every projection but the one in float
    assert kinds["DequantizeLinear"] == 0


def test_the_graph_holds_the_codes(exported: Exported) -> None:
    graph = onnx.load(exported.folder / "model.onnx").graph
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["DequantizeLinear"] >= 6
    assert kinds["QuantizeLinear"] >= 3
    stored = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    codes = [array for array in stored if array.dtype == np.int8 and array.ndim == 2]
    assert len(codes) == 6
    linear: Any = exported.quantized.module().get_submodule("model.layers.0.mlp.up_proj")
    expected = (linear.value / linear.quantized.scales.scale).round().t().numpy()
    assert any(array.shape == expected.shape and (array == expected).all() for array in codes)
    weight: Any = exported.float_model.module().get_submodule("model.layers.0.mlp.down_proj").weight
    assert any(array.dtype == np.float32 and np.array_equal(array, weight.t().numpy()) for array in stored) or any(
        array.dtype == np.float32 and np.array_equal(array, weight.numpy()) for array in stored
    )
    assert (exported.folder / "tokenizer.json").is_file()
    assert exported.notes

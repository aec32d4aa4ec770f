"""The ONNX graph in ONNX Runtime and OpenVINO: logits of the simulation, INT8 kernels, protected sites in float."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qarat.model.model import Model

onnx = pytest.importorskip("onnx", reason="needs onnx: make test-engines")

LOW = "w=int8/channel a=int8/tensor/static"
RULES = (("0.down", "float"), ("0.o", "w=int8/tensor a=int8/tensor/static/asymmetric"), ("0.q", LOW))
SHAPES = [(1, 1), (2, 8), (3, 24)]  # batch and length are free


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, export_graph: Callable[..., Any]) -> Any:
    return export_graph(tmp_path_factory.mktemp("onnx"), "onnx", LOW, *RULES, attention_bias=True)


def check_logits(
    exported: Any, found: Callable[[Any], Any], shape: tuple[int, int], walked: Callable[[Model, Tensor], Tensor]
) -> None:
    tokens = torch.randint(2, 98, shape, generator=torch.Generator().manual_seed(7))
    logits = torch.from_numpy(found({"input_ids": tokens.numpy()})["logits"])
    expected, plain = walked(exported.quantized, tokens), walked(exported.float_model, tokens)
    # One code that falls on the other side of a tie moves a logit by far more than rounding does.
    assert (logits - expected).abs().mean() < 0.02 * (plain - expected).abs().mean()


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_the_simulation(
    exported: Any, shape: tuple[int, int], start: Callable[..., Any], walked: Any, has_vnni: bool
) -> None:
    if not has_vnni:
        pytest.skip("INT8 sums saturate on a CPU without VNNI, as test_sums_of_int8_saturate_without_vnni shows")
    check_logits(exported, start(exported.folder / "model.onnx"), shape, walked)


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_without_int8_kernels_are_the_simulation(
    exported: Any, shape: tuple[int, int], start_onnxruntime: Callable[..., Any], walked: Any
) -> None:
    check_logits(exported, start_onnxruntime(exported.folder / "model.onnx", "ORT_DISABLE_ALL"), shape, walked)


def one_product(home: Path, weight: int) -> tuple[Path, Any, Any]:
    """A graph of one product, as exported, of inputs and weights all at one end: its file, the input and the output.

    Args:
        home: Where to.
        weight: Code of all weights.
    """
    helper, wide = onnx.helper, 64
    arrays = {
        "scale": np.array(0.5, np.float32),
        "zero": np.array(128, np.uint8),
        "codes": np.full((wide, wide), weight, np.int8),
        "scales": np.full(wide, 0.25, np.float32),
        "zeros": np.zeros(wide, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["w"], axis=1),
        helper.make_node("MatMul", ["d", "w"], ["y"], name="product"),
    ]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", wide]) for name in "xy")
    stored = [onnx.numpy_helper.from_array(value, name) for name, value in arrays.items()]
    graph = helper.make_graph(nodes, "one", [x], [y], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), home / "one.onnx")
    given = np.full((4, wide), 127 * 0.5, np.float32)  # code 127, stored as 255
    return home / "one.onnx", given, given[:, :1] * weight * 0.25 * np.full((4, wide), wide, np.float32)


@pytest.mark.parametrize(("weight", "exact"), [(63, True), (127, False)])  # INT7's largest code, and INT8's
def test_sums_of_int8_saturate_without_vnni(
    weight: int, exact: bool, tmp_path: Path, start: Callable[..., Any], has_vnni: bool
) -> None:
    path, given, expected = one_product(tmp_path, weight)
    assert np.array_equal(start(path)({"x": given})["y"], expected) == (exact or has_vnni)


def test_onnx_runtime_takes_int8_kernels(exported: Any, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime: make test-engines")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(exported.folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = Counter(
        node.op_type for node in onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    )
    assert kinds["MatMulIntegerToFloat"] == 6  # every projection but the one in float
    assert kinds["DequantizeLinear"] == 0


def test_openvino_takes_int8_kernels(exported: Any, compile_openvino: Callable[..., Any]) -> None:
    ran: dict[str, dict[str, str]] = {}
    for node in compile_openvino(exported.folder / "model.onnx").get_runtime_model().get_ops():
        told = {key: value.astype(str) for key, value in node.get_rt_info().items()}
        if told["layerType"] == "FullyConnected":
            ran[node.get_friendly_name()] = told
    kernels = {name: (told["runtimePrecision"], "I8" in told["primitiveType"]) for name, told in ran.items()}
    expected = dict.fromkeys(projections(exported), ("u8", True))
    # The head goes by the name of its output.
    assert kernels == expected | dict.fromkeys(["model.layers.0.mlp.down_proj", "logits"], ("f32", False))


def projections(exported: Any) -> set[str]:
    return {site.name for site in exported.quantized.sites() if site.kind == "projection"}


def test_the_graph_holds_the_codes(exported: Any) -> None:
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


def test_every_product_has_its_projections_name_and_no_path_is_told(exported: Any) -> None:
    nodes = onnx.load(exported.folder / "model.onnx", load_external_data=False).graph.node
    assert {node.name for node in nodes if node.op_type in ("MatMul", "Gemm")} >= {*projections(exported), "lm_head"}
    assert not any(node.metadata_props for node in nodes)

"""Engine rules: every row has a source, and schemes find the kernels that vLLM would."""

import math
from pathlib import Path

import msgspec
import pytest

from qarat.ground.errors import UserError
from qarat.values import engines
from qarat.values.engines import (
    CPU,
    DEFAULT_ENGINES,
    ENGINES,
    FILE_ENGINES,
    GENERATIONS,
    KERNELS,
    engine_named,
    generation_named,
    kernel_for,
    kernel_kind,
)
from qarat.values.parsing import parse_scheme
from qarat.values.schemes import LinearScheme

KINDS = {
    ("w=int8/channel a=int8/tensor/static", "int-quantized"): "int8",
    ("w=int8/tensor a=int8/token", "int-quantized"): "int8",
    ("w=int8/channel a=int8/tensor/static", "pack-quantized"): "",
    ("w=int8/channel a=int8/tensor/dynamic", "int-quantized"): "",
    ("w=int8/channel/asymmetric a=int8/token", "int-quantized"): "",
    ("w=int8/g32 a=int8/token", "int-quantized"): "",
    ("w=int8/channel a=e4m3/token", "int-quantized"): "",
    ("w=int8/channel", "pack-quantized"): "packed int",
    ("w=int4/g128", "pack-quantized"): "packed int",
    ("w=int4/g128/asymmetric", "pack-quantized"): "packed int with zero points",
    ("w=int4/tensor", "pack-quantized"): "",
    ("w=int8/channel", "int-quantized"): "",
    ("w=int4/g128 a=int8/token", "pack-quantized"): "int4 weights, int8 inputs",
    ("w=int4/g128 a=e4m3/token", "pack-quantized"): "int4 weights, fp8 inputs",
    ("w=e4m3/tensor a=e4m3/tensor/static", "float-quantized"): "fp8 with static inputs",
    ("w=e4m3/channel a=e4m3/token", "float-quantized"): "fp8",
    ("w=e4m3/128x128 a=e4m3/g128", "float-quantized"): "fp8",
    ("w=e4m3/channel", "naive-quantized"): "fp8 weights",
    ("w=e4m3/channel a=int8/token", "float-quantized"): "fp8 weights",
    ("w=e4m3/g32", "float-quantized"): "",
    ("w=mxfp8 a=mxfp8/mx-even", "mxfp8-quantized"): "mxfp8",
    ("w=mxfp4 a=mxfp4/mx-even", "mxfp4-pack-quantized"): "mxfp4",
    ("w=mxfp4", "mxfp4-pack-quantized"): "mxfp4 weights",
    ("w=nvfp4 a=nvfp4", "nvfp4-pack-quantized"): "nvfp4",
    ("w=nvfp4", "nvfp4-pack-quantized"): "nvfp4 weights",
    ("w=nvfp4 a=int8/token", "nvfp4-pack-quantized"): "",
    ("w=e2m1/channel", "nvfp4-pack-quantized"): "",
    ("a=int8/token", "int-quantized"): "",
    ("float", "dense"): "",
}


@pytest.mark.parametrize(("scheme", "format"), KINDS)
def test_kernel_kind(scheme: str, format: str) -> None:
    parsed = parse_scheme(scheme)
    assert isinstance(parsed, LinearScheme)
    assert kernel_kind(parsed, format) == KINDS[scheme, format]


def test_every_kind_has_a_row_and_every_row_a_source() -> None:
    kinds = {kind for kind in KINDS.values() if kind}
    assert kinds == {k.kind for k in KERNELS if k.engine == "vllm"}
    assert all(k.source for k in KERNELS)
    assert all(engine.sources for engine in ENGINES.values())
    assert len({(k.engine, k.kind) for k in KERNELS}) == len(KERNELS)


def test_where_kernels_run() -> None:
    int8 = kernel_for(ENGINES["vllm"], "int8")
    fp8 = kernel_for(ENGINES["vllm-0.26"], "fp8")
    assert int8 is not None
    assert fp8 is not None
    assert {g: int8.on(g) for g in [*GENERATIONS, CPU]} == {
        **dict.fromkeys(("turing", "ampere", "ada", "hopper", CPU), "int8"),
        **dict.fromkeys(("blackwell", "blackwell-rtx"), ""),
    }
    assert {g for g in GENERATIONS if fp8.on(g) == "fp8"} == {"ada", "hopper", "blackwell", "blackwell-rtx"}
    assert fp8.on("ampere") == "weights alone in low precision"
    assert fp8.on(CPU) == "fp8"
    static = kernel_for(ENGINES["vllm"], "fp8 with static inputs")
    assert static is not None
    assert static.on(CPU) == ""
    arm = kernel_for(ENGINES["vllm"], "int4 weights, int8 inputs")
    assert arm is not None
    assert arm.least == math.inf
    assert not any(arm.on(g) for g in [*GENERATIONS, CPU])
    assert kernel_for(ENGINES["sglang"], "mxfp4") is None


def test_engines_with_a_file_of_their_own() -> None:
    assert FILE_ENGINES.keys() == {"onnxruntime", "openvino", "llama.cpp"}
    assert all(
        engine.sources and (engine.notes or engine.on_cpu) and engine.versions for engine in FILE_ENGINES.values()
    )
    page = (Path(__file__).parents[2] / "docs" / "engines.md").read_text()
    assert "FILE_ENGINES" in page
    assert "without VNNI" in page


def test_each_engine_has_a_current_row() -> None:
    families = {name.partition("-")[0] for name in DEFAULT_ENGINES}
    assert families == {name for name, engine in ENGINES.items() if engine.current}
    assert all(set(engine.steps) <= {"name", "fused", "class"} for engine in ENGINES.values())


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="did you mean vllm"):
        engine_named("vlm")
    with pytest.raises(UserError, match="unknown GPU generation"):
        generation_named("pascal")


def test_the_page_lists_every_engine_and_kind() -> None:
    page = (Path(__file__).parents[2] / "docs" / "verifying.md").read_text()
    for name, engine in ENGINES.items():
        assert f"| `{name}` | {engine.versions} |" in page
    rows = [line for line in page.splitlines() if line.startswith(("| vllm |", "| sglang |"))]
    for kernel in KERNELS:
        mine = [row for row in rows if row.startswith(f"| {kernel.engine} |") and kernel.kind in row.split("|")[2]]
        assert mine, kernel
        assert math.isinf(kernel.least) or any(f"| {kernel.least:g} " in row for row in mine), kernel


def test_the_file_of_rows_is_read_strictly() -> None:
    text = (Path(engines.__file__).parents[1] / "bundled" / "engines.toml").read_text()
    with pytest.raises(msgspec.ValidationError, match="capabilty"):
        engines.read_rows(text.replace("class_name =", "capabilty =", 1))
    with pytest.raises(msgspec.ValidationError, match="steps"):
        engines.read_rows(text.replace('steps = ["name", "class"]', 'steps = ["nam"]', 1))

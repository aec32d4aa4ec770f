"""`qarat verify --live` of exports that are one file: what an engine answers, beside the plan and the run."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qarat.ground.disk import new_folder
from qarat.ground.runtime import Runtime
from qarat.jobs.live import Live
from qarat.jobs.verify import AgainstRun, verify
from qarat.model.folders import MARK
from qarat.model.native import read_native, write_native
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.quantize import quantize
from qarat.testing import tiny_checkpoint
from qarat.values.engines import FILE_ENGINES
from qarat.values.plan_files import encode_plan
from qarat.values.plans import Plan, assign
from qarat.values.records.files import decode_record

Qarat = Callable[..., Any]
Engine = Callable[..., Path]
DOWN, OUT = "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"
RULES = (("0.down", "float"), ("1.o", "w=int8/channel"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized model, and what stands for its exports: the plan, and a file that no engine will read."""
    home = tmp_path_factory.mktemp("files")
    model = open_model(str(tiny_checkpoint(home / "tiny", hidden=64, intermediate=96)))
    plan = assign(model.fingerprint, model.source_bits, model.sites(), "w=int8/channel a=int8/token", RULES)
    write_native(quantize(model, plan), plan, home / "run")
    for format in ("onnx", "gguf"):
        with new_folder(home / format, MARK) as partial:
            (partial / MARK).write_text(encode_plan(plan))
            (partial / f"model.{format}").touch()
    return home


def answering(home: Path, schemes: dict[str, str], low: str, **fields: object) -> str:
    """The body of an engine that ran every projection in a scheme, some in others, at a loss of 1 nat a token."""
    names = list(decode_record(home / "onnx" / MARK, Plan).projections)
    ran = [{"name": name, "scheme": schemes.get(name, low), "kernel": "K"} for name in names]
    answer = {"version": FILE_ENGINES["openvino"].ran[0], "modules": ran, **fields}
    return (
        f"said = json.loads({json.dumps(json.dumps(answer))})\n"
        f"assert asked['projections'] == {names}\n"
        "said.setdefault('losses', [[1.0] * (len(ids) - 1) for ids in asked['windows']])\n"
        "json.dump(said, open(answer, 'w'))"
    )


@pytest.fixture
def verified(qarat: Qarat, home: Path, engine: Engine, small: list[str], tmp_path: Path) -> Callable[..., Any]:
    """Verifies with a stand-in; the answer and the record."""

    def verify(name: str, body: str, *words: Any) -> Any:
        format, out = FILE_ENGINES[name].format, tmp_path / "v.json"
        python = ("--engine-python", engine(body))
        answer = qarat("verify", home / format, "--live", name, *python, "-o", out, "--overwrite", *words, *small)
        return answer, json.loads(out.read_text())["record"]

    return verify


EXACT = {DOWN: "float", OUT: "int8 weights"}


def test_what_ran_stands_beside_the_plan(verified: Callable[..., Any], home: Path) -> None:
    answer, record = verified("openvino", answering(home, EXACT, "int8"), "--against", home / "run")
    assert answer.code == 0, answer.out + answer.err
    [run] = record["live"]
    assert {(m["scheme"], m["resolved"]) for m in run["modules"]} == {
        ("int8", "w=int8/channel a=int8/token"),
        ("int8 weights", "w=int8/channel"),
        ("float", "float"),
    }
    assert run["losses"][0]["nats"] == pytest.approx(1)
    assert any("OpenVINO's sums saturate" in finding["what"] for finding in record["findings"])


def test_the_engine_and_the_run_are_measured_on_the_same_windows(home: Path, engine: Engine, tmp_path: Path) -> None:
    seen = tmp_path / "windows.json"
    body = f"json.dump(asked['windows'], open({str(seen)!r}, 'w'))\n{answering(home, EXACT, 'int8')}"
    ids = torch.randint(2, 98, (9, 12), generator=torch.Generator().manual_seed(0))
    report = TokenSet("report", "windows-12-nobos", ids, tuple("abcdefghi"), ("0" * 64,), ("text",))
    model, plan = read_native(home / "run")
    live = Live("openvino", lambda _: report, Runtime(), engine(body))
    record = verify(home / "onnx", live=live, against=AgainstRun(model, plan, report))
    [loss] = record.live[0].losses
    judged = report.subset(4)
    assert json.loads(seen.read_text()) == judged.windows.tolist()
    assert loss.tokens == judged.fingerprint


def test_without_its_run_no_losses_are_compared(verified: Callable[..., Any], home: Path) -> None:
    answer, record = verified("onnxruntime", answering(home, EXACT, "int8", version="1.31.1"))
    assert answer.code == 0
    assert record["live"][0]["losses"] == []
    assert record["format"] == "onnx"


def test_what_ran_otherwise_or_not_at_all_fails(verified: Callable[..., Any], home: Path) -> None:
    answer, record = verified("openvino", answering(home, EXACT | {DOWN: "int8"}, "int8"))
    assert answer.code == 1
    assert record["findings"][0]["what"].endswith("ran int8, where the resolution says float")
    assert record["findings"][0]["modules"] == [DOWN]
    answer, record = verified("openvino", answering(home, EXACT, "int8", modules=[]))
    assert answer.code == 1
    assert len(record["findings"][0]["modules"]) == 14


def test_llama_cpp_is_held_to_the_nearest_types(verified: Callable[..., Any], home: Path) -> None:
    version = FILE_ENGINES["llama.cpp"].ran[0]
    for low, code in (("Q8_0", 0), ("Q4_0", 1)):
        answer, _ = verified("llama.cpp", answering(home, {DOWN: "float"}, low, version=version))
        assert answer.code == code


def test_what_does_not_go_together(qarat: Qarat, home: Path) -> None:
    for words, text in (
        ((home / "gguf", "--live", "openvino"), "holds no model.onnx, which openvino takes"),
        ((home / "onnx", "--live", "openvino", "--against", home / "tiny"), "the run that it was exported from"),
        ((home / "onnx", "--live", "openvino", "--engine", "vllm"), "the run that it was exported from"),
        ((home / "run", "--live", "opnvino"), "did you mean openvino"),
    ):
        answer = qarat("verify", *words, "--engine-python", sys.executable)
        assert answer.code == 1, words
        assert text in answer.err


def test_another_run_is_refused(qarat: Qarat, home: Path, small: list[str], tmp_path: Path) -> None:
    model = open_model(str(home / "tiny"))
    plan = assign(model.fingerprint, model.source_bits, model.sites(), "w=int8/channel")
    write_native(quantize(model, plan), plan, tmp_path / "other")
    answer = qarat("verify", home / "onnx", "--live", "openvino", "--against", tmp_path / "other", *small)
    assert answer.code == 1
    assert "their plans differ" in answer.err

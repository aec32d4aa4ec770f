"""`qarat verify --live`: what an engine's process answers, or fails to, set beside the resolution."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qarat.bundled import run_engine
from qarat.jobs.engine_process import RUN
from qarat.jobs.live import Live, compare_losses
from qarat.jobs.verify import verify
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.stages.export.base import export_model
from qarat.stages.quantize import quantize
from qarat.stages.read_back.folders import Findings
from qarat.testing import tiny_checkpoint
from qarat.values.engines import ENGINES
from qarat.values.plans import assign
from qarat.values.records.origin import Provenance
from qarat.values.records.scores import Evaluation

Qarat = Callable[..., Any]
Engine = Callable[..., Path]
DOWN = "model.layers.0.mlp.down_proj"
VERSION = ENGINES["vllm"].ran[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export in INT8 with dynamic inputs, one site in float."""
    from qarat.model.opening import open_model

    home = tmp_path_factory.mktemp("live")
    model: Model = open_model(str(tiny_checkpoint(home / "tiny")))
    plan = assign(
        model.fingerprint, model.source_bits, model.sites(), "w=int8/channel a=int8/token", [("0.down", "float")]
    )
    export_model(quantize(model, plan, None), plan, home / "out", "compressed-tensors")
    return home / "out"


def answering(modules: dict[str, str], **fields: object) -> str:
    """The body of one that answers with those modules, and a loss of 1 nat for every token."""
    listed = [{"name": name, "scheme": scheme, "kernel": "CPUKernel"} for name, scheme in modules.items()]
    answer = {"version": VERSION, "modules": listed, **fields}
    return (
        f"said = json.loads({json.dumps(json.dumps(answer))})\n"
        "said.setdefault('losses', [[1.0] * (len(ids) - 1) for ids in asked['windows']])\n"
        "json.dump(said, open(answer, 'w'))"
    )


INT8, FP8 = "CompressedTensorsW8A8Int8", "CompressedTensorsW8A8Fp8"
MODULES = (
    {"model.embed_tokens": "float", "lm_head": "float"}
    | {
        f"model.layers.{block}.{part}": INT8
        for block in range(2)
        for part in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    }
    | {DOWN: "float"}
)


def asked(qarat: Qarat, folder: Path, python: Path, small: list[str], *words: object) -> tuple[Any, Any]:
    answer = qarat(
        "verify", folder, "--live", "vllm", "--engine-python", python, "--engine", "vllm", "--json", *words, *small
    )
    return answer, json.loads(answer.out)["record"] if answer.out else None


def test_what_ran_stands_beside_the_resolution(
    qarat: Qarat, folder: Path, engine: Engine, small: list[str], tmp_path: Path
) -> None:
    python, out = engine(answering(MODULES)), tmp_path / "v.json"
    answer = qarat("verify", folder, "--live", "vllm", "--engine-python", python, "-o", out, *small)
    assert answer.code == 0, answer.out + answer.err
    assert f"run in vllm {VERSION}" in answer.out
    assert INT8 in answer.out
    shown = qarat("show", out).out
    assert "mean loss 1.000000, simulated here" in shown
    run = json.loads(out.read_text())["record"]["live"][0]
    assert {m["name"]: m["resolved"] for m in run["modules"]} == {
        name: "float" if scheme == "float" else "int8" for name, scheme in MODULES.items()
    }
    assert run["losses"][0]["windows"] == 4


def test_another_scheme_than_resolved_fails(qarat: Qarat, folder: Path, engine: Engine, small: list[str]) -> None:
    ran = MODULES | {DOWN: INT8, "model.layers.1.mlp.down_proj": FP8, "surplus": "float"}
    answer, record = asked(qarat, folder, engine(answering(ran)), small)
    assert answer.code == 1
    errors = {(f["modules"][0], f["what"]) for f in record["findings"] if f["severity"] == "error"}
    assert errors == {
        (DOWN, f"vllm {VERSION} ran {INT8}, where the resolution says float"),
        (
            "model.layers.1.mlp.down_proj",
            f"vllm {VERSION} ran CompressedTensorsW8A8Fp8, where the resolution says int8",
        ),
        ("surplus", f"vllm {VERSION} ran float, where the resolution says no such module"),
    }


def test_a_module_that_did_not_run_fails(qarat: Qarat, folder: Path, engine: Engine, small: list[str]) -> None:
    ran = {name: scheme for name, scheme in MODULES.items() if name != DOWN}
    answer, record = asked(qarat, folder, engine(answering(ran)), small)
    assert answer.code == 1
    [error] = [f for f in record["findings"] if f["severity"] == "error"]
    assert error["what"] == f"vllm {VERSION} did not run it, or under another name"
    assert error["modules"] == [DOWN]


def test_a_version_that_the_table_does_not_know_runs_anyway(
    qarat: Qarat, folder: Path, engine: Engine, small: list[str]
) -> None:
    answer, record = asked(qarat, folder, engine(answering(MODULES, version="9.9")), small)
    assert answer.code == 0
    assert record["live"][0]["version"] == "9.9"
    assert any("vllm 9.9 is no version that its row was run with (0.32.0" in f["what"] for f in record["findings"])


def test_a_refusal_stands_beside_our_findings(qarat: Qarat, folder: Path, engine: Engine, small: list[str]) -> None:
    body = answering({}, refusal="ValueError: heads of 8 are not supported")
    answer, record = asked(qarat, folder, engine(body), small)
    assert answer.code == 1
    assert record["live"] == []
    assert record["findings"][0]["severity"] == "error"
    assert "did not run the folder: ValueError: heads of 8 are not supported" in record["findings"][0]["what"]


def test_an_engine_without_memory_says_nothing_of_the_folder(
    qarat: Qarat, folder: Path, engine: Engine, small: list[str]
) -> None:
    answer, _ = asked(qarat, folder, engine(answering({}, refusal="RuntimeError: can't allocate memory")), small)
    assert answer.code == 3


def test_an_absent_engine_says_what_to_install(qarat: Qarat, folder: Path, small: list[str]) -> None:
    answer = qarat("verify", folder, "--live", "vllm", *small)
    if answer.code == 3:  # where the tests' own environment has no vLLM
        assert "vllm is not installed for" in answer.out
        assert "pip install vllm" in answer.out


def test_a_hang_is_ended_and_its_last_lines_are_shown(
    qarat: Qarat, folder: Path, engine: Engine, small: list[str], tmp_path: Path
) -> None:
    # A child of the engine's holds the log open: it has to go as well.
    body = f"""
import os, subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
open({str(tmp_path / "child")!r}, "w").write(str(child.pid))
print("line one", *range(20), "still loading", sep="\\n", flush=True)
time.sleep(300)
"""
    started = time.monotonic()
    answer, record = asked(qarat, folder, engine(body), small, "--seconds", "3")
    assert time.monotonic() - started < 60
    assert answer.code == 3
    what = record["findings"][0]["what"]
    assert "vllm was ended after 3 s and left no answer; its last lines:" in what
    assert "still loading" in what
    assert "line one" not in what
    time.sleep(0.2)
    status = Path(f"/proc/{(tmp_path / 'child').read_text()}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_an_engine_goes_with_who_started_it(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(
        f"import os, time\nopen({str(tmp_path / 'child')!r}, 'w').write(f'{{os.getpid()}} ')\ntime.sleep(300)\n"
    )
    (tmp_path / "request.json").write_text('{"memory": 0}')
    command = [sys.executable, run_engine.__file__, "sleeper", str(tmp_path / "request.json"), str(tmp_path / "answer")]
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", f"import subprocess; subprocess.run({command!r})"], env=env)

    def wait_for(happened: Callable[[], bool]) -> None:
        until = time.monotonic() + 60
        while not happened():
            assert time.monotonic() < until
            time.sleep(0.05)

    child = tmp_path / "child"
    wait_for(lambda: child.exists() and child.read_text().endswith(" "))
    status = Path(f"/proc/{child.read_text().strip()}/status")
    assert status.exists()
    parent.kill()
    parent.wait()
    wait_for(lambda: not status.exists() or "State:\tZ" in status.read_text())


def test_a_death_shows_the_last_lines(qarat: Qarat, folder: Path, engine: Engine, small: list[str]) -> None:
    body = "import os\nprint('Segmentation', 'fault', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 11)"
    answer, record = asked(qarat, folder, engine(body), small)
    assert answer.code == 3
    assert (
        "vllm ended with -11 and left no answer; its last lines:\nSegmentation fault" in record["findings"][0]["what"]
    )


def test_a_kind_that_the_row_has_no_name_for_is_not_judged(
    qarat: Qarat, engine: Engine, small: list[str], tmp_path: Path
) -> None:
    from qarat.model.opening import open_model

    model = open_model(str(tiny_checkpoint(tmp_path / "tiny")))
    plan = assign(model.fingerprint, model.source_bits, model.sites(), "w=e4m3/channel")
    export_model(quantize(model, plan, None), plan, tmp_path / "out", "compressed-tensors")
    ran = {name: "float" if ".layers." not in name else "CompressedTensorsW8A16Fp8" for name in MODULES}
    answer, record = asked(qarat, tmp_path / "out", engine(answering(ran)), small)
    assert answer.code == 3
    assert record["live"][0]["modules"]
    found = [f for f in record["findings"] if f["severity"] == "not judged"]
    assert [f["what"] for f in found] == [
        f"vllm {VERSION} ran CompressedTensorsW8A16Fp8; its row does not know what it calls fp8 weights"
    ]
    assert set(found[0]["modules"]) == {name for name in ran if ".layers." in name}


def test_what_cannot_be_started(qarat: Qarat, folder: Path, tmp_path: Path) -> None:
    for words, text in (
        (("--live", "vlm"), "did you mean vllm"),
        (("--live", "vllm", "--engine-python", tmp_path / "none"), "is no program"),
        (("--live", "vllm", "--engine-python", tmp_path), "is no program"),
    ):
        answer = qarat("verify", folder, *words)
        assert answer.code == 1, words
        assert text in answer.err
    answer = qarat("verify", folder, "--engine-python", sys.executable)
    assert answer.code == 2
    assert "has no engine to run" in answer.err


def test_every_engine_that_can_be_run_has_a_row() -> None:
    assert all(ENGINES[name].ran for name in RUN)


@pytest.mark.slow
def test_transformers_runs_what_is_resolved(folder: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qarat.ground.runtime import Runtime
    from qarat.model.token_sets import load_report_set

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    live = Live(
        "transformers", lambda m: load_report_set(m, report=str(tiny_text), length=32, report_samples=6), Runtime()
    )
    record = verify(folder, ["transformers"], live=live)
    [run] = record.live
    assert all(module.agrees and module.expected for module in run.modules)
    assert {m.scheme for m in run.modules} == {"float", "w=int8/channel a=int8/token"}
    [loss] = run.losses
    # compressed-tensors divides by 127.5 where kernels divide by 127 (docs/verifying.md).
    assert abs(loss.nats - loss.ours) < 0.05


@pytest.mark.parametrize(
    ("sources", "engine", "said"),
    [
        (("a", "b", "c"), (2.0, 2.1, 1.9), []),
        (("a", "b", "c"), (3.0, 3.1, 2.9), ["warning"]),
        (("a", "a", "a"), (2.0, 2.1, 1.9), ["note"]),
    ],
)
def test_a_loss_far_from_ours_or_of_unknown_error_is_said(
    sources: tuple[str, ...], engine: tuple[float, ...], said: list[str]
) -> None:
    tokens = TokenSet("report", "windows-3", torch.zeros(3, 3, dtype=torch.long), sources, ("0" * 64,), ("text",))
    origin = Provenance("m" * 64, tokens.fingerprint, tokens.convention, {})
    ours = Evaluation("folder", origin, "", (4.0, 4.0, 4.0), (2, 2, 2), sources)
    findings = Findings()
    loss = compare_losses("vllm", ours, tokens, [(nats, nats) for nats in engine], findings)
    assert loss.nats == pytest.approx(sum(engine) / 3)
    assert [finding.severity for finding in findings.listed()] == said

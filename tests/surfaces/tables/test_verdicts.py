"""A verification on the terminal: everything it holds is said, and nothing is read as markup."""

import msgspec
from rich.console import Console

from qarat.surfaces.terminal import render
from qarat.values.records.origin import Difference, Provenance
from qarat.values.records.verification import (
    Finding,
    LiveLoss,
    LiveModule,
    LiveRun,
    LogitsComparison,
    ModuleReport,
    Running,
    Verification,
    WeightComparison,
)


def shown(record: Verification) -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(record))
    return console.export_text()


def verification(*findings: Finding) -> Verification:
    runs = (Running("vllm", "w=int8/channel", "target"), Running("sglang", "float", "no target"))
    names = [f"model.layers.{i}.mlp.down_proj" for i in range(8)]
    modules = (*(ModuleReport(n, {"weight": "I8 [4, 8]"}, runs) for n in names), ModuleReport("lm_head", {}, runs[:1]))
    return Verification(
        Provenance("f" * 64, "", "", {}),
        "folder[bold]",
        "mixed-precision",
        {"vllm": "0.27 and later", "sglang": "some"},
        "hopper",
        "run",
        modules,
        findings,
        (WeightComparison(9, 8, 0.5),),
        (LogitsComparison("ours", 2e-6, 1e-5, 4), LogitsComparison("theirs", 0.25, 0.0, 4)),
        (Difference(0.0123, 0.001, 3),),
    )


def test_everything_is_said() -> None:
    finding = Finding("error", "input_scale [red]is missing", "write it", ("model.layers.1.mlp.down_proj",), ("vllm",))
    text = shown(verification(finding, Finding("note", "something", "nothing")))
    for said in (
        "folder[bold]",
        "for hopper",
        "vllm: 0.27 and later",
        "0.down, 1.down, 2.down, 3.down, 4.down,",
        "and 2 more",
        "vllm: w=int8/channel",
        "sglang: float",
        "8 of 9 projections equal to the run's",
        "largest relative difference 0.5",
        "2e-06",
        "reported",
        "damage +0.0123 nats per token over the float model (95 %: +0.0103 to +0.0143)",
        "input_scale [red]is missing",
        "1.down  in vllm",
        "→ write it",
        "folder[bold] fails: 1 error, 0 warnings",
    ):
        assert said in text, said


def test_a_folder_without_faults_passes() -> None:
    assert "passes: 0 errors, 1 warning" in shown(verification(Finding("warning", "x", "y")))


def test_what_really_ran_is_said() -> None:
    modules = [
        LiveModule(f"model.layers.{i}.mlp.down_proj", "W8A8[x]", "CPUKernel", "int8", "W8A8[x]") for i in range(3)
    ]
    odd = LiveModule("lm_head", "float", "Plain", "fp8", "W8A8Fp8")
    loss = LiveLoss(3.25, 3.125, 0.0625, 4, 2044, "f" * 64, "windows-512-bos")
    record = msgspec.structs.replace(verification(), live=(LiveRun("vllm", "0.32.0", (*modules, odd), (loss,)),))
    text = shown(record)
    for said in (
        "run in vllm 0.32.0",
        "0.down, 1.down, 2.down",
        "W8A8[x]",
        "CPUKernel",
        "mean loss 3.250000, simulated here 3.125000: +0.125000 ± 0.062500 nats per token on 4 windows, 2,044",
    ):
        assert said in text, said
    assert [m.agrees for m in (*modules, odd)] == [True, True, True, False]

"""`qarat verify`, from folder to exit code, and against the float model."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qarat.jobs.verify import AgainstFloat, verify
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.testing import plant_spike, tiny_checkpoint
from qarat.values.records.files import content_hash, decode_record, encode_record
from qarat.values.records.scores import paired_difference
from qarat.values.records.verification import Verification

Qarat = Callable[..., Any]
DOWN = "model.layers.0.mlp.down_proj"
FACTOR = 2.0**12


@pytest.fixture(scope="module")
def spiky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a spike at the input of one down_proj."""
    return plant_spike(tiny_checkpoint(tmp_path_factory.mktemp("spiky") / "float", blocks=4), 0, 3, FACTOR)


@pytest.fixture(scope="module")
def exported(spiky: Path, tiny_text: Path) -> tuple[Path, Path]:
    """A run on it with everything in INT8 per tensor static, and its export."""
    from qarat.surfaces.cli import main

    home = spiky.parent
    sizes = ["--samples", "4", "--report-samples", "6", "--length", "32", "--threads", "1"]
    text = ["--calibration", str(tiny_text)]
    names = {"stats": home / "stats.safetensors", "menu": home / "menu.json", "plan": home / "plan.json"}
    at = [str(word) for name in ("stats", "menu") for word in (f"--{name}", names[name])]
    assert main(["profile", str(spiky), *text, *sizes, "-o", str(names["stats"])]) == 0
    assert main(["damage", str(spiky), *text, *sizes, *at[:2], "-o", str(names["menu"])]) == 0
    assert main(["plan", str(spiky), *text, *sizes, *at, "--budget", "nats+99", "-o", str(names["plan"])]) == 0
    native, folder = home / "native", home / "exported"
    quantize = ["quantize", str(spiky), "--plan", str(names["plan"]), *at[:2], "-o", str(native)]
    assert main(quantize) == 0
    assert main(["export", str(native), "-o", str(folder), "--format", "compressed-tensors"]) == 0
    return native, folder


def test_pass_and_fail(qarat: Qarat, exported: tuple[Path, Path], tmp_path: Path) -> None:
    _, folder = exported
    answer = qarat("verify", folder, "--engine", "transformers", "vllm")
    assert answer.code == 0, answer.err
    assert "exported passes: 0 errors" in answer.out
    assert "w=int8/channel" in answer.out
    broken = shutil.copytree(folder, tmp_path / "broken")
    state = load_file(broken / "model.safetensors")
    del state[f"{DOWN}.input_scale"]
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    answer = qarat("verify", broken, "--engine", "transformers", "vllm", "-o", tmp_path / "found.json")
    assert answer.code == 1
    assert "input_scale is missing" in answer.out
    assert "broken fails: 1 error" in answer.out
    assert "does not pass" in answer.err
    assert not decode_record(tmp_path / "found.json", Verification).passed
    assert "input_scale is missing" in qarat("show", tmp_path / "found.json").out


def test_json_is_the_record_also_when_it_fails(qarat: Qarat, exported: tuple[Path, Path], tmp_path: Path) -> None:
    _, folder = exported
    out = tmp_path / "v.json"
    good = qarat("verify", folder, "--json", "--engine", "vllm", "-o", out)
    assert good.code == 0
    assert json.loads(good.out) == json.loads(out.read_text())
    failed = qarat("verify", folder, "--json", "--engine", "vllm", "--gpu", "blackwell")
    assert failed.code == 1
    severities = [f["severity"] for f in json.loads(failed.out)["record"]["findings"]]
    assert severities[0] == "error"


def test_against_the_run(qarat: Qarat, exported: tuple[Path, Path], small: list[str]) -> None:
    native, folder = exported
    answer = qarat("verify", folder, "--against", native, *small)
    assert answer.code == 0, answer.out
    assert "28 of 28 projections equal to the run's, weights and scales" in answer.out
    assert "simulation of the folder, and of the run, float32" in answer.out
    assert "transformers in bfloat16" in answer.out


def test_against_the_float_model_spike_and_damage_are_measured(
    qarat: Qarat, exported: tuple[Path, Path], spiky: Path, small: list[str]
) -> None:
    _, folder = exported
    answer = qarat("verify", folder, "--against", spiky, "--json", *small)
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)["record"]
    said = [f for f in record["findings"] if "spike" in f["what"]]
    assert {tuple(f["modules"]) for f in said} == {(DOWN,)}
    assert any("a spike probably sits here" in f["what"] for f in said)  # from the scales alone
    assert any("a spike starves this static input" in f["what"] for f in said)  # measured
    assert record["against"] == "float"


def test_damage_is_the_paired_loss(exported: tuple[Path, Path], spiky: Path, tiny_text: Path) -> None:
    from qarat.model.native import read_native
    from qarat.stages.measure.perplexity import measure_perplexity

    native, folder = exported
    model = open_model(str(spiky))
    calibration, _, report = load_token_sets(
        model, calibration=str(tiny_text), samples=4, report_samples=6, length=32, seed=0
    )
    verification = verify(folder, ["transformers"], against=AgainstFloat(model, calibration, report))
    run: Model = read_native(native)[0]
    before, after = (measure_perplexity(m, report, label="x") for m in (model, run))
    assert verification.damage == (paired_difference(after, before),)


def test_records_come_back_equal(exported: tuple[Path, Path], tmp_path: Path) -> None:
    verification = verify(exported[1])
    path = tmp_path / "v.json"
    path.write_bytes(encode_record(verification))
    assert content_hash(decode_record(path, Verification)) == content_hash(verification)


NONSENSE: dict[str, tuple[dict[str, bytes | None], str]] = {
    "an empty folder": ({"config.json": None, "model.safetensors": None}, "holds no config.json"),
    "no weights": ({"model.safetensors": None}, "holds no safetensors weights"),
    "cut weights": ({"model.safetensors": b"\x10\x00\x00\x00\x00\x00\x00\x00{}"}, "truncated or damaged"),
    "no JSON": ({"config.json": b"{"}, "cannot be read"),
    "bytes": ({"config.json": b"\xff\xfe"}, "cannot be read"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense(qarat: Qarat, exported: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    changes, text = NONSENSE[name]
    folder = shutil.copytree(exported[1], tmp_path / "nonsense")
    for file, content in changes.items():
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(content)
    answer = qarat("verify", folder)
    assert answer.code == 1
    assert text in answer.err
    assert answer.out == ""


def test_what_cannot_be_verified(qarat: Qarat, exported: tuple[Path, Path], spiky: Path, tmp_path: Path) -> None:
    native, folder = exported
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").touch()
    for words, text in (
        ((spiky,), "is not quantized"),
        ((native,), "is not quantized"),
        ((tmp_path / "nowhere",), "no such folder"),
        ((run,), f"`qarat export {run}` writes one"),
        ((folder, "--engine", "vlm"), "did you mean vllm"),
        ((folder, "--gpu", "h100"), "unknown GPU generation"),
        ((folder, "--against", tmp_path / "nowhere"), "no such folder"),
        ((folder, "--against", folder), "is quantized already"),
    ):
        answer = qarat("verify", *words)
        assert answer.code == 1, words
        assert text in answer.err


def test_a_dry_run_is_refused(qarat: Qarat, exported: tuple[Path, Path]) -> None:
    answer = qarat("verify", exported[1], "--dry-run")
    assert answer.code == 2
    assert "verify writes nothing but -o" in answer.err


def test_seeded_mutations_of_the_config_give_clean_errors(exported: tuple[Path, Path], tmp_path: Path) -> None:
    import random

    from qarat.ground.errors import UserError

    folder = shutil.copytree(exported[1], tmp_path / "fuzzed")
    whole = (folder / "config.json").read_bytes()
    start = whole.index(b"quantization_config")
    draw = random.Random(0)
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(start, len(data))] = draw.randrange(32, 127)
        (folder / "config.json").write_bytes(data)
        try:
            assert isinstance(verify(folder), Verification)
        except UserError:
            refused += 1
    assert 0 < refused < 60


def test_nothing_of_the_folder_is_run_or_unpickled(exported: tuple[Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(exported[1], tmp_path / "trapped")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "trap.py").write_text("raise SystemExit('run!')")
    torch.save({"trap": 1}, folder / "pytorch_model.bin")
    assert verify(folder, ["transformers"]).passed


# ---------------------------------------------------------------- no verdict


def test_what_is_not_judged_has_an_exit_code_of_its_own(
    qarat: Qarat, exported: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(exported[1], tmp_path / "turned")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["transform_config"] = {"config_groups": {"u": {"type": "hadamard", "apply": []}}}
    (folder / "config.json").write_text(json.dumps(config))
    answer = qarat("verify", folder, "--engine", "vllm")
    assert answer.code == 3
    assert "turned is not judged: 0 errors, 1 not judged, 1 warning" in answer.out
    assert "not all of it was judged" in answer.err
    assert json.loads(qarat("verify", folder, "--engine", "vllm", "--json").out)["record"]["folder"] == "turned"


LACKING = {
    "memory": MemoryError(),
    "torch": RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
    "threads": RuntimeError("can't start new thread"),
    "disk": OSError(errno.ENOSPC, "No space left on device"),
    "files": OSError("Too many open files (os error 24)"),
    "permission": PermissionError(errno.EACCES, "Permission denied"),
    "reading": OSError(errno.EIO, "Input/output error"),
    "network disk": OSError(errno.ESTALE, "Stale file handle"),
    "network": TimeoutError("timed out"),
    "GPU": RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    "library": ImportError("libgomp.so.1: cannot open shared object file"),
}


@pytest.mark.parametrize("name", LACKING)
@pytest.mark.parametrize("place", ["check_contents", "open_folder", "resolve"])
def test_what_the_machine_lacks_is_no_fault_of_the_folder(
    qarat: Qarat, exported: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LACKING[name]

    monkeypatch.setattr(f"qarat.jobs.verify.{place}", fail)
    answer = qarat("verify", exported[1])
    assert answer.code == 3, answer.err
    assert "was not judged" in answer.err
    assert "says nothing of it" in answer.err
    assert answer.out == ""


def test_a_fault_of_the_program_stays_one(exported: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the size of tensor a must match the size of tensor b")

    monkeypatch.setattr("qarat.jobs.verify.check_contents", fail)
    with pytest.raises(RuntimeError, match="must match"):
        verify(exported[1])


@pytest.mark.parametrize("name", ["memory", "threads"])
def test_transformers_that_could_not_run_here_leaves_the_folder_unjudged(
    qarat: Qarat, exported: tuple[Path, Path], small: list[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LACKING[name]

    monkeypatch.setattr("qarat.stages.read_back.readback.AutoModelForCausalLM.from_pretrained", fail)
    native, folder = exported
    answer = qarat("verify", folder, "--against", native, "--json", *small)
    assert answer.code == 3
    findings = json.loads(answer.out)["record"]["findings"]
    assert [f["severity"] for f in findings if "not run in transformers" in f["what"]] == ["not judged"]


def test_a_full_disk_under_the_record_is_no_fault_of_the_folder(
    qarat: Qarat, exported: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("qarat.ground.disk.os.fsync", fail)
    answer = qarat("verify", exported[1], "-o", tmp_path / "v.json")
    assert answer.code == 3
    assert "the disk is full" in answer.err

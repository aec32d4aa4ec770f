"""`qarat bench`: folders timed in an engine's process, in turns, and set against the first."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from qarat.jobs.engine_process import EngineProcess
from qarat.jobs.engine_speed import time_folders
from qarat.stages.export.base import export_model
from qarat.stages.quantize import quantize
from qarat.surfaces.page import write_report
from qarat.testing import tiny_checkpoint
from qarat.values.engines import ENGINES
from qarat.values.plans import assign
from qarat.values.records.files import decode_record, encode_record
from qarat.values.records.speed import EngineSpeed, FolderSpeed, Turn
from qarat.values.requests.speed import SpeedRequest

Qarat = Callable[..., Any]
Engine = Callable[..., Path]
VERSION = ENGINES["vllm"].ran[0]
SMALL = ("--prompt-tokens", 8, "--new-tokens", 4)

# Every call of the engine has a number; the second folder is 1.5 times as fast, and 2, and 1.2.
TIMED = """
from pathlib import Path
log = Path({log!r})
said = log.read_text().splitlines() if log.exists() else []
log.write_text("\\n".join([*said, json.dumps(asked)]))
turn, place = divmod(len(said), 2)
factor = [1.0, [1.5, 2.0, 1.2][turn]][place]
speeds = [10.0 * (turn + 1) * factor * batch for batch in asked["batches"]]
json.dump(dict(
    version={version!r}, load=4.0 / factor, weights=[800_000, 200_000][place], device="cpu", threads=2,
    prefill=[2 * speed for speed in speeds], decode=speeds,
), open(answer, "w"))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A float folder, and its export in INT8."""
    from qarat.model.opening import open_model

    home = tmp_path_factory.mktemp("speed")
    model = open_model(str(tiny_checkpoint(home / "tiny")))
    plan = assign(model.fingerprint, model.source_bits, model.sites(), "w=int8/channel a=int8/token")
    export_model(quantize(model, plan, None), plan, home / "int8", "compressed-tensors")
    return home / "tiny", home / "int8"


def test_folders_are_timed_in_turns_and_compared_turn_by_turn(
    qarat: Qarat, folders: tuple[Path, Path], engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, out = tmp_path / "log", tmp_path / "speed.json"
    python = engine(TIMED.format(log=str(log), version=VERSION)).name
    monkeypatch.chdir(tmp_path)
    answer = qarat("bench", *folders, "--engine-python", f"./{python}", "-o", out, *SMALL, "--batches", 1, 3)
    assert answer.code == 0, answer.err
    asked = [json.loads(line) for line in log.read_text().splitlines()]
    assert [Path(a["folder"]).name for a in asked] == ["tiny", "int8"] * 3
    assert all(a["windows"] == asked[0]["windows"] for a in asked)
    assert [len(window) for window in asked[0]["windows"]] == [8] * 3
    assert (asked[0]["batches"], asked[0]["new_tokens"], asked[0]["dtype"], asked[0]["eager"], asked[0]["cache"]) == (
        [1, 3], 4, "bfloat16", False, 1,
    )  # fmt: skip
    record = decode_record(out, EngineSpeed)
    first, second = record.folders
    assert (first.format, second.format) == ("", "int-quantized")
    assert first.stored > second.stored
    measures = {m.name: m for m in record.measures(second)}
    assert list(measures) == [
        "load [s]",
        "weights [MB]",
        *(f"{phase}, {batch} at once [tokens/s]" for phase in ("prefill", "decode") for batch in (1, 3)),
    ]
    decode = measures["decode, 3 at once [tokens/s]"]
    assert decode.values == pytest.approx((108.0, 45.0, 120.0))
    assert decode.ratios == pytest.approx((1.5, 1.2, 2.0))
    assert measures["weights [MB]"].ratios == (0.25, 0.25, 0.25)
    assert measures["load [s]"].ratios == pytest.approx((1 / 1.5, 0.5, 1 / 1.2))
    assert all(m.ratios == (1.0, 1.0, 1.0) for m in record.measures(first))
    shown = qarat("show", out).out
    for text in (f"vllm {VERSION}", "2 threads", "int-quantized", "108.0", "45.0 to 120.0", "1.500", "1.200 to 2.000"):
        assert text in shown


def test_a_record_has_a_page(tmp_path: Path) -> None:
    turns = [(1.0, 10, (2.0, 4.0), (1.0, 2.0)), (0.5, 5, (3.0, 8.0), (1.5, 3.0))]
    one, two = (FolderSpeed(n, n * 64, "", 1, (Turn(*t), Turn(*t))) for n, t in zip("ab", turns, strict=True))
    record = EngineSpeed("vllm", "9.9", "a CPU", 1, SpeedRequest(turns=2, clock="cpu"), (one, two), ("a <note>",))
    (tmp_path / "speed.json").write_bytes(encode_record(record))
    page = write_report([tmp_path / "speed.json"], tmp_path / "page").read_text()
    for text in ("b decodes 1.50 times as fast as a", "In vllm 9.9 (1.50 to 1.50)", "a &lt;note&gt;", "b" * 64):
        assert text in page
    assert "one of a processor" in page


def test_weights_that_took_no_memory_have_no_ratio(folders: tuple[Path, Path], engine: Engine, tmp_path: Path) -> None:
    body = TIMED.format(log=str(tmp_path / "log"), version="9.9").replace("800_000", "0")
    request = SpeedRequest(prompt_tokens=8, new_tokens=4, turns=1)
    record = time_folders(list(map(str, folders)), EngineProcess("vllm", engine(body)), request)
    assert math.isnan(next(m for m in record.measures(record.folders[1]) if "weights" in m.name).ratios.median)
    assert record.notes[0] == f"vllm 9.9 is no version that its row was run with ({VERSION})"


def test_a_refusal_stands_beside_our_own_findings(
    qarat: Qarat, folders: tuple[Path, Path], engine: Engine, tmp_path: Path
) -> None:
    config = json.loads((folders[1] / "config.json").read_text())
    config["quantization_config"]["ignore"].append("model.layers.0.mlp.gate_proj")  # stored quantized, and ignored
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folders[1].iterdir():
        (broken / file.name).symlink_to(file)
    (broken / "config.json").unlink()
    (broken / "config.json").write_text(json.dumps(config))
    python = engine(f"json.dump(dict(version={VERSION!r}, refusal='ValueError: no such parameter'), open(answer, 'w'))")
    answer = qarat("bench", broken, "--engine-python", python, *SMALL)
    assert answer.code == 1
    assert f"vllm {VERSION} did not run {broken}: ValueError: no such parameter" in answer.err
    assert "\n  qarat verify, error: " in answer.err
    answer = qarat("bench", folders[0], "--engine-python", python, *SMALL)
    assert answer.code == 1
    assert "qarat verify" not in answer.err  # of a float model it has nothing to say


@pytest.mark.parametrize(
    ("body", "words", "said"),
    [
        ("json.dump(dict(absent='No module named vllm'), open(answer, 'w'))", (), "pip install vllm"),
        ("print('still loading', flush=True); time.sleep(300)", ("--seconds", 2), "was ended after 2 s"),
        ("print('Segmentation fault', flush=True); sys.exit(9)", (), "ended with 9 and left no answer"),
    ],
)
def test_an_engine_that_does_not_answer(
    qarat: Qarat, folders: tuple[Path, Path], engine: Engine, body: str, words: tuple[object, ...], said: str
) -> None:
    answer = qarat("bench", folders[0], "--engine-python", engine(body), *SMALL, *words)
    assert answer.code == 1
    assert said in answer.err
    assert ("absent" in body) or any(line in answer.err for line in ("still loading", "Segmentation fault"))


def test_what_cannot_be_timed_is_refused_before_anything_starts(
    qarat: Qarat, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    for words, said in (
        ((folders[0],), "need 321 positions"),  # the defaults, and a model for 64
        ((folders[0], "--engine", "vlm"), "did you mean vllm"),
        ((folders[0], "--engine-python", tmp_path / "none"), "is no program"),
        ((folders[0], "--turns", "0"), "--turns 0: give at least 1"),
        ((folders[0], "--batches", "2", "2"), "each once"),
        ((tmp_path / "none",), "no such folder"),
    ):
        answer = qarat("bench", *words)
        assert answer.code == 1, words
        assert said in answer.err


def test_a_gguf_file_is_timed_as_its_float_model(
    engine: Engine, tmp_path: Path, with_merge: Callable[[Path], Path]
) -> None:
    from qarat.model.opening import open_model

    pytest.importorskip("gguf", reason="needs gguf: pip install qarat[gguf]")
    tiny = with_merge(tiny_checkpoint(tmp_path / "tiny", hidden=64, intermediate=96, tied=True))
    model = open_model(str(tiny))
    plan = assign(model.fingerprint, model.source_bits, model.sites(), "float")
    export_model(quantize(model, plan, None), plan, tmp_path / "out", "gguf")
    body = TIMED.format(log=str(tmp_path / "log"), version=VERSION)
    keep = f"import shutil\nshutil.copytree(asked['folder'], {str(tmp_path / 'kept')!r})"
    request = SpeedRequest(prompt_tokens=8, new_tokens=4, turns=1)
    record = time_folders(
        [str(tmp_path / "out" / "model.gguf")], EngineProcess("vllm", engine(f"{keep}\n{body}")), request
    )
    assert record.folders[0].folder == "model.gguf"
    weights, written = load_file(tiny / "model.safetensors"), load_file(tmp_path / "kept" / "model.safetensors")
    assert written.keys() == weights.keys()
    assert all(written[name].equal(tensor.bfloat16()) for name, tensor in weights.items())


@pytest.mark.slow
def test_transformers_is_timed(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    request = SpeedRequest(prompt_tokens=8, new_tokens=4, batches=(1, 2), turns=1, dtype="float32")
    process = EngineProcess("transformers", Path(sys.executable), threads=1)
    record = time_folders(list(map(str, folders)), process, request)
    assert record.threads == 1
    for folder in record.folders:
        [turn] = folder.turns
        assert turn.load > 0
        assert min(*turn.prefill, *turn.decode) > 0
        assert len(turn.prefill) == len(turn.decode) == 2

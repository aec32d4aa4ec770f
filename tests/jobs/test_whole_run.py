"""The whole run: the same bytes however often it is stopped, and nothing old or new is ever lost."""

import errno
import itertools
import json
import os
import random
import shutil
import signal
import string
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from qarat.ground import disk as workspace
from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime, no_progress
from qarat.jobs import run_steps as pipeline
from qarat.jobs.folder import Run, read_manifest
from qarat.jobs.whole_run import Pipeline
from qarat.model.native import read_native
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.surfaces import cli, screens
from qarat.surfaces.cli import main
from qarat.surfaces.progress import StageProgress
from qarat.values.plans import Plan
from qarat.values.records.files import decode_record
from qarat.values.records.prices import Menu
from qarat.values.records.rewrites import Rewrites
from qarat.values.records.scores import Continuations, Evaluation
from qarat.values.records.streams import ActivationStats
from qarat.values.requests.protect import ProtectRequest

Qarat = Callable[..., Any]
LOG = "log.jsonl"


def tree(folder: Path) -> dict[str, bytes]:
    """The bytes of every file but the log, which has times in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != LOG}


def steps(folder: Path) -> list[tuple[str, bool]]:
    """The steps of the log, and whether each was taken from an earlier call."""
    lines = map(json.loads, (folder / LOG).read_text().splitlines())
    return [(line["step"], "reused" in line) for line in lines if "step" in line]


@pytest.fixture(scope="module")
def words(tiny_llama: Path, tiny_text: Path) -> list[str]:
    """A run on the tiny model, without its -o."""
    sizes = ["--samples", "4", "--report-samples", "6", "--length", "32", "--threads", "1"]
    return [
        "run",
        str(tiny_llama),
        "--calibration",
        str(tiny_text),
        *sizes,
        "--sites",
        "0.down",
        "0.o",
        "--no-page",
        "--no-rewrites",
    ]


@pytest.fixture(scope="module")
def unbroken(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing stopped."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    assert main([*words, "-o", str(out)]) == 0
    return out


# ---------------------------------------------------------------- what a run leaves


def test_a_run_ends_with_its_page(qarat: Qarat, words: list[str], unbroken: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(unbroken, tmp_path / "out.partial")).with_suffix("")
    answer = qarat(*(w for w in words if w != "--no-page"), "-o", out)
    assert answer.code == 0, answer.err
    assert f"the page to look at: {out / 'report.html'}" in answer.out.replace("\n", "")
    assert "perplexity" in (out / "report.html").read_text()
    assert list((out / "figures").glob("*.svg"))


def test_a_run_rewrites_first(words: list[str], unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plain = [word for word in words if word != "--no-rewrites"]
    assert main([*plain, "-o", str(out)]) == 0
    *evaluated, diverged, last = pipeline.STEPS
    every = ["profile before", "transform", *evaluated, *pipeline.OPTIONAL, diverged, last]
    assert [step for step, _ in steps(out)] == every
    rewrites, plan = decode_record(out / "rewrites-0.json", Rewrites), decode_record(out / "plan.json", Plan)
    assert plan.model.startswith(f"{rewrites.provenance.model}+rewrite/")
    assert plan.low == rewrites.scheme == "w=int8/channel a=int8/tensor/static/reach-1.2"
    # Naive is the model as it was asked for, to which nothing was done; and so is float.
    for label in ("float", "naive"):
        name = f"evaluation-{label}.json"
        theirs = decode_record(unbroken / name, Evaluation)
        assert decode_record(out / name, Evaluation).nats == theirs.nats
    without = {part: decode_record(out / f"evaluation-without-{part}.json", Evaluation) for part in pipeline.WITHOUT}
    assert without["protection"].plan not in ("", without["transforms"].plan)
    # Another protection does not fit anew.
    shutil.copytree(out, tmp_path / "again.partial")
    assert main([*plain, "-o", str(tmp_path / "again"), "--protect", "fp8"]) == 0
    again = dict(steps(tmp_path / "again")[len(steps(out)) :])
    assert (again["profile before"], again["transform"], again["plan"]) == (True, True, False)


def test_a_run_leaves_its_records_and_a_model(unbroken: Path, qarat: Qarat, words: list[str]) -> None:
    files = {name for outputs in pipeline.STEPS.values() for name in outputs}
    assert {p.name for p in unbroken.iterdir()} == files | {"manifest.json", LOG}
    assert not unbroken.with_name("out.partial").exists()
    assert [step for step, _ in steps(unbroken)] == list(pipeline.STEPS) == list(read_manifest_in_order(unbroken))
    plan = decode_record(unbroken / "plan.json", Plan)
    assert plan.exceptions()
    assert (unbroken / "model" / "plan.json").read_bytes() == (unbroken / "plan.json").read_bytes()
    losses = {label: decode_record(unbroken / f"evaluation-{label}.json", Evaluation) for label in pipeline.LABELS}
    assert len({e.loss for e in losses.values()}) == 3
    assert decode_record(unbroken / "continuations.json", Continuations).texts.keys() == set(pipeline.LABELS)
    answer = qarat("evaluate", unbroken, *words[2:-5], "--json")
    assert answer.code == 0, answer.err
    measured = json.loads(answer.out)["record"]
    assert measured["nats"] == pytest.approx(losses["plan"].nats, rel=1e-6)
    assert measured["plan"] == losses["plan"].plan


def read_manifest_in_order(folder: Path) -> list[str]:
    done = read_manifest(folder).steps
    return [step for step in pipeline.STEPS if step in done]


def test_a_run_ends_by_saying_what_to_try_next(qarat: Qarat, words: list[str], tmp_path: Path) -> None:
    answer = qarat(*words, "-o", tmp_path / "my out")
    assert answer.code == 0, answer.err
    ending = answer.out[answer.out.index("written:") :].splitlines()
    assert f"'{tmp_path}/my out'" in ending[0]
    assert ending[2].split("  qarat ")[1] == f"show '{tmp_path}/my out'"
    assert any(line.startswith("  qarat evaluate ") for line in ending)
    assert any("--low 'w=int6/channel a=int6/tensor/static'" in line for line in ending)
    for title in pipeline.TITLES.values():
        assert title in answer.out


def test_a_run_as_json_is_one_list(qarat: Qarat, words: list[str], tmp_path: Path, unbroken: Path) -> None:
    answer = qarat(*words, "-o", tmp_path / "out", "--json")
    assert answer.code == 0, answer.err
    records = json.loads(answer.out)
    kinds = ["stats", "menu", "protection", "plan", *["evaluation"] * 3, *["divergence"] * 2, "continuations"]
    assert [record["qarat"].partition("/")[0] for record in records] == kinds
    assert json.loads(qarat("show", tmp_path / "out", "--json").out) == records
    assert tree(tmp_path / "out") == tree(unbroken)  # the same command, the same bytes


def test_showing_a_run_tells_the_same_story(qarat: Qarat, unbroken: Path) -> None:
    answer = qarat("show", unbroken)
    assert (answer.code, answer.err) == (0, "")
    for title in pipeline.TITLES.values():
        assert title in answer.out


# ---------------------------------------------------------------- stopped and taken up again


def stopped_by(monkeypatch: pytest.MonkeyPatch, stop: Callable[[str, int], bool]) -> None:
    """Let the bars raise what Ctrl-C raises, where ``stop(stage, done)`` says so."""

    class Bars(StageProgress):
        def __call__(self, stage: str, done: int, total: int) -> None:
            if stop(stage, done):
                raise KeyboardInterrupt

    monkeypatch.setattr(screens, "StageProgress", Bars)


def test_ctrl_c_at_every_report_of_progress(
    words: list[str], unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Each attempt comes one report further than the one before it."""
    out = tmp_path / "out"
    seen: set[tuple[str, int]] = set()

    def stop(stage: str, done: int) -> bool:
        new = (stage, done) not in seen
        seen.add((stage, done))
        return new

    stopped_by(monkeypatch, stop)
    while main([*words, "-o", str(out)]) == cli.INTERRUPTED:
        assert "the same command goes on from what is done" in capsys.readouterr().err
        assert not out.exists()
    evaluations = [*(f"evaluate {label}" for label in pipeline.LABELS), "divergence naive", "divergence plan"]
    assert {stage for stage, _ in seen} == {"observe", "damage", "protect", "write", "continue", *evaluations}
    assert tree(out) == tree(unbroken)


@pytest.mark.parametrize("seed", range(2))
def test_ctrl_c_at_random_moments(
    seed: int, words: list[str], unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = random.Random(seed)
    stopped_by(monkeypatch, lambda stage, done: generator.random() < 0.1)
    while main([*words, "-o", str(tmp_path / "out")]) == cli.INTERRUPTED:
        pass
    assert tree(tmp_path / "out") == tree(unbroken)


def wait_for(process: subprocess.Popen[str], met: Callable[[], bool]) -> None:
    while process.poll() is None and not met():
        time.sleep(0.002)


@pytest.mark.parametrize("step", ["profile", "evaluate float"])
def test_a_killed_run_continues(step: str, words: list[str], unbroken: Path, tmp_path: Path, qarat: Qarat) -> None:
    out = tmp_path / "out"
    partial = tmp_path / "out.partial"
    process = subprocess.Popen([sys.executable, "-m", "qarat.surfaces.cli", *words, "-o", str(out)], text=True)
    wait_for(process, lambda: (partial / LOG).is_file() and f'"step": "{step}"' in (partial / LOG).read_text())
    process.kill()
    process.wait()
    assert not out.exists()
    answer = qarat("show", out)  # what there is of it
    assert answer.code == 0, answer.err
    assert "is not finished" in answer.err
    assert shown_command(answer.err).startswith(f"qarat run {words[1]}")
    assert main([*words, "-o", str(out)]) == 0
    assert tree(out) == tree(unbroken)
    reused = [name for name, again in steps(out) if again]
    assert step in reused


def shown_command(text: str) -> str:
    return text.split("the same command: ")[1]


def test_ctrl_c_from_a_terminal(words: list[str], unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "qarat.surfaces.cli", *words, "-o", str(out), "--json"]
    pipe = subprocess.PIPE

    def listen() -> None:
        """A test run in the background of a shell ignores Ctrl-C, and its children would too."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, text=True, stdout=pipe, stderr=pipe, preexec_fn=listen) as process:
        wait_for(process, (tmp_path / "out.partial").is_dir)
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate()
    assert process.returncode == cli.INTERRUPTED, said
    assert printed == ""
    assert "Traceback" not in said
    assert "qarat: interrupted" in said
    assert not out.exists()
    assert main([*words, "-o", str(out)]) == 0
    assert tree(out) == tree(unbroken)


# ---------------------------------------------------------------- overwriting


def test_a_finished_run_is_not_touched(qarat: Qarat, unbroken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(unbroken)
    monkeypatch.delattr("qarat.surfaces.commands.common.open_model")  # refused before any work
    answer = qarat("run", "any-model", "-o", unbroken)
    assert answer.code == 1
    assert "exists already" in answer.err
    assert "--overwrite" in answer.err
    assert tree(unbroken) == before


def test_only_a_run_is_overwritten(qarat: Qarat, words: list[str], tmp_path: Path, unbroken: Path) -> None:
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    files = ["--plan", str(unbroken / "plan.json"), "--stats", str(unbroken / "stats.safetensors")]
    for verb in (words, ["quantize", words[1], *files]):
        answer = qarat(*verb, "-o", precious, "--overwrite")
        assert answer.code == 1
        assert "give another --out" in answer.err
    precious.rename(tmp_path / "out.partial")
    answer = qarat(*words, "-o", tmp_path / "out")
    assert answer.code == 1
    assert "in the way" in answer.err
    assert (tmp_path / "out.partial" / "thesis.tex").read_text() == "years of work"
    run = Path(shutil.copytree(unbroken, tmp_path / "run"))
    for folder in (run, words[1]):  # neither a run nor a model is a quantized folder
        answer = qarat("quantize", words[1], *files, "-o", folder, "--overwrite")
        assert answer.code == 1, folder
    assert tree(run) == tree(unbroken)


@pytest.mark.parametrize("call", range(4))
def test_overwriting_loses_neither_old_nor_new(
    call: int, words: list[str], unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before or after each of the two renames that put the new run into place."""
    out = tmp_path / "out"
    assert main([*words, "-o", str(out), "--protect", "fp8"]) == 0
    old, new = tree(out), tree(unbroken)
    assert old != new
    real, calls = os.replace, itertools.count()

    def replace(source: Path, target: Path) -> None:
        number = next(calls) if Path(source).is_dir() and Path(source).parent == tmp_path else -1
        if number == call // 2 and call % 2 == 0:
            raise KeyboardInterrupt
        real(source, target)
        if number == call // 2 and call % 2 == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(workspace.os, "replace", replace)
    assert main([*words, "-o", str(out), "--overwrite"]) == cli.INTERRUPTED
    monkeypatch.setattr(workspace.os, "replace", real)
    kept = [tree(folder) for folder in tmp_path.iterdir()]
    assert old in kept
    assert new in kept
    assert main([*words, "-o", str(out), "--overwrite"]) == 0
    assert tree(out) == new
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_overwriting_keeps_the_old_until_the_new_is_done(
    words: list[str], unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(unbroken, out)
    command = [*words, "-o", str(out), "--overwrite", "--seed", "1"]
    for stop in ("observe", "write", "continue"):
        stopped_by(monkeypatch, lambda stage, done, stop=stop: stage == stop)
        assert main(command) == cli.INTERRUPTED
        assert tree(out) == tree(unbroken)
    monkeypatch.setattr(screens, "StageProgress", StageProgress)
    assert main(command) == 0
    assert tree(out).keys() == tree(unbroken).keys()
    assert tree(out) != tree(unbroken)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# ---------------------------------------------------------------- a full disk


class FullDisk:
    """Lets so many writes through, then has no space."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        for owner, name in ((workspace.os, "fsync"), (Path, "write_bytes"), (Path, "write_text"), (Path, "mkdir")):
            monkeypatch.setattr(owner, name, self._guard(getattr(owner, name)))

    def _guard(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **options)

        return write


def test_a_full_disk_at_any_write(
    words: list[str], unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        disk = FullDisk(patch)
        for space in itertools.chain(*[range(14)] * 9):
            disk.left = space
            code = main([*words, "-o", str(out)])
            said = capsys.readouterr().err
            if code == 0:
                break
            assert code == 1
            assert "no space left; free some and run the same command again" in said
            assert not out.exists()
            assert space or not list(tmp_path.iterdir()) or steps(tmp_path / "out.partial")
            assert not [p for p in tmp_path.rglob("*.partial") if p.name != "out.partial"]
    assert tree(out) == tree(unbroken)


def test_a_full_disk_while_quantizing_leaves_nothing(
    qarat: Qarat, words: list[str], unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = ["--plan", str(unbroken / "plan.json"), "--stats", str(unbroken / "stats.safetensors")]
    command = ["quantize", words[1], *records, "-o", str(tmp_path / "small")]
    with monkeypatch.context() as patch:
        disk = FullDisk(patch)
        for space in range(5):
            disk.left = space
            answer = qarat(*command)
            assert answer.code == 1
            assert "no space left" in answer.err
            assert str(tmp_path / "small") in answer.err
            assert list(tmp_path.iterdir()) == []
    assert qarat(*command).code == 0
    assert tree(tmp_path / "small") == tree(unbroken / "model")


# ---------------------------------------------------------------- what an earlier call left


def test_other_options_do_not_reuse_what_they_change(
    words: list[str], unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(unbroken, tmp_path / "out.partial")
    assert main([*words, "-o", str(out), "--protect", "fp8"]) == 0
    redone = [name for name, reused in steps(out)[len(pipeline.STEPS) :] if not reused]
    assert redone == list(pipeline.STEPS)[2:]


def test_damaged_leftovers_are_made_again(words: list[str], unbroken: Path, tmp_path: Path) -> None:
    partial = Path(shutil.copytree(unbroken, tmp_path / "out.partial"))
    (partial / "menu.json").write_text('{"kind": "run"}')
    block = next((partial / "model").glob("block-*"))
    block.write_bytes(block.read_bytes()[:-1])
    (partial / ".stats.safetensors.partial").write_bytes(b"half")
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    assert tree(tmp_path / "out") == tree(unbroken)


def test_a_damaged_manifest_is_named(qarat: Qarat, words: list[str], tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "manifest.json").write_text("{")
    answer = qarat(*words, "-o", tmp_path / "out")
    assert answer.code == 1
    assert "manifest.json is damaged" in answer.err
    assert f"delete {partial}" in answer.err


def test_an_unfinished_run_has_no_model_to_evaluate(qarat: Qarat, words: list[str], tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "manifest.json").write_text('{"kind": "run"}')
    answer = qarat("evaluate", partial)
    assert answer.code == 1
    assert "run its command again" in answer.err
    answer = qarat("show", tmp_path / "out")
    assert answer.code == 0
    assert "done: nothing" in answer.err


# ---------------------------------------------------------------- the prompt


def test_a_prompt_is_continued(qarat: Qarat, words: list[str], tmp_path: Path) -> None:
    answer = qarat(*words, "-o", tmp_path / "out", "--prompt", "hello there")
    assert answer.code == 0, answer.err
    assert decode_record(tmp_path / "out" / "continuations.json", Continuations).prompt == "hello there"
    answer = qarat(*words, "-o", tmp_path / "other", "--prompt", "x" * 99)
    assert answer.code == 1
    assert "--prompt has 100 tokens; give 1 to 32" in answer.err
    assert not (tmp_path / "other.partial").exists()


# ---------------------------------------------------------------- a prefix


def job(folder: Path, text: Path, request: ProtectRequest, **more: Any) -> Pipeline:
    model = open_model(str(folder), Runtime(threads=1))
    tokens = load_token_sets(model, calibration=str(text), length=32, samples=4, report_samples=6)
    quiet: dict[str, Any] = {"progress": no_progress, "show": lambda *_, **__: None, "note": lambda _: None}
    return Pipeline(model, tokens, request, **({"seed": 0, "prompt": None} | quiet | more))


def test_a_run_in_little_memory_writes_the_same_and_continues_no_prompt(
    words: list[str], unbroken: Path, tmp_path: Path, qarat: Qarat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No block is kept, hidden states lie on disk, and a model in one piece, of 92 kB, has no room."""
    monkeypatch.setattr("qarat.surfaces.commands.common.held_bytes", lambda device: 0)
    answer = qarat(*words, "-o", tmp_path / "out", "--memory", "80000")
    assert answer.code == 0, answer.err
    assert "the prompt is not continued" in answer.err
    last = ("continuations.json", "manifest.json")
    mine, theirs = (
        {name: data for name, data in tree(f).items() if name not in last} for f in (tmp_path / "out", unbroken)
    )
    assert mine == theirs
    assert decode_record(tmp_path / "out" / last[0], Continuations).texts == {}
    again = qarat("show", tmp_path / "out")
    assert (again.code, "is not finished" in again.err) == (0, False)


def test_a_run_with_a_prefix_has_it_in_everything(tiny_llama: Path, tiny_text: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "out", "run")
    run.begin(command="")
    job(tiny_llama, tiny_text, ProtectRequest(prefix=1, sites=("0.down",))).execute(run)
    out = tmp_path / "out"
    stats, menu = decode_record(out / "stats.safetensors", ActivationStats), decode_record(out / "menu.json", Menu)
    _, plan = read_native(out / "model")
    assert stats.prefix == menu.prefix == plan.prefix == (0,)
    assert (out / "model" / "prefix.safetensors").is_file()
    assert decode_record(out / "plan.json", Plan) == plan


@pytest.mark.parametrize(
    ("rounding", "windows", "said"),
    [("fishy", "8", "unknown rounding 'fishy'; did you mean fisher?"), ("gptq", "1", "weighs 128 input channels")],
)
def test_a_rounding_that_cannot_be_made_is_refused_before_any_work(
    rounding: str, windows: str, said: str, qarat: Qarat, tiny_llama: Path, tiny_text: Path, tmp_path: Path
) -> None:
    out, low = tmp_path / "out", f"w=int4/channel/round-{rounding}"
    sizes = ("--samples", windows, "--report-samples", "4", "--length", "16", "--threads", "1")
    answer = qarat("run", tiny_llama, "--calibration", tiny_text, "--low", low, "-o", out, *sizes)
    assert answer.code == 1
    assert said in answer.err
    assert not list(tmp_path.glob("out*"))


def test_a_prefix_that_cannot_be_is_refused_before_any_work(tiny_llama: Path, tiny_text: Path) -> None:
    def refused(words: str, prefix: int | Literal["auto"], **more: Any) -> None:
        with pytest.raises(UserError, match=words):
            job(tiny_llama, tiny_text, ProtectRequest(prefix=prefix, low="w=int8/channel a=int8/token"), **more)

    refused("calibration set do not begin with the prefix", 5)
    refused("leaves nothing of the calibration set", 32)
    refused("first 1 tokens of a sequence are in float", 1, exports=["compressed-tensors"])
    refused("`prefix` auto: no format", "auto", exports=["compressed-tensors"])


def test_a_prompt_begins_with_the_prefix(tiny_llama: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    lines = ["q" + "".join(chance.choices(string.ascii_lowercase, k=30)) for _ in range(72)]  # with BOS, a window each
    text = tmp_path / "alike.jsonl"
    documents = ("".join(lines[i : i + 3]) for i in range(0, 72, 3))
    text.write_text("".join(json.dumps({"source": d[:9], "text": d}) + "\n" for d in documents))
    assert len(job(tiny_llama, text, ProtectRequest(prefix=2)).draft.prefix) == 2
    assert job(tiny_llama, text, ProtectRequest(prefix=2), prompt="quick").prompt[0] == 0
    with pytest.raises(UserError, match="`prompt` does not begin with the prefix"):
        job(tiny_llama, text, ProtectRequest(prefix=2), prompt="slow")

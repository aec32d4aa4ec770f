"""Perplexity by name: each convention against a computation of its own, with transformers or the harness."""

import importlib
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from qarat.ground.errors import UserError
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.texts import read_text
from qarat.model.tokenizing import count_controls
from qarat.stages.measure import conventions
from qarat.stages.measure.conventions import CONVENTIONS, load_by_convention
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.testing import tiny_checkpoint, tiny_documents, tiny_tokenizer

N = 16
WIKI = """ \n = First = \n \n some words , and more of them \n = = Part = = \n \n the last @-@ ones here
 = Second = \n \n {} \n
 = Third = \n \n short \n \n"""


@pytest.fixture(scope="module")
def wiki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three articles as WikiText's raw files have them."""
    path = tmp_path_factory.mktemp("wiki") / "wiki.raw"
    path.write_text(WIKI.format(tiny_documents(1, characters=100)[0].text))
    return path


@pytest.fixture(scope="module")
def whole(tiny_llama: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)


def losses(whole: Any, ids: list[int]) -> list[float]:
    """Of every token but the first."""
    with torch.no_grad():
        logits = whole(torch.tensor([ids])).logits[0].double()
    return [-float(logits[i].log_softmax(-1)[ids[i + 1]]) for i in range(len(ids) - 1)]


def test_wikitext2_is_the_mean_over_windows_of_the_joined_rows(tiny_model: Model, whole: Any, wiki: Path):
    rows = ["" if line.isspace() else line for line in wiki.read_text().splitlines(keepends=True)]
    ids = tiny_model.tokenizer("\n\n".join(rows)).input_ids
    assert ids[0] == tiny_model.tokenizer.bos_token_id
    count = len(ids) // N
    means = [sum(losses(whole, ids[i * N : (i + 1) * N])) / (N - 1) for i in range(count)]
    tokens = load_by_convention(tiny_model, f"wikitext2-{N}", str(wiki))
    evaluation = measure_perplexity(tiny_model, tokens, label="float")
    assert len(tokens) == count > 5
    assert evaluation.loss == pytest.approx(sum(means) / count, rel=1e-6)
    assert evaluation.provenance.convention == f"wikitext2-{N}"
    assert set(tokens.sources) == {
        "wiki.raw#1",
        "wiki.raw#2",
        "wiki.raw#3",
        "wiki.raw#4",
    }  # what is in front, and the articles


def test_llama_cpp_scores_second_halves_behind_a_bos(tiny_model: Model, whole: Any, wiki: Path):
    bos: Any = tiny_model.tokenizer.bos_token_id
    text = wiki.read_text()
    assert text.endswith("\n")
    ids = tiny_model.tokenizer(text[:-1]).input_ids
    nll, scored = 0.0, 0
    for i in range(len(ids) // N):
        chunk = ids[i * N : (i + 1) * N]
        found = losses(whole, [bos, *chunk[1:]])
        for position in range(N // 2, N - 1):  # logits there say what comes next
            nll += found[position]
            scored += 1
    tokens = load_by_convention(tiny_model, f"llama.cpp-{N}", str(wiki))
    evaluation = measure_perplexity(tiny_model, tokens, label="float")
    assert evaluation.perplexity == pytest.approx(math.exp(nll / scored), rel=1e-6)
    assert sum(evaluation.predicted) == scored == len(tokens) * (N - N // 2 - 1)
    assert set(tokens.windows[:, 0].tolist()) == {bos}


def test_llama_cpp_without_bos(tmp_path: Path, wiki: Path):
    folder = tiny_checkpoint(tmp_path / "model")
    tiny_tokenizer(bos=False).save_pretrained(folder)
    model = open_model(str(folder))
    ids = model.tokenizer(wiki.read_text()[:-1]).input_ids
    windows = load_by_convention(model, f"llama.cpp-{N}", str(wiki)).windows
    assert windows.flatten().tolist() == ids[: windows.numel()]


def test_llama_cpp_reads_the_letters_of_control_tokens(tiny_model: Model, whole: Any, tmp_path: Path):
    """As its perplexity tool (``parse_special`` is false); other conventions read the token."""
    text = "".join(f"some words <s> and {number} more of them" for number in range(8))
    path = tmp_path / "special.txt"
    path.write_text(text + "\n")
    known = tiny_model.tokenizer.get_vocab()
    letters = [known[letter.replace(" ", "Ġ")] for letter in text]
    tokens = load_by_convention(tiny_model, f"llama.cpp-{N}", str(path))
    count = (len(letters) + 1) // N
    expected = torch.tensor([0, *letters][: count * N]).view(count, N)
    expected[:, 0] = 0
    assert tokens.windows.tolist() == expected.tolist()
    assert count_controls(tokens, tiny_model.tokenizer) == {}
    nlls = [losses(whole, row)[N // 2 :] for row in expected.tolist()]
    loss = measure_perplexity(tiny_model, tokens, label="float").loss
    assert loss == pytest.approx(sum(map(sum, nlls)) / sum(map(len, nlls)), rel=1e-6)
    joined = load_by_convention(tiny_model, f"wikitext2-{N}", str(path))
    assert count_controls(joined, tiny_model.tokenizer) == {"<s>": 8}


def pages_of(text: str) -> list[str]:
    """As the data set EleutherAI/wikitext_document_level is made: cut in front of every line that is a title."""
    pages: list[list[str]] = [[]]
    for line in text.split("\n"):
        plain = line.replace("= = =", "===").replace("= =", "==").strip()
        if plain.startswith("= ") and plain.endswith(" ="):
            pages.append([])
        pages[-1].append(line)
    return [page for page in map("\n".join, pages) if page.strip()]


def test_word_perplexity_is_the_harness_own(tiny_model: Model, wiki: Path):
    """Two articles are longer than a window, so that their last ones reach back; the third is shorter."""
    length = tiny_model.length
    harness: Any = pytest.importorskip("lm_eval")
    datasets, task, models = (
        importlib.import_module(n) for n in ("datasets", "lm_eval.api.task", "lm_eval.models.huggingface")
    )
    own = importlib.import_module("lm_eval.tasks.wikitext.preprocess_wikitext")
    pages = datasets.Dataset.from_list([{"page": page} for page in pages_of(wiki.read_text())])
    names = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    config = {
        "task": "wikitext",
        "custom_dataset": lambda **_: {"test": pages},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": own.wikitext_detokenizer,
        "process_results": own.process_results,
        "metric_list": [{"metric": name} for name in names],
    }
    lm = models.HFLM(pretrained=str(tiny_model.folder), dtype="float32", device="cpu", batch_size=1, max_length=length)
    manager = importlib.import_module("lm_eval.tasks").TaskManager(include_defaults=False)
    answer = harness.simple_evaluate(
        model=lm, tasks=[task.ConfigurableTask(config=config)], task_manager=manager, bootstrap_iters=0
    )
    tokens = load_by_convention(tiny_model, f"lm-eval-words-{length}", str(wiki))
    evaluation = measure_perplexity(tiny_model, tokens, label="float")
    assert evaluation.perplexity == pytest.approx(answer["results"]["wikitext"]["word_perplexity,none"], rel=1e-5)
    assert evaluation.unit == "word"
    assert [tokens.sources.count(source) for source in dict.fromkeys(tokens.sources)] == [2, 2, 1]


def test_every_token_of_an_article_is_predicted_once(tiny_model: Model, wiki: Path):
    pytest.importorskip("lm_eval")
    own: Any = importlib.import_module("lm_eval.tasks.wikitext.preprocess_wikitext")
    tokens = load_by_convention(tiny_model, "lm-eval-words", str(wiki))
    assert tokens.convention == f"lm-eval-words-{tiny_model.length}"
    assert tokens.targets is not None
    predicted = [i for i in tokens.targets.flatten().tolist() if i >= 0]
    expected = [
        tiny_model.tokenizer(own.wikitext_detokenizer({"page": p})).input_ids for p in pages_of(wiki.read_text())
    ]
    assert predicted == [i for ids in expected for i in ids]
    assert sum(tokens.words) == sum(len(re.split(r"\s+", page)) for page in pages_of(wiki.read_text()))
    with pytest.raises(UserError, match="whole documents"):
        load_by_convention(tiny_model, "lm-eval-words", str(wiki), limit=2)


def test_articles_of_the_published_test_set():
    """The same as cut line by line, 62 of them, as the data set's card says."""
    path = Path(__file__).parents[4] / "shared" / "data" / "text" / "wikitext-2-raw" / "wiki.test.raw"
    if not path.is_file():
        pytest.skip(f"needs the text at {path}")
    pages = [page.text for page in conventions._pages(read_text(str(path)))]
    assert pages == pages_of(path.read_text())
    assert len(pages) == 62
    assert "".join(read_text(str(path)).lines) == path.read_text()
    assert len(read_text(str(path)).rows) == 4358  # as the split on the hub


class Rows(dict[str, list[str]]):
    """As much of a dataset as is read."""

    @property
    def column_names(self) -> list[str]:
        return list(self)


@pytest.mark.parametrize("name", [f"wikitext2-{N}", f"lm-eval-words-{N}", f"llama.cpp-{N}"])
def test_a_dataset_on_the_hub_is_cut_as_its_file_is(
    tiny_model: Model, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "wiki.raw"
    # In WikiText's files a blank line has its space, which the hub's empty row does not say.
    path.write_text(WIKI.format("a line " * 20).replace("\n\n", "\n \n"))
    rows = Rows(text=list(read_text(str(path)).rows))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    file, hub = (load_by_convention(tiny_model, name, given) for given in (str(path), "hub:me/wikitext:test"))
    assert torch.equal(hub.windows, file.windows)
    assert torch.equal(hub.wanted, file.wanted)
    assert hub.predicted == file.predicted


def test_windows_are_those_of_the_three_token_sets(tiny_model: Model, tiny_text: Path):
    bos: Any = tiny_model.tokenizer.bos_token_id
    tokens = load_by_convention(tiny_model, f"windows-{N}-bos", str(tiny_text), limit=5)
    assert tokens.convention == f"windows-{N}-bos"
    assert len(tokens) == 5
    assert set(tokens.windows[:, 0].tolist()) == {bos}


def test_conventions_are_other_token_sets(tiny_model: Model, tiny_text: Path):
    names = [f"windows-{N}-bos", f"windows-{N}-nobos", f"wikitext2-{N}", f"llama.cpp-{N}", "wikitext2-32"]
    sets = [load_by_convention(tiny_model, name, str(tiny_text)) for name in names]
    assert [s.convention for s in sets] == names
    assert len({s.fingerprint for s in sets}) == len(names)
    assert len({s.text_fingerprint for s in sets}) == 1
    halves = sets[3].subset(2)
    assert halves.predicted == sets[3].predicted[:2] == (N - N // 2 - 1,) * 2


@pytest.mark.parametrize("name", ["wikitext2", "wikitext2-2048", "llama.cpp", "windows-128-bos", "lm-eval-words-65"])
def test_a_window_longer_than_the_model_is_refused(tiny_model: Model, tiny_text: Path, name: str):
    with pytest.raises(UserError, match="the model was trained for 64; give an N of 64 or less"):
        load_by_convention(tiny_model, name, str(tiny_text))


@pytest.mark.parametrize("name", ["wikitext-16", "windows-16", "windows-bos", "llama.cpp-16-bos", "", "wikitext2-x"])
def test_an_unknown_name_is_told_the_nearest(tiny_model: Model, name: str):
    with pytest.raises(UserError, match=r"unknown convention .*(did you mean|known)"):
        load_by_convention(tiny_model, name)
    assert all("N" in known for known in CONVENTIONS)


def test_too_little_text(tiny_model: Model, tmp_path: Path):
    path = tmp_path / "short.txt"
    path.write_text("twenty letters or so")
    with pytest.raises(UserError, match="wikitext2-32 needs 32 tokens, the text has 21"):
        load_by_convention(tiny_model, "wikitext2-32", str(path))
    with pytest.raises(UserError, match=r"llama\.cpp-16 needs 32 tokens, the text has 21"):
        load_by_convention(tiny_model, "llama.cpp-16", str(path))

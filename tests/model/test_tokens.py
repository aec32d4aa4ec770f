import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from qarat.ground.errors import UserError
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.texts import Document
from qarat.model.token_sets import check_disjoint, load_token_sets
from qarat.model.tokens import NOTHING, Bos, TokenSet, default_bos, make_token_set
from qarat.testing import tiny_documents, tiny_tokenizer

ALPHABET = Document("alphabet", "abcdefghijklmnopqrstuvwxyz")
A = 3  # id of "a": BOS, unknown and the space come before


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def token_set(documents: Any, tokenizer: Any, name: str = "calibration", **options: Any) -> TokenSet:
    settings: dict[str, Any] = {"length": 10} | options
    return make_token_set(name, documents, tokenizer, **settings)


def write_lines(path: Path, documents: Any) -> str:
    path.write_text("".join(json.dumps({"source": d.source, "text": d.text}) + "\n" for d in documents))
    return str(path)


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize(
    ("bos", "convention", "rows"),
    [
        ("each", "windows-10-bos", [[0, *range(A, A + 9)], [0, *range(A + 9, A + 18)]]),
        ("once", "windows-10-once", [[0, *range(A, A + 9)], [*range(A + 9, A + 19)]]),
        ("never", "windows-10-nobos", [[*range(A, A + 10)], [*range(A + 10, A + 20)]]),
    ],
)
def test_the_bos_rule(bos: Bos, convention: str, rows: list[list[int]], tokenizer: PreTrainedTokenizerFast):
    tokens = token_set([ALPHABET], tokenizer, bos=bos)
    assert tokens.windows.tolist() == rows
    assert tokens.windows.dtype == torch.int64
    assert tokens.convention == convention


@pytest.mark.parametrize(("bos", "length"), [("each", 27), ("each", 14), ("once", 27), ("never", 26), ("never", 13)])
def test_a_document_that_fits_exactly_is_used_whole(bos: Bos, length: int, tokenizer: PreTrainedTokenizerFast):
    tokens = token_set([ALPHABET], tokenizer, bos=bos, length=length)
    assert [i for i in tokens.windows.flatten().tolist() if i] == list(range(A, A + 26))


def test_windows_never_cross_documents(tokenizer: PreTrainedTokenizerFast):
    short, long = Document("short", "abc"), Document("long", "z" * 40)
    tokens = token_set([ALPHABET, short, long], tokenizer)
    assert tokens.sources == ("alphabet",) * 2 + ("long",) * 4
    assert tokens.document_sources == ("alphabet", "long")  # the short one holds no window
    assert tokens.documents == tuple(hashlib.sha256(d.text.encode()).hexdigest() for d in (ALPHABET, long))


def test_a_limit_takes_a_seeded_choice_in_document_order(tokenizer: PreTrainedTokenizerFast):
    documents = tiny_documents(20)
    everything = token_set(documents, tokenizer)
    some, again, other = (token_set(documents, tokenizer, limit=30, seed=seed) for seed in (0, 0, 1))
    assert len(everything) == 20 * 44
    assert len(some) == 30
    assert some == again != other
    rows = [tuple(row) for row in everything.windows.tolist()]
    places = [rows.index(tuple(row)) for row in some.windows.tolist()]
    assert places == sorted(set(places))
    assert [place * 30 // len(rows) for place in places] == list(range(30))  # one from each stretch: spread
    assert some.sources == tuple(everything.sources[place] for place in places)
    assert token_set(documents, tokenizer, limit=len(everything), seed=5) == everything


def test_equality_and_fingerprint(tokenizer: PreTrainedTokenizerFast):
    tokens, other = token_set([ALPHABET], tokenizer), token_set(tiny_documents(2), tokenizer)
    assert tokens == token_set([ALPHABET], tokenizer)
    assert hash(tokens) == hash(token_set([ALPHABET], tokenizer))
    assert len({tokens.fingerprint, other.fingerprint, token_set([ALPHABET], tokenizer, bos="never").fingerprint}) == 3
    assert msgspec.structs.replace(tokens, convention="windows-10-once").fingerprint != tokens.fingerprint
    assert token_set(tiny_documents(2)[::-1], tokenizer).text_fingerprint == other.text_fingerprint
    assert tokens.text_fingerprint != other.text_fingerprint


def test_subset(tokenizer: PreTrainedTokenizerFast):
    tokens = token_set(tiny_documents(3), tokenizer)
    few = tokens.subset(6)
    assert len(few) == 6
    assert few.fingerprint != tokens.fingerprint
    assert set(few.sources) == set(tokens.sources)
    assert tokens.subset(len(tokens)) == tokens
    for count in (0, len(tokens) + 1):
        with pytest.raises(UserError, match=f"has {len(tokens)} windows, {count} were asked for"):
            tokens.subset(count)


@pytest.mark.parametrize(("batch_tokens", "rows"), [(1, 1), (10, 1), (35, 3), (10**9, 132)])
def test_batches(batch_tokens: int, rows: int, tokenizer: PreTrainedTokenizerFast):
    tokens = token_set(tiny_documents(3), tokenizer)
    batches = tokens.batches(batch_tokens)
    assert {len(batch) for batch in batches[:-1]} <= {rows}
    assert len(batches[0]) == rows
    assert torch.equal(torch.cat(batches), tokens.windows)


def test_what_is_to_be_predicted(tokenizer: PreTrainedTokenizerFast):
    tokens = token_set(tiny_documents(3), tokenizer)
    assert torch.equal(tokens.wanted[:, :-1], tokens.windows[:, 1:])
    assert set(tokens.wanted[:, -1].tolist()) == {NOTHING}
    assert tokens.predicted == (9,) * len(tokens)
    batches = tokens.target_batches(35)
    assert torch.equal(torch.cat(batches), tokens.wanted)
    assert [b.shape for b in batches] == [b.shape for b in tokens.batches(35)]


def test_other_targets_are_another_set(tokenizer: PreTrainedTokenizerFast):
    tokens = token_set(tiny_documents(3), tokenizer)
    targets = tokens.wanted.clone()
    targets[:, :5] = NOTHING
    halves = msgspec.structs.replace(tokens, targets=targets)
    assert halves.predicted == (4,) * len(tokens)
    assert halves.fingerprint != tokens.fingerprint
    assert halves.subset(3).predicted == (4,) * 3
    # Where nothing is said of targets, the fingerprint is of the windows alone.
    said = f"{tokens.convention} {tuple(tokens.windows.shape)} ".encode()
    assert tokens.fingerprint == hashlib.sha256(said + tokens.windows.numpy().tobytes()).hexdigest()


def test_default_bos(tokenizer: PreTrainedTokenizerFast):
    assert default_bos(tokenizer) == "each"
    assert default_bos(tiny_tokenizer(bos=False)) == "never"
    silent = tiny_tokenizer(bos=False)
    silent.bos_token = "<s>"  # has one, does not use it
    assert default_bos(silent) == "never"


# ---------------------------------------------------------------- windows that cannot be had


def test_text_is_empty(tokenizer: PreTrainedTokenizerFast):
    for documents in ([], [Document("blank", " \n")]):
        with pytest.raises(UserError, match="the report text is empty; give"):
            token_set(documents, tokenizer, name="report")


@pytest.mark.parametrize(("bos", "longest"), [("each", "27 with BOS"), ("never", "26")])
def test_text_shorter_than_a_window(bos: Bos, longest: str, tokenizer: PreTrainedTokenizerFast):
    with pytest.raises(UserError) as caught:
        token_set([Document("a", "abc"), ALPHABET], tokenizer, length=28, bos=bos)
    message = str(caught.value)
    assert "no document of the calibration text holds a window of 28 tokens" in message
    assert f"the longest has {longest};" in message
    assert "shorter `length`" in message


def test_a_window_longer_than_the_models(tokenizer: PreTrainedTokenizerFast):
    with pytest.raises(UserError, match="window of 512 tokens, the model was trained for 256; give `length` 256"):
        token_set([ALPHABET], tokenizer, length=512, model_length=256)


def test_bos_that_the_tokenizer_lacks():
    with pytest.raises(UserError, match=r"BOS was asked for.*the tokenizer has none; use 'never'"):
        token_set([ALPHABET], tiny_tokenizer(bos=False))


@pytest.mark.parametrize(
    ("options", "words"), [({"length": 1}, "at least 2"), ({"limit": 0}, "at least 1"), ({"bos": "every"}, "BOS rule")]
)
def test_senseless_requests(options: dict[str, Any], words: str, tokenizer: PreTrainedTokenizerFast):
    with pytest.raises(UserError, match=words):
        token_set([ALPHABET], tokenizer, **options)


# ---------------------------------------------------------------- three sets


def test_overlapping_sets_name_the_documents(tokenizer: PreTrainedTokenizerFast):
    first, second, third = (tiny_documents(4, seed=seed) for seed in range(3))
    copy = Document("copied", first[2].text + "\n")
    sets = [token_set(d, tokenizer, name=n) for n, d in (("a", first), ("b", second), ("c", [*third, copy, second[0]]))]
    check_disjoint(sets[0], sets[1])
    with pytest.raises(UserError) as caught:
        check_disjoint(*sets)
    message = str(caught.value)
    assert "share 2 documents" in message
    assert "tiny/0/2 in a, copied in c" in message
    assert "tiny/1/0 in b, tiny/1/0 in c" in message
    assert "give files with no text in common" in message


def test_a_shared_document_without_a_chosen_window_still_counts(tokenizer: PreTrainedTokenizerFast):
    one = token_set(tiny_documents(50), tokenizer, name="one", limit=1, seed=0)
    other = token_set(tiny_documents(50), tokenizer, name="other", limit=1, seed=1)
    assert one.sources != other.sources
    with pytest.raises(UserError, match="share 50 documents"):
        check_disjoint(one, other)


def test_three_files(tiny_model: Model, tmp_path: Path):
    names = ("calibration", "selection", "report")
    paths = {n: write_lines(tmp_path / f"{n}.jsonl", tiny_documents(9, seed=i)) for i, n in enumerate(names)}
    sets = load_token_sets(tiny_model, **paths, samples=20, report_samples=40)  # type: ignore[arg-type]
    assert tuple(tokens.name for tokens in sets) == names
    assert [len(tokens) for tokens in sets] == [20, 20, 40]
    assert {tokens.convention for tokens in sets} == {"windows-64-bos"}  # the model's own length and BOS rule
    assert all(source.startswith("tiny/2/") for source in sets[2].sources)
    with pytest.raises(UserError, match="the token sets share 9 documents"):
        load_token_sets(tiny_model, **(paths | {"report": paths["selection"]}))  # type: ignore[arg-type]


def test_one_file_is_split(tiny_model: Model, tmp_path: Path):
    path = write_lines(tmp_path / "all.jsonl", tiny_documents(20))
    sets = load_token_sets(tiny_model, calibration=path, length=32, bos="never", seed=3)
    assert [len(set(tokens.sources)) for tokens in sets] == [5, 5, 10]
    assert {tokens.convention for tokens in sets} == {"windows-32-nobos"}
    assert sets == load_token_sets(tiny_model, calibration=path, length=32, bos="never", seed=3)


def test_no_file_is_the_bundled_text_that_suits_the_model(tiny_model: Model):
    sets = load_token_sets(tiny_model, samples=4, report_samples=6)
    assert [len(tokens) for tokens in sets] == [4, 4, 6]
    assert all(source.startswith("docs/") for tokens in sets for source in tokens.sources)
    python = load_token_sets(open_model("py-128"), samples=4, report_samples=6)
    assert all(source.startswith("stdlib/") for tokens in python for source in tokens.sources)


def test_selection_without_report_is_split_in_two(tiny_model: Model, tmp_path: Path):
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    for path, begin in ((one, 0), (other, 8)):
        path.write_text("".join(json.dumps({"text": f"{begin + i} " * 40}) + "\n" for i in range(8)))
    calibration, selection, report = load_token_sets(
        tiny_model, calibration=str(one), selection=str(other), length=32, samples=99, report_samples=99
    )
    homes = [{s.partition("#")[0] for s in tokens.sources} for tokens in (calibration, selection, report)]
    assert homes == [{"one.jsonl"}, {"other.jsonl"}, {"other.jsonl"}]
    assert len(report.windows) > len(selection.windows)  # 1 to 2, by characters


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (["selection"], "calibration, report"),
        (["report"], "calibration, selection"),
        (["selection", "report"], "calibration"),
    ],
)
def test_some_of_three_files(given: list[str], missing: str, tiny_model: Model):
    with pytest.raises(UserError, match=rf"text is missing for: {missing}; give all three"):
        load_token_sets(tiny_model, **dict.fromkeys(given, "x.txt"))  # type: ignore[arg-type]


def test_a_window_longer_than_an_opened_models(tiny_model: Model):
    with pytest.raises(UserError, match="window of 65 tokens, the model was trained for 64"):
        load_token_sets(tiny_model, length=65)


def test_a_real_model_and_text(stories260k: Path, stories: Path):
    sets = load_token_sets(open_model(str(stories260k)), calibration=str(stories), length=256)
    assert [len(tokens) for tokens in sets] == [64, 64, 256]
    assert all((tokens.windows[:, 0] == 1).all() for tokens in sets)
    assert all(tokens.windows.max() < 512 for tokens in sets)

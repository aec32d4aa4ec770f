import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qarat.ground.errors import UserError
from qarat.model.texts import (
    Document,
    Language,
    bundled_documents,
    read_documents,
    read_text,
    split_documents,
)
from qarat.testing import tiny_documents

# ---------------------------------------------------------------- reading


def test_lines_of_json(tmp_path: Path):
    path = tmp_path / "some.jsonl"
    rows = [{"text": "one", "source": "a"}, {"text": "two\u2028lines", "file": "b"}, {"text": "three", "more": 1}]
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    expected = (Document("a", "one"), Document("b", "two\u2028lines"), Document("some.jsonl#3", "three"))
    assert read_documents(str(path)) == expected


@pytest.mark.parametrize("line", ["{", "[]", '"text"', "{}", '{"text": 3}', r'{"text": "\ud800"}'])
def test_a_malformed_line_is_named(line: str, tmp_path: Path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=r"some\.jsonl, line 3"):
        read_documents(str(path))


def test_text_is_cut_at_end_of_text_marks(tmp_path: Path):
    path = tmp_path / "stories.txt"
    path.write_text("One.\n\nMore.\n<|endoftext|>\nTwo.<|endoftext|>\n")
    assert read_documents(str(path)) == (
        Document("stories.txt#1", "One.\n\nMore."),
        Document("stories.txt#2", "Two."),
    )


def test_wikitext_is_cut_at_articles(tmp_path: Path):
    path = tmp_path / "wiki.raw"
    path.write_text(" \n = First = \n \n Text . \n = = Section = = \n More . \n \n = Second one = \n Text . \n")
    first, second = read_documents(str(path))
    assert first.text.startswith("= First =")
    assert "= = Section = =" in first.text
    assert second.text.startswith("= Second one =")


def test_other_text_is_one_document(tmp_path: Path):
    path = tmp_path / "play.txt"
    path.write_bytes("\ufeffAct I\r\n\r\nEnter Æneas, a = b = c.\r\n".encode())
    assert read_documents(str(path)) == (Document("play.txt#1", "Act I\n\nEnter Æneas, a = b = c."),)


def test_real_texts(stories: Path):
    wikitext = stories.parent / "wikitext-2-raw"
    counts = [len(read_documents(str(wikitext / f"wiki.{split}.raw"))) for split in ("test", "valid")]
    assert counts == [62, 60]  # as published
    assert len(read_documents(str(stories))) > 2000


def test_no_such_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"no such file: .*nowhere\.txt; give"):
        read_documents(str(tmp_path / "nowhere.txt"))


def test_a_folder_is_no_file(tmp_path: Path):
    with pytest.raises(UserError, match="is a folder; give"):
        read_documents(str(tmp_path))


def test_not_utf8(tmp_path: Path):
    path = tmp_path / "latin.txt"
    path.write_bytes("Æneas".encode("latin1"))
    with pytest.raises(UserError, match=r"latin\.txt is not UTF-8 \(byte 0 is 0xc6\); convert"):
        read_documents(str(path))


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl", "blank.txt", "blank.jsonl"])
def test_no_text(name: str, tmp_path: Path):
    (tmp_path / name).write_text("" if "empty" in name else '{"text": " "}' if name.endswith("jsonl") else " \n")
    with pytest.raises(UserError, match=rf"{name} holds no text; give"):
        read_documents(str(tmp_path / name))


def test_rows_and_lines_of_a_text_file(tmp_path: Path):
    path = tmp_path / "some.raw"
    path.write_text(" \n = One = \n\nmore\u2028text\x0b \nlast", encoding="utf-8")
    assert read_text(str(path)).rows == ("", " = One = \n", "", "more\u2028text\x0b \n", "last")
    assert "".join(read_text(str(path)).lines) == path.read_text()


def test_rows_and_lines_of_json(tmp_path: Path):
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("one\ntwo", "", "three\n")))
    assert read_text(str(path)).rows == ("one\ntwo", "", "three\n")
    assert read_text(str(path)).lines == ("one\ntwo\n", " \n", "three\n")


# ---------------------------------------------------------------- the hub


class Rows(dict[str, list[str]]):
    @property
    def column_names(self) -> list[str]:
        return list(self)


def fake_datasets(monkeypatch: pytest.MonkeyPatch, rows: Rows | Exception) -> list[Any]:
    """Stand in for the `datasets` library; returns what it is asked for."""
    asked: list[Any] = []

    def load_dataset(*arguments: Any, **named: Any) -> Rows:
        asked.append((*arguments, named["split"]))
        if isinstance(rows, Exception):
            raise rows
        return rows

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))  # type: ignore[arg-type]
    return asked


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("hub:me/data", ("me/data", None, "train")),
        ("hub:me/data/small", ("me/data", "small", "train")),
        ("hub:me/data/small:test", ("me/data", "small", "test")),
        ("hub:me/data:test:text", ("me/data", None, "test")),
        ("hub:me/data::text", ("me/data", None, "train")),
    ],
)
def test_hub_names(name: str, asked: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch):
    calls = fake_datasets(monkeypatch, Rows(text=["one", "two"]))
    documents = read_documents(name)
    assert calls == [asked]
    assert [d.text for d in documents] == ["one", "two"]
    assert documents[1].source == f"me/data/{asked[2]}#2"


def test_wikitext_from_the_hub(monkeypatch: pytest.MonkeyPatch):
    fake_datasets(monkeypatch, Rows(page=["", " = First = \n", " Text . \n", " = Second = \n", " Text . \n"]))
    first, second = read_documents("hub:me/wikitext:test:page")
    assert (first.text, second.text) == ("= First = \n Text .", "= Second = \n Text .")


@pytest.mark.parametrize("name", ["hub:", "hub:data", "hub:a/b:c:d:e", "hub:a/b/c/d"])
def test_malformed_hub_names(name: str):
    with pytest.raises(UserError, match="is not hub:OWNER/NAME"):
        read_documents(name)


def test_hub_without_the_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"pip install 'qarat\[text\]' \(or datasets\)"):
        read_documents("hub:me/data")


def test_hub_without_network(monkeypatch: pytest.MonkeyPatch):
    fake_datasets(monkeypatch, ConnectionError("offline"))
    with pytest.raises(UserError, match="hub:me/data cannot be loaded: offline"):
        read_documents("hub:me/data")


def test_hub_without_the_column(monkeypatch: pytest.MonkeyPatch):
    fake_datasets(monkeypatch, Rows(story=["one"]))
    with pytest.raises(UserError, match="hub:me/data has no column 'text'; it has story"):
        read_documents("hub:me/data")


# ---------------------------------------------------------------- splitting


@pytest.mark.parametrize("language", ["python", "english"])
def test_bundled_text_is_disjoint(language: Language):
    slices = [bundled_documents(which, language) for which in ("calibration", "selection", "report")]
    texts = [{d.text for d in documents} for documents in slices]
    assert all(len(text) > 20 for text in texts)
    assert sum(map(len, texts)) == len(set.union(*texts))


def test_no_sentence_of_the_english_text_is_in_two_slices():
    slices = [bundled_documents(which, "english") for which in ("calibration", "selection", "report")]
    lines = [{line for d in documents for line in d.text.split("\n")} for documents in slices]
    assert sum(map(len, lines)) == len(set.union(*lines))
    assert all(line.endswith((".", ":", "!", "?")) for some in lines for line in some)


def test_bundled_text_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("qarat.model.texts._BUNDLED", tmp_path)
    with pytest.raises(UserError, match=r"calibration\.jsonl is missing; install"):
        bundled_documents("calibration")


def test_a_split_keeps_every_document_once():
    documents = tiny_documents(40)
    parts = split_documents(documents, 0)
    assert sorted(d.source for part in parts for d in part) == sorted(d.source for d in documents)
    sizes = [sum(len(d.text) for d in part) / 400 for part in parts]
    assert sizes == [10, 10, 20]
    assert parts == split_documents(documents, 0) != split_documents(documents, 1)
    for part in parts:
        assert [documents.index(d) for d in part] == sorted(documents.index(d) for d in part)


def test_a_split_keeps_equal_texts_together():
    documents = [Document(str(i), d.text) for i, d in enumerate(tiny_documents(9) * 3)]
    parts = split_documents(documents, 0)
    texts = [{d.text for d in part} for part in parts]
    assert sum(map(len, texts)) == 9
    assert sum(map(len, parts)) == 27


def test_three_documents_are_enough_and_two_are_not():
    assert [len(part) for part in split_documents(tiny_documents(3), 0)] == [1, 1, 1]
    with pytest.raises(UserError, match="at least three different documents, this one has 2; separate them"):
        split_documents([*tiny_documents(2), *tiny_documents(2)], 0)

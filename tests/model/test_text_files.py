"""Files of every kind: what they hold is read as what it is, or refused by its kind, and no syntax becomes text."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
from pathlib import Path
from typing import Any

import pytest

from qarat.ground.errors import UserError
from qarat.model.texts import read_documents, read_text
from qarat.model.tokens import make_token_set
from qarat.testing import tiny_tokenizer

TEXTS = ('one, "two"\n\tthree', "vier\nfünf", "x" * 200_000)  # the last longer than csv's own limit


def lines_of_json(texts: tuple[str, ...] = TEXTS, end: str = "\n") -> str:
    return end.join(json.dumps({"text": text}) for text in texts)


def delimited(delimiter: str) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([("id", "text"), *enumerate(TEXTS)])
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lines_of_json()),
        ("UPPER.JSONL", lines_of_json()),
        ("a.ndjson", lines_of_json()),
        ("a.json", lines_of_json()),
        ("cr.jsonl", lines_of_json(end="\r")),
        ("crlf.jsonl", lines_of_json(end="\r\n")),
        ("array.json", json.dumps([{"text": text} for text in TEXTS], indent=1)),
        ("hidden.txt", lines_of_json()),
        ("a.csv", delimited(",")),
        ("A.TSV", delimited("\t")),
        ("excel.csv", delimited(";")),
        ("table.txt", delimited(",")),
        ("table.log", delimited("\t")),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_tables_hold_the_same_documents(name: str, content: str, encoding: str, tmp_path: Path):
    path = tmp_path / name
    path.write_bytes(content.encode(encoding))
    assert tuple(d.text for d in read_documents(str(path))) == TEXTS
    assert read_documents(str(path))[1].source == f"{name}#2"


@pytest.mark.parametrize(("pack", "suffix"), [(gzip.compress, ".gz"), (bz2.compress, ".bz2"), (lzma.compress, ".xz")])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_packed_files(name: str, pack: Any, suffix: str, tmp_path: Path):
    content = {"a.jsonl": lines_of_json(), "a.csv": delimited(","), "a.txt": "<|endoftext|>".join(TEXTS)}[name]
    path = tmp_path / (name + suffix)
    path.write_bytes(pack(content.encode()))
    assert tuple(d.text for d in read_documents(str(path))) == TEXTS
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="is damaged"):
        read_documents(str(path))


def test_parquet(tmp_path: Path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"id": [1, 2, 3], "text": TEXTS, "source": ["a", "a", "b"]}), path)
    assert [(d.source, d.text) for d in read_documents(str(path))] == list(zip("aab", TEXTS, strict=True))
    parquet.write_table(arrow.table({"page": ["", " = One = \n", " Text . \n", " = Two = \n", " More . \n"]}), path)
    assert [d.text for d in read_documents(str(path), "page")] == ["= One = \n Text .", "= Two = \n More ."]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged"):
        read_documents(str(path))


def test_parquet_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"is Parquet, which needs pyarrow: pip install 'qarat\[text\]'"):
        read_documents(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x28\xb5\x2f\xfd...", "compressed by zstd"),
        (b"PK\x03\x04...", "ZIP"),
        (b"%PDF-1.7", "PDF"),
        (b"{\\rtf1 text}", "RTF"),
        (b"<!DOCTYPE html><p>text", "HTML or XML"),
        (b'\n<?xml version="1.0"?>', "HTML or XML"),
        (b'<doc id="12" url="x">text</doc>', "HTML or XML"),
        ("text of some length".encode("utf-16-le"), r"NUL\); .*convert it first.*iconv -f utf-16le"),
        ("\u00fcber einen Text".encode("utf-16-le"), r"byte 1 is NUL\)"),
        (b"\x93NUMPY\x01\x00v\x00", "is binary"),
        ("\u4f60\u597d".encode("gbk"), r"is not UTF-8 \(byte 0 is 0xc4\).*from the encoding that it has.*gbk"),
        (b"\xff\xfea\x00b", r"is not UTF-16 \(byte 4"),
    ],
)
def test_what_is_no_text_is_refused_by_its_kind(content: bytes, said: str, tmp_path: Path):
    path = tmp_path / "some.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_documents(str(path))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.yaml", "just: a\nmapping: of things\n", "YAML"),
        ("a.txt", "- text: one\n  source: x\n- text: two\n", "YAML"),
        ("a.txt", "---\nid: 1\ntext: |\n  one\n", "YAML"),
        ("a.toml", '[[document]]\ntext = "one"\n', "TOML"),
        ("a.xml", "plain", "HTML or XML"),
        ("a.vtt", "WEBVTT\n", "subtitles"),
        ("a.txt", "<root>\n<item>one</item>\n</root>\n", "HTML or XML"),
        ("a.txt", "<div>\n<p>one</p>\n</div>", "HTML or XML"),
        ("a.txt", "<p>one<p>two", "HTML or XML"),
        ("a.txt", "<!-- a feed -->\n<feed><entry>one</entry></feed>", "HTML or XML"),
        ("a.txt", "<DOC>\none\n</DOC>\n<DOC>\ntwo\n</DOC>\n", "HTML or XML"),
        ("a.txt", "id,label,sentence\n1,0,one\n2,1,two\n", "no column 'text'; it has id, label, sentence"),
        ("a.txt", "question|answer\none|two\nthree|four\n", "no column 'text'; it has question, answer"),
        ("a.txt", "# exported\n" + lines_of_json(), "line 1: JSON is malformed"),
        ("a.txt", lines_of_json(end=",\n"), "line 1: JSON is malformed"),
        ("a.txt", "\n".join(f"data: {line}" for line in lines_of_json().splitlines()), "JSON is malformed"),
        ("a.txt", "\n".join(str({"text": text}) for text in TEXTS), "JSON is malformed"),
    ],
)
def test_syntax_is_no_text_whatever_it_is_called(name: str, content: str, said: str, tmp_path: Path):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        read_documents(str(path))


@pytest.mark.parametrize(
    "content",
    [
        "<s> one two </s>",
        "<think>\none\n</think>\ntwo",
        "<unk> one <unk> two",
        "<|im_start|>user\none<|im_end|>",
        "<3 one",
        "apples,pears\nand,so,on we went,\nand then, home.",
        "one,two\nthree,four",
        "Alice: one\nBob: two\n",
    ],
)
def test_text_that_looks_a_little_like_syntax(content: str, tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text(content)
    assert [d.text for d in read_documents(str(path))] == [content.strip()]


@pytest.mark.parametrize("blank", ["", "\\n", "  \\n\\n"])
def test_a_bos_behind_a_templates_blank_space_is_not_doubled(blank: str, tmp_path: Path):
    path, tokenizer = tmp_path / "a.jsonl", tiny_tokenizer()
    turns = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.chat_template = "{{ '" + blank + "' }}{{ bos_token }}" + turns
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "one two three"}]}))
    documents = read_documents(str(path), tokenizer=tokenizer)
    assert documents[0].text == "<s>one two three"
    tokens = make_token_set("report", documents, tokenizer, length=4)
    assert (tokens.windows == 0).sum(1).tolist() == [1, 1, 1, 1]
    tokenizer.chat_template = "{{ '" + blank + "' }}" + turns
    assert read_documents(str(path), tokenizer=tokenizer)[0].text == blank.replace("\\n", "\n") + "one two three"


def test_a_chat_as_python_spells_it_is_a_chat(tmp_path: Path):
    path, tokenizer = tmp_path / "a.csv", tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }};{% endfor %}"
    path.write_text("messages\n\"[{'role': 'user', 'content': 'it''s one'}]\"\n".replace("it''s", "one"))
    assert read_documents(str(path), tokenizer=tokenizer)[0].text == "user: one one;"
    path.write_text("messages\n\"[{'role': 'user', 'content': 'a'}\n {'role': 'user', 'content': 'b'}]\"\n")
    with pytest.raises(UserError, match="messages is a chat that is neither JSON nor Python"):
        read_documents(str(path), tokenizer=tokenizer)


def test_markdown_may_begin_with_a_tag(tmp_path: Path):
    path = tmp_path / "README.md"
    path.write_text('<p align="center">A name</p>\n\n# A title\n')
    assert [d.text for d in read_documents(str(path))] == ['<p align="center">A name</p>\n\n# A title']


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "a", "output": "b"}, "line 1 has no column 'text'; it has instruction, output; name"),
        ({"content": "a", "path": "b"}, "it has content, path"),
        ({"text": None}, "line 1: text is null, neither a string nor a chat"),
        ({"text": ["a"]}, "text is a list, neither"),
        ({"messages": "hello"}, ""),
        ({"messages": [{"from": "human", "value": "a"}]}, "messages is a list with from, value, neither"),
        (
            {"messages": [{"role": "user", "content": "a"}]},
            "messages is a chat, and the tokenizer has no chat template",
        ),
        (
            {"messages": '[{"role": "user", "content": "a"}]'},
            "messages is a chat, and the tokenizer has no chat template",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, "content is a list of parts"),
    ],
)
def test_columns_that_hold_no_text_are_refused(row: dict[str, Any], said: str, tmp_path: Path):
    path = tmp_path / "some.jsonl"
    path.write_text(json.dumps(row))
    if not said:
        assert read_documents(str(path))[0].text == "hello"
        return
    with pytest.raises(UserError, match=said):
        read_documents(str(path), tokenizer=tiny_tokenizer())


def test_a_column_by_name(tmp_path: Path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": "no", "story": "yes"}\n')
    assert read_documents(str(path), "story")[0].text == "yes"
    with pytest.raises(UserError, match="has no column 'tale'; it has text, story"):
        read_documents(str(path), "tale")
    (tmp_path / "plain.txt").write_text("text")
    with pytest.raises(UserError, match="is plain text, without columns"):
        read_documents(str(tmp_path / "plain.txt"), "story")


def test_a_csv_whose_rows_are_not_as_long_as_its_head(tmp_path: Path):
    path = tmp_path / "some.csv"
    for row in ("1", "1,a,b"):
        path.write_text(f"id,text\n0,fine\n{row}\n")
        with pytest.raises(UserError, match=r"some\.csv, line 3: not as many values as"):
            read_documents(str(path))


@pytest.mark.parametrize(
    "text", ["In this text, a, b\n", "text\n", "a text; text\n", "<s>text</s>\n", "[1, 2] and text\n"]
)
def test_plain_text_is_taken_for_nothing_else(text: str, tmp_path: Path):
    (tmp_path / "some.txt").write_text(text + "more, of it")
    assert read_documents(str(tmp_path / "some.txt"))[0].text == text + "more, of it"


def test_a_csv_whose_columns_are_not_told_apart(tmp_path: Path):
    path = tmp_path / "some.csv"
    path.write_text("text, text\na,b\n")
    with pytest.raises(UserError, match="has the column 'text' more than once"):
        read_documents(str(path))


@pytest.mark.parametrize("value", ['"\\ud83d"', "NaN", "-Infinity"])
def test_what_python_writes_as_json_and_is_none(value: str, tmp_path: Path):
    path = tmp_path / "some.jsonl"
    path.write_text(f'{{"text": "a"}}\n{{"text": "b", "more": {value}}}\n')
    with pytest.raises(UserError, match="line 2: NaN, Infinity, or half of a surrogate pair"):
        read_documents(str(path))


def test_chats_are_written_out_by_the_template(tmp_path: Path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }}{{ strftime_now('%Y') }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if messages|length > 2 %}{{ raise_exception('too many') }}{% endif %}"
    )
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": chat}) + "\n" + json.dumps({"messages": chat[:1]}))
    texts = [d.text for d in read_documents(str(path), tokenizer=tokenizer)]
    assert texts == ["<s>2024[user] hi\n[assistant] ho\n", "<s>2024[user] hi\n"]
    path.write_text(json.dumps({"messages": chat * 2}))
    with pytest.raises(UserError, match="line 1: the tokenizer's chat template refuses messages: too many"):
        read_text(str(path), tokenizer=tokenizer)


def test_text_is_cut_at_the_mark_of_llama_3(tmp_path: Path):
    path = tmp_path / "some.txt"
    path.write_text("One.<|end_of_text|>Two.<|endoftext|>Three.")
    assert [d.text for d in read_documents(str(path))] == ["One.", "Two.", "Three."]

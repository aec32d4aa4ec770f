"""What a file holds, read as what it is: plain text, or a table of rows (JSON, CSV, Parquet).

What a file is, its first bytes say before its name does: a compressed one is unpacked, a byte-order mark names the
encoding, and JSON is JSON in a ``.txt`` as well, so that no syntax is ever measured as if it were text. What is neither
text nor a table is refused by its kind.
"""

from __future__ import annotations

import ast
import bz2
import codecs
import csv
import gzip
import importlib
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from qarat.ground.errors import UserError

HUB = "hub:"
"""What the name of a dataset on the hub begins with."""
_JSON, _DELIMITED = (".json", ".jsonl", ".ndjson"), (".csv", ".tsv")
_PACKED = (".gz", ".bz2", ".xz")
_UNPACK: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ\0": lzma.decompress,
}
_PARQUET = b"PAR1"
_KINDS = {
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it with: zstd -d",
    b"PK\x03\x04": "a ZIP archive, as .docx and .xlsx are; give the text in it",
    b"%PDF": "a PDF; give the text in it",
    b"{\\rtf": "RTF; save it as plain text",
    b"ARROW1": "an Arrow file; write it as Parquet or .jsonl",
    b"\xff\xff\xff\xff": "an Arrow stream; write it as Parquet or .jsonl",
    b"SQLite format 3": "a database; write its rows as .jsonl or .csv",
    b"GGUF": "a GGUF file, a model; give a text",
}
"""First bytes to what they say, and what to do."""
_MARKS = {  # the longer first: UTF-32's begins as UTF-16's does
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_MARKED = "whose markup is no text; give the text in it"
_LISTED = (
    "whose syntax is no text; write the texts in it as .jsonl, or call it .txt if that is what the model is to read"
)
_SUFFIXES = {
    **dict.fromkeys((".html", ".htm", ".xhtml", ".xml", ".svg"), f"HTML or XML, {_MARKED}"),
    **dict.fromkeys((".srt", ".vtt"), f"subtitles, {_MARKED}"),
    **dict.fromkeys((".yaml", ".yml"), f"YAML, {_LISTED}"),
    ".toml": f"TOML, {_LISTED}",
}
"""Kinds that only the name tells for certain."""
_MARKDOWN = (".md", ".markdown")
# Elements of HTML that texts begin with, any element with attributes, and one that ends where the text does. None is a
# control token such as `<s>`, or a word for a model such as `<think>`, behind which the text goes on.
_MARKUP = re.compile(
    r"\s*(?:<!--|<(?:!doctype|\?xml|html|head|body|div|p|span|table|ul|ol|section|article|main|nav|header|template|script|"
    r"style|svg|h[1-6])\b|<[\w:-]+\s+[\w:-]+\s*=\s*[\"']|<(?!s>)(?P<name>[\w:-]+)>.*</(?P=name)>\s*\Z)",
    re.IGNORECASE | re.DOTALL,
)
_YAML = re.compile(r"(?:---\s*\n)?(?:- +)?(?:\w+:.*\n\s*)*(?:text|messages|conversations):(?:\s|$)")
# A table by its first line, whatever the file is called: short names side by side.
_HEADER = re.compile(r"(?:\"?\w{1,40}\"?[,;\t|])+\"?\w{1,40}\"?\n")
_CHAT = re.compile(r"\[\s*\{\s*[\"'](role|content|from|value)[\"']\s*:")  # how a list of messages begins
_OF_TEXT = re.compile(r"\b(?:text|messages)\b")
_SAMPLE = 1 << 16  # characters that are looked at; csv takes no longer values
_OBJECT = re.compile(r"\s*(?:data: *)?\[?\{\s*[\"']\w+[\"']\s*:")  # a line of JSON, or of what should have been


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        place: Where it stands, for messages.
        values: What it holds: a mapping of columns, if it is as it should be.
    """

    place: str
    values: Any


def read_file(path: Path) -> str | list[Row]:
    """Plain text with Unix newlines, or the rows of a table.

    Raises:
        UserError: No such file; a kind that holds no text, a damaged one, or an encoding that is not known; no library
            to read it.
    """
    data = _unpacked(path)
    if data.startswith(_PARQUET):
        return _parquet_rows(path, data)
    for magic, kind in _KINDS.items():
        if data.startswith(magic):
            raise UserError(f"{path} is {kind}")
    text = _decode(path, data)
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _PACKED]
    suffix = suffixes[-1] if suffixes else ""
    if suffix in _SUFFIXES:
        raise UserError(f"{path} is {_SUFFIXES[suffix]}")
    if suffix in _DELIMITED or _looks_delimited(text):
        return _delimited_rows(path, text)
    if suffix in _JSON or _looks_like_json(text):
        return _json_rows(path, text)
    if suffix not in _MARKDOWN and _MARKUP.match(text):  # Markdown may begin with a tag, and is text for all that
        raise UserError(f"{path} is HTML or XML, {_MARKED}")
    if _YAML.match(text):
        raise UserError(f"{path} is YAML, whose syntax is no text; write the texts in it as .jsonl")
    return text


def check_text(name: str) -> None:
    """Refuse a text that is no file here, nor of the hub.

    Args:
        name: As `qarat.model.texts.read_text` takes it.

    Raises:
        UserError: Saying what to give.
    """
    if Path(name).is_dir():
        raise UserError(f"{name} is a folder; give one text file, or a .jsonl file with one document a line")
    if not name.startswith(HUB) and not Path(name).is_file():
        raise UserError(f"no such file: {name}; give a text file, a .jsonl file, or {HUB}OWNER/NAME")


def _unpacked(path: Path) -> bytes:
    check_text(str(path))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    for magic, unpack in _UNPACK.items():
        if data.startswith(magic):
            try:
                return unpack(data)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise UserError(f"{path} is damaged: {error}; fetch it again") from error
    return data


def _decode(path: Path, data: bytes) -> str:
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if b"\0" in data and encoding == "utf-8-sig":
            raise _binary(path, f"byte {data.index(0)}") from None
        raise UserError(
            f"{path} is not {encoding.upper().removesuffix('-SIG')} (byte {error.start} is "
            f"{error.object[error.start]:#04x}); convert it first, from the encoding that it has, for example with: "
            "iconv -f latin1 -t utf-8 (or -f cp1252, gbk, shift_jis)"
        ) from None
    if (place := text.find("\0")) >= 0:
        raise _binary(path, f"character {place}")
    return text.replace("\r\n", "\n")


def _binary(path: Path, nul: str) -> UserError:
    return UserError(
        f"{path} is binary, or UTF-16 without a byte-order mark ({nul} is NUL); give the text that is in it, or "
        "convert it first, for example with: iconv -f utf-16le -t utf-8"
    )


def _looks_like_json(text: str) -> bool:
    """Whether a text is JSON by its content: an object in its first line or in most, or an object or list in all."""
    lines = [line for line in text[:_SAMPLE].splitlines() if line.strip()]
    if lines and 2 * sum(map(bool, map(_OBJECT.match, lines))) > len(lines):
        return True
    if text.lstrip()[:1] not in ("{", "["):
        return False
    return isinstance(decoded(text.lstrip().partition("\n")[0]), dict) or isinstance(decoded(text), dict | list)


def _looks_delimited(text: str) -> bool:
    """Whether a text is a table by its first line: one of the names is a text's, or all lines have as many values."""
    head = _HEADER.match(text)
    if head is None or _OF_TEXT.search(head[0]):
        return head is not None
    try:
        rows = list(csv.reader(io.StringIO(text[:_SAMPLE], newline=""), delimiter=_delimiter(text)))
    except csv.Error:
        return False
    rows = rows if len(text) <= _SAMPLE else rows[:-1]
    return len(rows) > 2 and all(len(row) == len(rows[0]) for row in rows)


def _delimiter(text: str) -> str:
    return max(",;\t|", key=text.partition("\n")[0].count)


def decoded(text: str) -> Any:
    """A JSON text's value; None if it is none."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None


def decoded_cell(text: str) -> Any:
    """The list that a cell of a table holds as JSON or, as pandas writes it, as Python's; None if it is none.

    Raises:
        ValueError: It begins as a list of messages does, and is neither.
    """
    if not text.startswith("["):
        return None
    value = decoded(text)
    if value is None and _CHAT.match(text):
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, MemoryError, RecursionError) as error:
            raise ValueError(str(error)) from None
    return value


def _json_rows(path: Path, text: str) -> list[Row]:
    whole = decoded(text)
    if isinstance(whole, list):
        return [Row(f"{path}, entry {number}", value) for number, value in enumerate(whole, 1)]
    if isinstance(whole, dict):
        return [Row(f"{path}, line 1", whole)]
    rows: list[Row] = []
    # Not splitlines: JSON strings may hold U+2028, but no bare carriage return.
    for number, line in enumerate(re.split(r"\r|\n", text), 1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                rows.append(Row(place, msgspec.json.decode(line)))
            except msgspec.DecodeError as error:
                why = _not_json(line) or error
                raise UserError(f"{place}: {why}; expected an object with a string `text` on every line") from None
    return rows


def _not_json(line: str) -> str:
    """What Python's own reader takes for JSON, and is none; empty for what it does not take either."""
    try:
        json.loads(line)
    except ValueError:
        return ""
    return "NaN, Infinity, or half of a surrogate pair, which JSON does not have"


def _delimited_rows(path: Path, text: str) -> list[Row]:
    delimiter = _delimiter(text)
    before = csv.field_size_limit(sys.maxsize)  # a document may be longer than its 128 KiB
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        rows = [Row(f"{path}, line {reader.line_num}", values) for values in reader]
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as {delimiter!r}-separated values: {error}; write it again") from None
    finally:
        csv.field_size_limit(before)
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{path} has the column {', '.join(map(repr, sorted(twice)))} more than once; name them apart")
    if wrong := [row.place for row in rows if None in row.values or None in row.values.values()]:
        raise UserError(f"{wrong[0]}: not as many values as the first line names columns; write it again")
    return rows


def _parquet_rows(path: Path, data: bytes) -> list[Row]:
    library = import_reader("pyarrow.parquet", f"{path} is Parquet, which")
    try:
        values: Sequence[Any] = library.read_table(io.BytesIO(data)).to_pylist()
    except Exception as error:  # pyarrow raises many kinds; all mean that the file is no good
        raise UserError(f"{path} is damaged: {error}; fetch it again") from error
    return [Row(f"{path}, row {number}", row) for number, row in enumerate(values, 1)]


def import_reader(module: str, what: str) -> Any:
    """A module of the extra ``text``.

    Args:
        module: Its name.
        what: Needs it, for the message.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.partition(".")[0]
        raise UserError(f"{what} needs {name}: pip install 'qarat[text]' (or {name}); or give .jsonl") from None

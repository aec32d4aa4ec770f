"""Text as documents: read from files or the hub, bundled, or one file split in three.

A document is a text that belongs together. It is the unit by which token sets are kept apart, so text is never split
inside one; whoever has a single long text has to say where its parts are.
"""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from qarat.ground.errors import UserError

_BUNDLED = Path(__file__).parents[1] / "bundled" / "text"
_END = "<|endoftext|>"
Slice = Literal["calibration", "selection", "report"]
Language = Literal["python", "english"]
# WikiText raw: an article opens with " = Title = ", its sections with " = = Title = = " (Merity et al. 2016).
_HEADING = re.compile(r"^ = [^=\n].* = ?$", re.MULTILINE)


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text that belongs together.

    Attributes:
        source: Where it comes from; windows of one source count as one cluster in standard errors.
        text: The text.
    """

    source: str
    text: str


class _Line(msgspec.Struct):
    """What is read of a line of JSON; other fields are left aside."""

    text: str
    source: str | int | None = None
    file: str | None = None


def read_documents(name: str) -> tuple[Document, ...]:
    """Read the documents of a file, or of a dataset on the hub.

    Args:
        name: A ``.jsonl`` file (one object a line with ``text``, and perhaps ``source`` or ``file``); any other text
            file, which is cut at ``<|endoftext|>`` or, if it is WikiText raw, at article headings, and else is one
            document; or ``hub:DATASET[/CONFIG][:SPLIT][:COLUMN]``, where DATASET is OWNER/NAME.

    Raises:
        UserError: No such file, not UTF-8, no text in it, a malformed line (with its number); no ``datasets`` library.
    """
    if name.startswith("hub:"):
        documents = _read_hub(name)
    else:
        path = Path(name)
        text = _read_text(path)
        documents = _parse_lines(path, text) if path.suffix == ".jsonl" else _split_text(path.name, text)
    if not any(d.text.strip() for d in documents):
        raise UserError(f"{name} holds no text; give a file with some")
    return documents


def read_rows(name: str) -> tuple[str, ...]:
    """The rows of a text as the hub's datasets have them.

    Args:
        name: As `read_documents` takes it: the column of a dataset; the texts of a ``.jsonl`` file; or the lines of any
            other file, each with its newline, blank ones as the empty row (as WikiText's are on the hub).

    Raises:
        UserError: As `read_documents`.
    """
    if name.startswith("hub:"):
        return tuple(_load_column(name)[1])
    if name.endswith(".jsonl"):
        return tuple(d.text for d in _parse_lines(Path(name), _read_text(Path(name))))
    return tuple(line if line.strip() else "" for line in read_lines(name))


def read_lines(name: str) -> tuple[str, ...]:
    """A text in pieces that, one behind the other, are the whole.

    Args:
        name: As `read_documents` takes it: the lines of a text file; of anything else the rows, each ending in a
            newline, an empty one as the line that WikiText's files have in its place.

    Raises:
        UserError: As `read_documents`.
    """
    if name.startswith("hub:") or name.endswith(".jsonl"):
        return tuple((row or " ").removesuffix("\n") + "\n" for row in read_rows(name))
    return tuple(re.findall(r"[^\n]*\n|[^\n]+", _read_text(Path(name))))  # splitlines knows other ends of a line


def article_starts(text: str) -> tuple[int, ...]:
    """Where the articles of WikiText begin, as offsets in characters; none if the text is something else."""
    return tuple(m.start() for m in _HEADING.finditer(text))


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise UserError(f"{path} is a folder; give one text file, or a .jsonl file with one document a line")
    if not path.is_file():
        raise UserError(f"no such file: {path}; give a text file, a .jsonl file, or hub:OWNER/NAME")
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x}); "
            "convert it first, for example with: iconv -f latin1 -t utf-8"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _parse_lines(path: Path, text: str) -> tuple[Document, ...]:
    documents: list[Document] = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON strings may hold U+2028
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line, type=_Line)
        except msgspec.DecodeError as error:
            raise UserError(f"{path}, line {number}: {error}; expected an object with a string `text`") from None
        source = row.source or row.file or f"{path.name}#{len(documents) + 1}"
        documents.append(Document(str(source), row.text))
    return tuple(documents)


def _split_text(name: str, text: str) -> tuple[Document, ...]:
    """The documents of a plain text: at end-of-text marks, at WikiText's article headings, or all of it."""
    starts = article_starts(text)
    if _END in text:
        pieces = text.split(_END)
    elif starts:
        ends = [*starts[1:], len(text)]
        pieces = [text[: starts[0]], *(text[a:b] for a, b in zip(starts, ends, strict=True))]
    else:
        pieces = [text]
    kept = [piece.strip() for piece in pieces if piece.strip()]
    return tuple(Document(f"{name}#{number}", piece) for number, piece in enumerate(kept, 1))


def _read_hub(name: str) -> tuple[Document, ...]:
    home, texts = _load_column(name)
    if any(_HEADING.match(text) for text in texts):  # WikiText on the hub: a row is a line
        return _split_text(home, "".join(texts))
    return tuple(Document(f"{home}#{number}", text) for number, text in enumerate(texts, 1))


def _load_column(name: str) -> tuple[str, list[str]]:
    """The column of a dataset on the hub, and where it comes from."""
    pattern = r"hub:([^/:]+/[^/:]+)(?:/([^/:]+))?(?::([^:]*))?(?::([^:]*))?"
    if not (match := re.fullmatch(pattern, name)):
        raise UserError(f"{name!r} is not hub:OWNER/NAME[/CONFIG][:SPLIT][:COLUMN]")
    dataset, config, split, column = match[1], match[2], match[3] or "train", match[4] or "text"
    try:
        library: Any = importlib.import_module("datasets")
    except ImportError:
        raise UserError(f"{name} needs the `datasets` library: pip install datasets; or give a file") from None
    try:
        rows = library.load_dataset(dataset, config, split=split)
    except Exception as error:  # the client raises many kinds; all mean that the data could not be had
        raise UserError(f"{name} cannot be loaded: {error}") from error
    if column not in rows.column_names:
        raise UserError(f"{name} has no column {column!r}; it has {', '.join(rows.column_names)}")
    return f"{dataset}/{split}", list(rows[column])


def bundled_documents(which: Slice, language: Language = "python") -> tuple[Document, ...]:
    """One of the package's own text slices.

    Raises:
        UserError: If this installation lacks them.
    """
    return read_documents(str(bundled_file(which, language)))


def bundled_file(which: Slice, language: Language = "python") -> Path:
    """Where one of the package's own text slices lies: Python source, or what Python's documentation says in English.

    Raises:
        UserError: If this installation lacks them.
    """
    path = _BUNDLED / ("" if language == "python" else language) / f"{which}.jsonl"
    if not path.is_file():
        script = "corpus.py slices" if language == "python" else f"{language}.py"
        raise UserError(f"{path} is missing; install qarat again, or in a checkout run: python reference/{script}")
    return path


def split_documents(documents: Sequence[Document], seed: int) -> tuple[tuple[Document, ...], ...]:
    """Split one file's documents into calibration, selection and report, at random, roughly 1:1:2 by characters.

    Documents are kept whole, and documents with equal text stay together.

    Raises:
        UserError: Fewer than three distinct documents.
    """
    groups: dict[str, list[int]] = {}
    for index, document in enumerate(documents):
        groups.setdefault(document.text, []).append(index)
    if len(groups) < 3:
        raise UserError(
            f"one file for all three token sets needs at least three different documents, this one has {len(groups)}; "
            "separate them with <|endoftext|> or one a line in a .jsonl file, or give three files"
        )
    texts = list(groups)
    random.Random(seed).shuffle(texts)
    weights, filled = (1, 1, 2), [0.0, 0.0, 0.0]
    chosen: tuple[list[int], ...] = ([], [], [])
    for text in texts:
        emptiest = min(range(3), key=lambda i: (filled[i], -weights[i]))
        filled[emptiest] += (len(text) + 1) * len(groups[text]) / weights[emptiest]
        chosen[emptiest].extend(groups[text])
    return tuple(tuple(documents[i] for i in sorted(indices)) for indices in chosen)

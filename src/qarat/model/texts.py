"""Text as documents: read from files or the hub, bundled, or one file split in three.

A document is a text that belongs together. It is the unit by which token sets are kept apart, so text is never split
inside one; whoever has a single long text has to say where its parts are.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, Literal, TypeGuard

import msgspec
from transformers import PreTrainedTokenizerBase

from qarat.ground.errors import UserError, first_line
from qarat.model.text_files import HUB, Row, decoded_cell, import_reader, read_file

_BUNDLED = Path(__file__).parents[1] / "bundled" / "text"
_ENDS = re.compile(r"<\|end_?of_?text\|>")  # GPT-2's and LLaMA 3's
_COLUMNS = ("text", "messages")  # looked for in this order, where none is named
_LONGEST_KEY = 40
_DAY = date(2024, 7, 26)  # what Llama 3.1's template falls back to
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


class Corpus(msgspec.Struct, frozen=True):
    """A text as it was read.

    Attributes:
        home: Where it comes from, which its parts are numbered behind.
        pieces: The whole, of a plain text; else the rows of a table.
        sources: The source of each row; None of a plain text.
    """

    home: str
    pieces: tuple[str, ...]
    sources: tuple[str, ...] | None = None

    @property
    def documents(self) -> tuple[Document, ...]:
        """A plain text cut at end-of-text marks, or else at WikiText's headings; of a table the rows.

        Where the rows are the lines of WikiText, as on the hub, they are put together first.
        """
        if self.sources is None:
            return _split_text(self.home, self.pieces[0])
        if _are_lines_of_wikitext(self.pieces):
            return _split_text(self.home, "".join(row and row.removesuffix("\n") + "\n" for row in self.pieces))
        return tuple(Document(source, piece) for source, piece in zip(self.sources, self.pieces, strict=True))

    @property
    def rows(self) -> tuple[str, ...]:
        """As the hub's datasets have them; of a plain text the lines, each with its newline, blank ones empty."""
        if self.sources is not None:
            return self.pieces
        return tuple(line if line.strip() else "" for line in self.lines)

    @property
    def lines(self) -> tuple[str, ...]:
        """Pieces that, one behind the other, are the whole.

        The lines of a plain text; of a table the rows, each ending in a newline, an empty one as the line that
        WikiText's files have in its place.
        """
        if self.sources is not None:
            return tuple((row or " ").removesuffix("\n") + "\n" for row in self.pieces)
        return tuple(re.findall(r"[^\n]*\n|[^\n]+", self.pieces[0]))  # splitlines knows other ends of a line


def read_text(name: str, column: str | None = None, tokenizer: PreTrainedTokenizerBase | None = None) -> Corpus:
    """Read a file, or a dataset on the hub.

    Args:
        name: A file of rows (JSON, one object a line or a list of them; CSV, TSV, Parquet), of which `column` is the
            text, and ``source`` or ``file``, if there, say where it comes from; any other text file; either may be
            packed by gzip, bzip2 or xz; or ``hub:DATASET[/CONFIG][:SPLIT][:COLUMN]``, where DATASET is OWNER/NAME.
        column: Which column holds the text, or chats as lists of messages; default ``text``, else ``messages``.
        tokenizer: Whose template chats are written out by; without it they are refused.

    Raises:
        UserError: As `read_file`; no such column, or one that holds something else (names those there are); no
            template for chats, or one that refuses them; a column of a plain text; no text at all.
    """
    if name.startswith(HUB):
        read = _read_hub(name, column, tokenizer)
    else:
        path = Path(name)
        content = read_file(path)
        if not isinstance(content, str):
            read = _read_table(path.name, content, column, tokenizer)
        elif column is not None:
            raise UserError(f"{name} is plain text, without columns; leave `column` out")
        else:
            read = Corpus(path.name, (content,))
    if not any(piece.strip() for piece in read.pieces):
        raise UserError(f"{name} holds no text; give a file with some")
    return read


def read_documents(
    name: str, column: str | None = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[Document, ...]:
    """The documents of a text; arguments and errors as `read_text`."""
    return read_text(name, column, tokenizer).documents


def article_starts(text: str) -> tuple[int, ...]:
    """Where the articles of WikiText begin, as offsets in characters; none if the text is something else."""
    return tuple(m.start() for m in _HEADING.finditer(text))


def _read_table(
    home: str, rows: Sequence[Row], column: str | None, tokenizer: PreTrainedTokenizerBase | None
) -> Corpus:
    if not rows:
        return Corpus(home, ())
    named = column or _default_column(rows[0].values)
    pieces: list[str] = []
    sources: list[str] = []
    for number, (place, values) in enumerate(rows, 1):
        if not isinstance(values, dict):
            raise UserError(f"{place}: {_kind(values)}; expected an object with a string `text`")
        if named not in values:
            raise _no_column(place, named, list(values))
        pieces.append(_written_out(place, named, values[named], tokenizer))
        sources.append(str(values.get("source") or values.get("file") or f"{home}#{number}"))
    return Corpus(home, tuple(pieces), tuple(sources))


def _default_column(first: object) -> str:
    return next((name for name in _COLUMNS if isinstance(first, dict) and name in first), _COLUMNS[0])


def _no_column(place: str, column: str, there: Sequence[str]) -> UserError:
    keys = ", ".join(key if len(key) <= _LONGEST_KEY else f"{key[:_LONGEST_KEY]}…" for key in map(str, there))
    return UserError(
        f"{place} has no column {column!r}; it has {keys or 'none'}; name the one with the text by `column`, or "
        "write what belongs together into `text`"
    )


def _written_out(place: str, column: str, value: object, tokenizer: Any) -> str:
    """The text of a cell; a chat as the tokenizer's template has it.

    Raises:
        UserError: Another kind of value; no template, or one that refuses the chat.
    """
    if isinstance(value, str):
        try:
            inner = decoded_cell(value)
        except ValueError:
            raise UserError(f"{place}: {column} is a chat that is neither JSON nor Python; write it as JSON") from None
        if not _is_chat(inner):
            return value
        value = inner
    if not _is_chat(value):
        first = value[0] if isinstance(value, list) and value else None
        keys = f" with {', '.join(first)}" if isinstance(first, dict) else ""
        raise UserError(
            f"{place}: {column} is {_kind(value)}{keys}, neither a string nor a chat (a list of messages with role and "
            "content); write it so, or name another `column`"
        )
    if any(isinstance(message.get("content"), list) for message in value):  # which most templates print as it stands
        raise UserError(f"{place}: {column} has a message whose content is a list of parts; write it as one string")
    if getattr(tokenizer, "chat_template", None) is None:
        raise UserError(f"{place}: {column} is a chat, and the tokenizer has no chat template; write it into `text`")
    try:
        # Some templates ask for today's date; a text that changes with the day is no text to measure on.
        text: str = tokenizer.apply_chat_template(value, tokenize=False, strftime_now=_DAY.strftime)
    except Exception as error:  # templates raise what they like
        raise UserError(f"{place}: the tokenizer's chat template refuses {column}: {error}") from error
    # Blank space of the template's own, in front of a BOS, would hide that there is one already.
    begins = tokenizer.bos_token is not None and text.lstrip().startswith(tokenizer.bos_token)
    return text.lstrip() if begins else text


def _is_chat(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


def _kind(value: object) -> str:
    """What JSON calls a value."""
    if value is None:
        return "null"
    names = {bool: "a truth value", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")


def _split_text(name: str, text: str) -> tuple[Document, ...]:
    """The documents of a plain text: at end-of-text marks, at WikiText's article headings, or all of it."""
    starts = article_starts(text)
    if _ENDS.search(text):
        pieces = _ENDS.split(text)
    elif starts:
        ends = [*starts[1:], len(text)]
        pieces = [text[: starts[0]], *(text[a:b] for a, b in zip(starts, ends, strict=True))]
    else:
        pieces = [text]
    kept = [piece.strip() for piece in pieces if piece.strip()]
    return tuple(Document(f"{name}#{number}", piece) for number, piece in enumerate(kept, 1))


def _are_lines_of_wikitext(rows: Sequence[str]) -> bool:
    return any(map(_HEADING.match, rows)) and not any("\n" in row.removesuffix("\n") for row in rows)


def _read_hub(name: str, column: str | None, tokenizer: PreTrainedTokenizerBase | None) -> Corpus:
    pattern = r"hub:([^/:]+/[^/:]+)(?:/([^/:]+))?(?::([^:]*))?(?::([^:]*))?"
    if not (match := re.fullmatch(pattern, name)):
        raise UserError(f"{name!r} is not hub:OWNER/NAME[/CONFIG][:SPLIT][:COLUMN]")
    dataset, config, split = match[1], match[2], match[3] or "train"
    library = import_reader("datasets", name)
    try:
        rows = library.load_dataset(dataset, config, split=split)
    except Exception as error:  # the client raises many kinds; all mean that the data could not be had
        raise UserError(f"{name} cannot be loaded: {first_line(error)}") from error
    named = match[4] or column or _default_column(dict.fromkeys(rows.column_names))
    if named not in rows.column_names:
        raise _no_column(name, named, rows.column_names)
    home = f"{dataset}/{split}"
    cells = [Row(f"{name}, row {number}", {named: value}) for number, value in enumerate(rows[named], 1)]
    return _read_table(home, cells, named, tokenizer)


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


def split_documents(
    documents: Sequence[Document], seed: int, parts: Sequence[int] = (1, 1, 2)
) -> tuple[tuple[Document, ...], ...]:
    """Split one file's documents into token sets, at random.

    Documents are kept whole, and documents with equal text stay together.

    Args:
        documents: Of the file.
        seed: Of the order in which they are dealt out.
        parts: Characters of each set, roughly, as parts of the whole; those of calibration, selection and report.

    Raises:
        UserError: Fewer distinct documents than sets.
    """
    groups: dict[str, list[int]] = {}
    for index, document in enumerate(documents):
        groups.setdefault(document.text, []).append(index)
    if len(groups) < len(parts):
        number = {2: "two", 3: "three"}[len(parts)]
        raise UserError(
            f"one file for {number} token sets needs at least {number} different documents, this one has "
            f"{len(groups)}; separate them with <|endoftext|> or one a line in a .jsonl file, or give {number} files"
        )
    texts = list(groups)
    random.Random(seed).shuffle(texts)
    filled = [0.0] * len(parts)
    chosen: list[list[int]] = [[] for _ in parts]
    for text in texts:
        emptiest = min(range(len(parts)), key=lambda i: (filled[i], -parts[i]))
        filled[emptiest] += (len(text) + 1) * len(groups[text]) / parts[emptiest]
        chosen[emptiest].extend(groups[text])
    return tuple(tuple(documents[i] for i in sorted(indices)) for indices in chosen)

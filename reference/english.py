"""The English text slices of the package: what the standard library says of itself, and Python's documentation in it.

What: the prose of docstrings and comments of every standard library module, and the language reference that `help()`
shows (`pydoc_data.topics`), all under Python's licence, so that it may ship. A model of natural language is calibrated
and measured on it where nobody gave better text. Given up: it is technical, and no published perplexity is of it.

How: paragraphs that are sentences, each kept where it stands first; a module is a document; documents are shuffled with
a seed and dealt out whole.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import random
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from corpus import SEED, python_files

SHARES = {"calibration": 0.21, "selection": 0.21, "report": 0.58}  # of the characters
SHORTEST = 3_000  # characters of a document; shorter ones hold no window
WORDS, LETTERS = 12, 0.75  # of a paragraph: at least so many, and of its characters so many letters


def paragraphs(source: str) -> Iterator[str]:
    """The prose of a module, in order: of docstrings, and of comments of several lines."""
    pieces: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and (text := ast.get_docstring(node)):
            pieces.append((node.body[0].lineno, text))
    comments = re.compile(r"(?:^[ \t]*#.*\n)+", re.MULTILINE)
    for match in comments.finditer(source):
        lines = [re.sub(r"^[ \t]*#+ ?", "", line) for line in match[0].splitlines()]
        pieces.append((source.count("\n", 0, match.start()), "\n".join(lines)))
    for _, text in sorted(pieces):
        yield from cut(text)


def cut(text: str) -> Iterator[str]:
    """The paragraphs of a text that are prose, each in one line."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if paragraph.strip() and is_prose(paragraph):
            yield " ".join(paragraph.split())


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph is made of sentences rather than of code, tables or markup."""
    words = paragraph.split()
    letters = sum(c.isalpha() for c in paragraph)
    plain = sum(word.strip(".,;:()'\"").isalpha() for word in words)
    return (
        len(words) >= WORDS
        and letters >= LETTERS * len(paragraph)
        and plain >= 0.8 * len(words)
        and paragraph[0].isupper()
        and paragraph.rstrip()[-1] in ".:!?"
        and ">>>" not in paragraph
    )


def documents() -> dict[str, str]:
    """Name to prose of every module and topic that has enough; a paragraph stands only where it comes first."""
    seen: set[str] = set()
    found: dict[str, str] = {}
    for name, pieces in sources():
        kept = [piece for piece in pieces if not (piece in seen or seen.add(piece))]
        if len(text := "\n".join(kept)) >= SHORTEST:
            found[name] = text
    return found


def sources() -> Iterator[tuple[str, list[str]]]:
    """Everything there is, as (name, paragraphs)."""
    for name, path in python_files():
        if name.startswith("stdlib/") and "/test" not in name and "/pydoc_data/" not in name:
            try:
                with warnings.catch_warnings(action="ignore"):  # of escapes in old docstrings
                    yield name, list(paragraphs(path.read_text(encoding="utf-8")))
            except (SyntaxError, UnicodeDecodeError):
                continue  # broken on purpose, for tests of the library
    for name, text in topics.items():
        yield f"topics/{name}", list(cut(text))


def write(folder: Path) -> None:
    """Write the three slices as JSON lines (`source`, `text`)."""
    texts = documents()
    names = sorted(texts)
    random.Random(SEED).shuffle(names)
    total, dealt = sum(map(len, texts.values())), 0
    folder.mkdir(parents=True, exist_ok=True)
    upto = 0.0
    for label, share in SHARES.items():
        upto += share
        lines: list[str] = []
        while names and dealt + len(texts[names[-1]]) / 2 <= upto * total + 1:
            name = names.pop()
            dealt += len(texts[name])
            lines.append(json.dumps({"source": f"docs/{name}", "text": texts[name]}, ensure_ascii=False))
        (folder / f"{label}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the English text slices.")
    bundled = Path(__file__).parent.parent / "src" / "qarat" / "bundled" / "text" / "english"
    parser.add_argument("-o", "--out", type=Path, default=bundled)
    write(parser.parse_args().out)

"""Perplexity by its name: how a text becomes the windows that a published number was measured on.

The same model on the same text has perplexities that differ by tens of per cent, by how windows are cut and what of
them is scored. So a convention has a name, its name says the length of its windows, and both are part of the token set:

- ``windows-N-bos`` (also ``-once``, ``-nobos``): windows inside one document, as `qarat.model.tokens` cuts them.
- ``wikitext2-N``: what GPTQ and most papers measure on the raw test split of WikiText-2, with N = 2048. The rows joined
  by two newlines and tokenized once, as the tokenizer does by itself; windows one after the other.
- ``lm-eval-words-N``: the lm-evaluation-harness's ``wikitext`` task, whose perplexity is one per *word*. Each article
  by itself, its spaces repaired by the harness's own rules, N tokens read at a time; the last window of an article
  reaches back, so that every token is predicted once.
- ``llama.cpp-N``: llama.cpp's perplexity tool with a context of N. The file tokenized once, chunks one after the other,
  BOS in the place of each chunk's first token if the tokenizer adds it, only the second half of a chunk scored.

Each says how, not of what: the same name on another text is another number, and the token set's hash says so.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.model.model import Model
from qarat.model.texts import Corpus, Document, article_starts, bundled_file, read_text
from qarat.model.token_sets import bundled_language
from qarat.model.tokenizing import check_kept
from qarat.model.tokens import NOTHING, Bos, TokenSet, default_bos, hash_text, make_token_set
from qarat.stages.measure.tasks.harness import import_harness

CONVENTIONS = {
    "windows-N-bos": "windows of N tokens inside a document, each begun with BOS; also windows-N-once, windows-N-nobos",
    "wikitext2-N": "rows joined and tokenized once, windows of N (published with 2048, the default)",
    "lm-eval-words-N": "the lm-evaluation-harness's word perplexity, N tokens read at a time (default: the model's)",
    "llama.cpp-N": "llama.cpp's perplexity tool, chunks of N (default 512), their second half scored",
}
"""Name to what it says; N is a number of tokens."""

_BOS: dict[str, Bos] = {"bos": "each", "once": "once", "nobos": "never"}
_NAME = re.compile(r"(windows|wikitext2|lm-eval-words|llama\.cpp)(?:-(\d+))?(?:-(bos|once|nobos))?")


class _Pieces(NamedTuple):
    """A text and where its parts begin.

    Attributes:
        text: The whole.
        starts: Offset of each part in characters, ascending, the first 0.
        sources: The source of each part.
    """

    text: str
    starts: tuple[int, ...]
    sources: tuple[str, ...]

    @property
    def documents(self) -> tuple[Document, ...]:
        """The parts."""
        ends = [*self.starts[1:], len(self.text)]
        spans = zip(self.sources, self.starts, ends, strict=True)
        return tuple(Document(source, self.text[start:end]) for source, start, end in spans)


def load_by_convention(
    model: Model,
    name: str,
    text: str | None = None,
    *,
    column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> TokenSet:
    """The report set that a named convention makes of a text.

    Args:
        model: Gives the tokenizer and the longest window.
        name: One of `CONVENTIONS`, N a number; without it the default.
        text: As `read_text` takes it; None for the package's own.
        column: As `read_text`.
        limit: At most so many windows, evenly spread; None for all, as published numbers have it.
        seed: For the choice of windows of ``windows-N-…``.

    Raises:
        UserError: An unknown name; windows longer than the model was trained for, or than the text; no BOS to put in
            front; the harness is missing; a tokenizer that loses text; as `read_text`.
    """
    kind, length, rule = _parse(name, model)
    if length > model.length:
        longest = f"the model was trained for {model.length}"
        raise UserError(f"{name}: windows of {length} tokens, {longest}; give an N of {model.length} or less")
    given = read_text(text or str(bundled_file("report", bundled_language(model))), column, model.tokenizer)
    if kind == "windows":
        bos = _BOS[rule]
        return make_token_set(
            "report", given.documents, model.tokenizer, length=length, bos=bos, limit=limit, seed=seed
        )
    if kind == "wikitext2":
        tokens = _wikitext2(model, given, length)
    elif kind == "llama.cpp":
        tokens = _llama_cpp(model, given, length)
    else:
        tokens = _words(model, given, length)
    return tokens if limit is None or limit >= len(tokens) else tokens.subset(limit)


def _parse(name: str, model: Model) -> tuple[str, int, str]:
    """The kind, N, and the BOS rule of ``windows``."""
    match = _NAME.fullmatch(name)
    if match is None or (match[1] == "windows") != bool(match[3]) or (match[1] == "windows" and not match[2]):
        raise UserError(f"unknown convention {name!r}: {nearest_names(name, CONVENTIONS)}")
    length = int(match[2]) if match[2] else {"wikitext2": 2048, "llama.cpp": 512}.get(match[1], model.length)
    least = 3 if match[1] == "llama.cpp" else 2  # of which the second half is scored
    if length < least:
        raise UserError(f"{name}: a window of {length} tokens predicts nothing; it needs at least {least}")
    return match[1], length, match[3] or ""


def _wikitext2(model: Model, source: Corpus, length: int) -> TokenSet:
    rows = source.rows
    pieces = _locate(source, [*(row + "\n\n" for row in rows[:-1]), rows[-1]])
    ids, offsets = _encode(model, pieces.text, add_special_tokens=True)
    windows = _cut(f"wikitext2-{length}", ids, length, least=1)
    return _token_set(f"wikitext2-{length}", windows, None, pieces, offsets[::length])


def _llama_cpp(model: Model, source: Corpus, length: int) -> TokenSet:
    """As ``perplexity()`` in llama.cpp's ``tools/perplexity/perplexity.cpp`` (ggml-org/llama.cpp, 050fc7f).

    It takes the names of control tokens for the letters that they are (``parse_special`` is false).
    """
    pieces = _locate(source, source.lines)
    tokenizer: Any = model.tokenizer
    # Without the last newline, as its option -f reads a file (common/arg.cpp).
    ids, offsets = _encode(model, pieces.text.removesuffix("\n"), add_special_tokens=False, split_special_tokens=True)
    bos = default_bos(tokenizer) == "each"
    if bos:
        ids, offsets = [tokenizer.bos_token_id, *ids], [0, *offsets]
    windows = _cut(f"llama.cpp-{length}", ids, length, least=2)
    targets = torch.full_like(windows, NOTHING)
    first = length // 2
    targets[:, first:-1] = windows[:, first + 1 :]
    if bos:
        windows[:, 0] = tokenizer.bos_token_id
    return _token_set(f"llama.cpp-{length}", windows, targets, pieces, offsets[::length])


def _words(model: Model, source: Corpus, length: int) -> TokenSet:
    """As the task ``wikitext`` of the harness, with its own code wherever it has a function for it."""
    utils = import_harness("lm_eval.utils")
    repaired = import_harness("lm_eval.tasks.wikitext.preprocess_wikitext").wikitext_detokenizer
    tokenizer: Any = model.tokenizer
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if prefix is None:
        raise UserError("lm-eval-words: the tokenizer has neither BOS nor EOS to put in front; take another convention")
    inputs: list[list[int]] = []
    targets: list[list[int]] = []
    sources: list[str] = []
    words: list[int] = []
    pages = _pages(source)
    check_kept(tokenizer, [page.text for page in pages])
    for page in pages:
        ids: list[int] = tokenizer.encode(repaired({"page": page.text}), verbose=False)
        before = len(inputs)
        for read, predicted in utils.get_rolling_token_windows(ids, prefix, length, 1):
            # What fills a short window up stands behind all that is scored; the text's own tokens bring nothing new.
            filling = list(itertools.islice(itertools.cycle(ids), length - len(read)))
            inputs.append(read + filling)
            unscored = len(read) - len(predicted)
            targets.append([NOTHING] * unscored + predicted + [NOTHING] * len(filling))
            sources.append(page.source)
            # The harness counts words before the repair, and an empty one at either end that is blank.
            words.append(len(re.split(r"\s+", page.text)) if len(inputs) == before + 1 else 0)
    hashes, homes = _identify(pages)
    convention, wanted = f"lm-eval-words-{length}", torch.tensor(targets)
    return TokenSet("report", convention, torch.tensor(inputs), tuple(sources), hashes, homes, wanted, tuple(words))


def _pages(source: Corpus) -> tuple[Document, ...]:
    """The articles of WikiText as the harness's data set has them, blank ends and all; of anything else the documents.

    A page ends where the line of the next heading begins, without the newline in front of that.
    """
    pieces = _locate(source, source.lines)
    if not article_starts(pieces.text):
        return tuple(d for d in source.documents if d.text.strip())
    *others, last = pieces.documents
    cut = [Document(page.source, page.text.removesuffix("\n")) for page in others if page.text.strip()]
    return (*cut, last)


def _locate(source: Corpus, rows: Sequence[str]) -> _Pieces:
    """The whole of some rows and where its parts begin.

    Those are WikiText's articles; else the rows, if they are documents by themselves; else there is but one.
    """
    text = "".join(rows)
    by_row = (0,) if source.sources is None else itertools.accumulate(map(len, rows[:-1]), initial=0)
    starts = article_starts(text) or tuple(by_row)
    starts = starts if starts[0] == 0 else (0, *starts)
    return _Pieces(text, starts, tuple(f"{source.home}#{number}" for number in range(1, len(starts) + 1)))


def _encode(model: Model, text: str, **options: bool) -> tuple[list[int], list[int]]:
    """Token ids of a text and where each begins in it; options are the tokenizer's."""
    tokenizer: Any = model.tokenizer
    if not tokenizer.is_fast:
        raise UserError(f"{model.path} has no tokenizer.json, without which no token is known to belong to a source")
    check_kept(tokenizer, [text])
    encoded = tokenizer(text, **options, return_offsets_mapping=True, verbose=False)
    return encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]


def _cut(convention: str, ids: list[int], length: int, *, least: int) -> Tensor:
    """Windows one after the other, (windows, length); the tail is dropped."""
    count = len(ids) // length
    if count < least:
        needed = least * length
        raise UserError(f"{convention} needs {needed:,} tokens, the text has {len(ids):,}; give more, or a smaller N")
    return torch.tensor(ids[: count * length]).view(count, length)


def _token_set(
    convention: str, windows: Tensor, targets: Tensor | None, pieces: _Pieces, offsets: Sequence[int]
) -> TokenSet:
    """The set, each window's source the part in which it begins."""
    first = [bisect.bisect_right(pieces.starts, offset) - 1 for offset in offsets[: len(windows)]]
    sources = tuple(pieces.sources[index] for index in first)
    hashes, homes = _identify([d for d in pieces.documents if d.text.strip()])
    return TokenSet("report", convention, windows, sources, hashes, homes, targets)


def _identify(documents: Sequence[Document]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The hashes of some documents, and their sources."""
    return tuple(hash_text(d.text) for d in documents), tuple(d.source for d in documents)

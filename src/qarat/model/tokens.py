"""The three token sets: calibration, selection and report, with no text in common and the BOS rule written down.

Scales come from the first, choices are made on the second, every published number is measured on the third. Text is a
list of documents; windows are cut inside one document, never across two, so a window's source is known (standard errors
are clustered by it) and the sets can be told apart by the hashes of their documents. What is given up: the tail of a
document that fills no window, and documents shorter than one.

Whether windows begin with BOS decides whether a model trained that way has activation spikes at all (docs/spikes.md),
so the rule is part of a set's convention and thereby of its fingerprint.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from qarat.ground.errors import UserError
from qarat.ground.summaries import Summarized
from qarat.model.texts import Document
from qarat.model.tokenizing import check_kept
from qarat.values.limits import check_seed, check_windows

Bos = Literal["each", "once", "never"]

_CONVENTIONS: dict[str, str] = {"each": "bos", "once": "once", "never": "nobos"}
NOTHING = -100
"""The target where nothing is to be predicted; the number that torch and transformers leave out of a loss."""


class TokenSet(Summarized, msgspec.Struct, frozen=True, eq=False, dict=True):
    """Windows of token ids and where they come from; equal by content.

    Attributes:
        name: ``calibration``, ``selection`` or ``report``.
        convention: How windows were cut: ``windows-N-bos`` (each begins with BOS), ``windows-N-once`` (BOS only where a
            document begins) or ``windows-N-nobos``; or one of `qarat.stages.measure.conventions`. Behind it stands
            ``self`` where the model wrote them, or the mixture that they are of.
        windows: (windows, N) int64 token ids.
        sources: The source of each window.
        documents: SHA-256 of each text that the windows were drawn from, also where a limit left it without a window.
        document_sources: The source of each of ``documents``.
        targets: What is to be predicted, as `wanted`; None for the next token, and nothing behind the last.
        words: Words that the windows' losses are shared out to; none where the loss is one per token.
    """

    name: str
    convention: str
    windows: Tensor
    sources: tuple[str, ...]
    documents: tuple[str, ...]
    document_sources: tuple[str, ...]
    targets: Tensor | None = None
    words: tuple[int, ...] = ()

    def facts(self) -> dict[str, str]:
        """What tells it from another."""
        return {
            "name": self.name,
            "windows": f"{len(self)} of {self.length}",
            "convention": self.convention,
            "sources": f"{len(set(self.sources)):,}",
        }

    def __len__(self) -> int:
        """How many windows there are."""
        return self.windows.shape[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenSet) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[object, ...]:
        return self.name, self.fingerprint, self.sources, self.documents, self.document_sources

    @property
    def length(self) -> int:
        """Tokens of a window."""
        return self.windows.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the convention, the windows' ids and, where they are not simply the next tokens, the targets."""
        digest = hashlib.sha256(f"{self.convention} {tuple(self.windows.shape)} ".encode())
        for ids in (self.windows, *([] if self.targets is None else [self.targets])):
            digest.update(ids.contiguous().numpy().astype("<i8", copy=False).tobytes())
        return digest.hexdigest()

    @cached_property
    def text_fingerprint(self) -> str:
        """SHA-256 over the documents' hashes, whatever their order."""
        return hashlib.sha256(" ".join(sorted(set(self.documents))).encode()).hexdigest()

    def subset(self, count: int) -> TokenSet:
        """The same set with ``count`` of its windows, evenly spread and in order.

        Raises:
            UserError: If it has fewer, or its loss is one per word, which are those of whole documents.
        """
        if self.words:
            raise UserError(f"{self.convention} is measured on whole documents; leave the number of windows open")
        if not 1 <= count <= len(self):
            raise UserError(
                f"the {self.name} set has {len(self)} windows, {count} were asked for; give more text or ask less"
            )
        chosen = [i * len(self) // count for i in range(count)]
        sources = tuple(self.sources[i] for i in chosen)
        targets = None if self.targets is None else self.targets[chosen]
        return msgspec.structs.replace(self, windows=self.windows[chosen], sources=sources, targets=targets)

    def part(self, windows: slice) -> TokenSet:
        """The set of some neighbouring windows alone."""
        targets = None if self.targets is None else self.targets[windows].clone()
        return msgspec.structs.replace(
            self,
            windows=self.windows[windows].clone(),  # a view is pickled with all that it is a view of
            sources=self.sources[windows],
            targets=targets,
            words=self.words[windows],
        )

    def at_most(self, tokens: int) -> TokenSet:
        """The same set with no more windows than so many tokens fill, one at the least; evenly spread and in order."""
        return self.subset(min(len(self), max(1, tokens // self.windows.shape[1])))

    def batches(self, batch_tokens: int) -> list[Tensor]:
        """The windows in order, in chunks of at most ``batch_tokens`` tokens and at least one window.

        Returns:
            Tensors of (rows, N) int64; their rows one below the other are ``windows``.
        """
        return list(self.windows.split(max(1, batch_tokens // self.length)))

    def target_batches(self, batch_tokens: int) -> list[Tensor]:
        """`wanted` in the chunks of `batches`."""
        return list(self.wanted.split(max(1, batch_tokens // self.length)))

    @property
    def predicted(self) -> tuple[int, ...]:
        """Tokens to be predicted in each window."""
        return tuple((self.wanted != NOTHING).sum(1).tolist())

    @property
    def wanted(self) -> Tensor:
        """(windows, N) int64, what is to be predicted behind each token, `NOTHING` where nothing is."""
        if self.targets is not None:
            return self.targets
        return torch.cat([self.windows[:, 1:], torch.full((len(self), 1), NOTHING)], dim=1)


def default_bos(tokenizer: PreTrainedTokenizerBase) -> Bos:
    """``each`` if the tokenizer itself puts its BOS in front of a text, else ``never``."""
    bos: Any = tokenizer.bos_token_id
    ids: list[int] = tokenizer("a")["input_ids"]  # type: ignore[assignment]
    return "each" if bos is not None and ids[:1] == [bos] else "never"


def make_token_set(
    name: str,
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    bos: Bos = "each",
    limit: int | None = None,
    seed: int = 0,
    model_length: int | None = None,
) -> TokenSet:
    """Cut documents into windows of token ids.

    Args:
        name: Of the set.
        documents: Windows are cut inside each; a tail that fills no window is dropped.
        tokenizer: Its own special tokens are not added; BOS is put in front by hand, once where a document has its own.
        length: Tokens of a window, BOS included.
        bos: In front of each window, once in front of each document, or never.
        limit: At most so many windows: one at random from each of ``limit`` equal stretches, in document order.
        seed: For that choice.
        model_length: Tokens the model was trained to take at once; None leaves that unchecked.

    Raises:
        UserError: Window longer than the model's or than every document, no BOS to put in front, no text, a tokenizer
            that loses some of it, or a limit or seed out of range.
    """
    check_cut(name, tokenizer, length, bos, limit, model_length)
    check_seed(seed)
    if not any(d.text.strip() for d in documents):
        raise UserError(f"the {name} text is empty; give a file with some text")
    texts = [d.text for d in documents]
    front: list[int] = [] if bos == "never" else [tokenizer.bos_token_id]  # type: ignore[list-item]
    check_kept(tokenizer, texts)
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[assignment]
    # A text that came out of a template has its BOS already.
    bare = [ids[1:] if ids[:1] == front else ids for ids in encoded]
    cut = [(index, row) for index, ids in enumerate(bare) for row in _cut(ids, length, front, bos)]
    origins, rows = [index for index, _ in cut], [row for _, row in cut]
    if not rows:
        longest = max(map(len, encoded)) + len(front)
        raise UserError(
            f"no document of the {name} text holds a window of {length} tokens: the longest has {longest}"
            f"{' with BOS' if front else ''}; give a shorter `length` or longer documents"
        )
    kept = _spread(len(rows), limit, seed)
    used = list(dict.fromkeys(origins))
    return TokenSet(
        name=name,
        convention=spell_convention(length, bos),
        windows=torch.tensor([rows[i] for i in kept], dtype=torch.long),
        sources=tuple(documents[origins[i]].source for i in kept),
        documents=tuple(hash_text(documents[i].text) for i in used),
        document_sources=tuple(documents[i].source for i in used),
    )


def spell_convention(length: int, bos: Bos) -> str:
    """How windows of so many tokens were cut."""
    return f"windows-{length}-{_CONVENTIONS[bos]}"


def check_cut(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    bos: Bos,
    limit: int | None,
    model_length: int | None,
) -> None:
    """Refuse windows that cannot be cut, or drawn; arguments and errors as `make_token_set`, but for those of text."""
    if bos not in _CONVENTIONS:
        raise UserError(f"unknown BOS rule {bos!r}; known: {', '.join(_CONVENTIONS)}")
    if length < 2:
        raise UserError(f"a window of {length} tokens predicts nothing; it needs at least 2")
    if limit is not None:
        check_windows(name, limit)
    if model_length is not None and length > model_length:
        raise UserError(
            f"window of {length} tokens, the model was trained for {model_length}; give `length` {model_length} or less"
        )
    if bos != "never" and tokenizer.bos_token_id is None:
        raise UserError(f"BOS was asked for ({bos!r}), but the tokenizer has none; use 'never'")


def _cut(ids: list[int], length: int, front: list[int], bos: Bos) -> list[list[int]]:
    """The full windows of one document."""
    if bos == "each":
        step = length - 1
        return [front + ids[i : i + step] for i in range(0, len(ids) - step + 1, step)]
    ids = front + ids
    return [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]


def _spread(total: int, limit: int | None, seed: int) -> list[int]:
    """Ascending indices: all, or one at random from each of ``limit`` equal stretches."""
    if limit is None or total <= limit:
        return list(range(total))
    generator = random.Random(seed)
    return [generator.randrange(i * total // limit, (i + 1) * total // limit) for i in range(limit)]


def hash_text(text: str) -> str:
    """SHA-256 of a text; blank space around it makes no other text of it."""
    return hashlib.sha256(text.strip().encode()).hexdigest()

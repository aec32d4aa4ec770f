"""The three token sets of a job, from the texts that were given or the package's own, with no text in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import msgspec
import torch
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.model.drawing import draw_windows
from qarat.model.mixtures import SELF, Share, parse_mixture, refuse_self, share_out, spell
from qarat.model.model import Model
from qarat.model.reference_models import reference_models
from qarat.model.texts import Document, Language, bundled_documents, read_documents, split_documents
from qarat.model.tokens import (
    Bos,
    TokenSet,
    check_cut,
    default_bos,
    hash_text,
    make_token_set,
    spell_convention,
)

_NAMES: tuple[Literal["calibration"], Literal["selection"], Literal["report"]] = ("calibration", "selection", "report")
_LENGTH = 512  # tokens of a window where neither the caller nor the model asks for fewer

Draw = Callable[[Model, int, int, Bos, int, Progress], Tensor]
"""Gives windows that a model writes, as `draw_windows` does."""


class Part(NamedTuple):
    """One text of a token set.

    Attributes:
        share: Its name and weight.
        documents: Of it; None of what the model itself writes.
    """

    share: Share
    documents: tuple[Document, ...] | None


Parts = tuple[Part, ...]
"""What a token set is cut from; one text mostly."""


def check_disjoint(*sets: TokenSet) -> None:
    """Check that no text is in more than one of the sets.

    Raises:
        UserError: Naming every document that is, and the sets.
    """
    homes: dict[str, dict[int, str]] = {}
    for index, tokens in enumerate(sets):
        for digest, source in zip(tokens.documents, tokens.document_sources, strict=True):
            homes.setdefault(digest, {}).setdefault(index, f"{source} in {tokens.name}")
    shared = [", ".join(places.values()) for places in homes.values() if len(places) > 1]
    if shared:
        raise UserError(
            f"the token sets share {len(shared)} documents:\n  "
            + "\n  ".join(shared)
            + "\ngive files with no text in common, or one file, which is then split by documents"
        )


def bundled_language(model: Model) -> Language:
    """In what language the package's own text suits a model: Python for those of this project, which share a tokenizer.

    Their quantized folders have that tokenizer, too.
    """
    mine = model.folder / "tokenizer.json"
    theirs = [folder / mine.name for folder in reference_models().values()]
    alike = mine.is_file() and any(f.is_file() and f.read_bytes() == mine.read_bytes() for f in theirs)
    return "python" if alike else "english"


def load_token_sets(
    model: Model,
    *,
    calibration: str | None = None,
    selection: str | None = None,
    report: str | None = None,
    column: str | None = None,
    length: int | None = None,
    bos: Bos | Literal["auto"] = "auto",
    samples: int = 64,
    report_samples: int = 256,
    seed: int = 0,
    draw: Draw = draw_windows,
    progress: Progress = no_progress,
) -> tuple[TokenSet, TokenSet, TokenSet]:
    """The three token sets of a run.

    Args:
        model: Gives the tokenizer and the longest window.
        calibration: As `read_text` takes it; ``self`` for what the model itself writes; or several by weight, as
            ``mix:3=code.jsonl,1=prose.txt``. Without ``selection`` it is split by documents, those of each text, into
            the sets that have no text of their own.
        selection: As ``calibration``, but never ``self``. Without ``report`` it is split by documents into the two.
        report: As ``selection``. With none of the three given, or nothing but ``self``, the package's own text is used,
            in the language of `bundled_language`.
        column: As `read_text`, of every text that is given.
        length: Tokens of a window; default the model's own length, at most 512.
        bos: As `make_token_set`; ``auto`` does as the tokenizer does (`default_bos`).
        samples: At most so many windows for calibration, and for selection.
        report_samples: At most so many windows for the report.
        seed: For the split, the choice of windows, and what the model writes.
        draw: Writes it.
        progress: Called with the tokens that are written.

    Raises:
        UserError: Some but not all of the texts given, texts in common, a mixture of which a text is too short for its
            share, or as `parse_mixture`, `refuse_self`, `read_text`, `make_token_set` and `draw_windows`.
    """
    parts = _all_parts(model, calibration, selection, report, column, seed)
    cutter = Cutter(model, length, bos, seed, draw, progress)
    limits = (samples, samples, report_samples)
    sets = [cutter.cut(name, some, limit) for name, some, limit in zip(_NAMES, parts, limits, strict=True)]
    check_disjoint(*sets)
    return sets[0], sets[1], sets[2]


def load_report_set(
    model: Model,
    *,
    calibration: str | None = None,
    selection: str | None = None,
    report: str | None = None,
    column: str | None = None,
    length: int | None = None,
    bos: Bos | Literal["auto"] = "auto",
    samples: int = 64,
    report_samples: int = 256,
    seed: int = 0,
) -> TokenSet:
    """The report set alone, where nothing is calibrated or chosen.

    It is the one of `load_token_sets`, whose arguments and errors these are; the other sets are cut only where they
    were given, so that they are kept apart, and nothing is drawn. Of no text, the package's own.
    """
    cutter = Cutter(model, length, bos, seed)
    if selection is None and calibration in (None, SELF):
        parts = _own(model, "report", column) if report is None else read_parts(model, report, column)
        return cutter.cut("report", parts, report_samples)
    every = _all_parts(model, calibration, selection, report, column, seed)
    limits = (samples, samples, report_samples)
    written = [tuple(part for part in parts if part.documents is not None) for parts in every]
    sets = [cutter.cut(name, some, limit) for name, some, limit in zip(_NAMES, written, limits, strict=True) if some]
    check_disjoint(*sets)
    return sets[-1]


def read_parts(model: Model, name: str, column: str | None = None) -> Parts:
    """The texts behind a name.

    Args:
        model: Whose template chats are written out by.
        name: As `parse_mixture` takes it.
        column: As `read_text`.

    Raises:
        UserError: As `parse_mixture` and `read_text`.
    """
    return tuple(
        Part(share, None if share.text == SELF else read_documents(share.text, column, model.tokenizer))
        for share in parse_mixture(name)
    )


def split_parts(parts: Parts, seed: int, into: Sequence[int]) -> list[Parts]:
    """Texts split by documents, each of them; what the model itself writes is of the first set alone.

    Args:
        parts: Some.
        seed: As `split_documents`.
        into: As ``parts`` of `split_documents`.
    """
    split: list[Parts] = [() for _ in into]
    for share, documents in parts:
        pieces = [None] if documents is None else split_documents(documents, seed, into)
        for index, piece in enumerate(pieces):
            split[index] += (Part(share, piece),)
    return split


def _all_parts(
    model: Model,
    calibration: str | None,
    selection: str | None,
    report: str | None,
    column: str | None,
    seed: int,
) -> list[Parts]:
    """What each of the three sets is cut from."""
    texts = {"calibration": calibration, "selection": selection, "report": report}
    given = {name: text for name, text in texts.items() if text is not None}
    missing = [name for name in _NAMES if name not in given]
    for name in given.keys() - {"calibration"}:
        refuse_self(parse_mixture(given[name]))
    drawn = calibration == SELF
    if len(missing) == 3 or (drawn and missing == ["selection", "report"]):
        return [
            read_parts(model, given[name], column) if name in given else _own(model, name, column) for name in _NAMES
        ]
    if missing in (["selection"], ["selection", "report"]) and not drawn and calibration is not None:
        split = split_parts(read_parts(model, calibration, column), seed, (1, 1, 2)[: len(missing) + 1])
        return [*split, *([] if report is None else [read_parts(model, report, column)])]
    if missing == ["report"] and calibration is not None and selection is not None:
        split = split_parts(read_parts(model, selection, column), seed, (1, 2))
        return [read_parts(model, calibration, column), *split]
    if drawn and missing:
        raise UserError(
            f"text is missing for: selection; with `calibration` {SELF} give it (it is split by documents where "
            "`report` is missing), or neither (the bundled)"
        )
    if missing:
        raise UserError(
            f"text is missing for: {', '.join(missing)}; give all three (`calibration`, `selection`, `report`), "
            "`calibration` and one of the others or none (a text is then split by documents), or no text (the bundled)"
        )
    return [read_parts(model, text, column) for text in given.values()]


def _own(model: Model, name: Literal["calibration", "selection", "report"], column: str | None) -> Parts:
    """The package's own text for a set."""
    if column is not None:
        raise UserError(f"`column` {column} is of a text, and none was given; give `calibration` or `report`")
    return (Part(Share(1.0, name), bundled_documents(name, bundled_language(model))),)


class Cutter(NamedTuple):
    """How windows are cut, or drawn, whatever from; attributes as the arguments of `load_token_sets`."""

    model: Model
    length: int | None = None
    bos: Bos | Literal["auto"] = "auto"
    seed: int = 0
    draw: Draw = draw_windows
    progress: Progress = no_progress

    def cut(self, name: str, parts: Parts, limit: int) -> TokenSet:
        """A token set.

        Args:
            name: Of the set.
            parts: What it is cut from.
            limit: At most so many windows; of several texts just as many, each its share.

        Raises:
            UserError: A text with fewer windows than its share, or a share of none; or as `load_token_sets`.
        """
        counts = share_out(limit, [part.share.weight for part in parts])
        if len(parts) == 1:
            return self._cut_one(name, parts[0], limit)
        samples = "report_samples" if name == "report" else "samples"
        sets: list[TokenSet] = []
        for part, count in zip(parts, counts, strict=True):
            text, whole = part.share.text, f"of the {limit} windows of the {name} set"
            if not count:
                raise UserError(f"{text} has no share {whole}; give more `{samples}`, or it a larger weight")
            some = self._cut_one(name, part, count)
            if len(some) < count:
                raise UserError(
                    f"{text} holds {len(some)} windows, and its share {whole} is {count}; give more text, a smaller "
                    f"weight, or fewer `{samples}`"
                )
            sets.append(some)
        return join_token_sets(sets, f" {spell(tuple(part.share for part in parts))}")

    def _cut_one(self, name: str, part: Part, limit: int) -> TokenSet:
        model = self.model
        rule: Bos = default_bos(model.tokenizer) if self.bos == "auto" else self.bos
        length = min(model.length, _LENGTH) if self.length is None else self.length
        more = {"length": length, "bos": rule, "limit": limit, "model_length": model.length}
        if part.documents is not None:
            return make_token_set(name, part.documents, model.tokenizer, **more, seed=self.seed)
        check_cut(name, model.tokenizer, **more)
        windows = self.draw(model, limit, length, rule, self.seed, self.progress)
        sources = tuple(f"{SELF}#{number}" for number in range(1, limit + 1))
        texts = tuple(hash_text(str(model.tokenizer.decode(row))) for row in windows.tolist())
        return TokenSet(name, f"{spell_convention(length, rule)} {SELF}", windows, sources, texts, sources)


def join_token_sets(sets: Sequence[TokenSet], note: str = "") -> TokenSet:
    """One set of the windows of several, which were cut alike; the note goes behind the convention."""
    first = sets[0]
    return msgspec.structs.replace(
        first,
        convention=first.convention.partition(" ")[0] + note,
        windows=torch.cat([some.windows for some in sets]),
        sources=tuple(source for some in sets for source in some.sources),
        documents=tuple(digest for some in sets for digest in some.documents),
        document_sources=tuple(source for some in sets for source in some.document_sources),
    )

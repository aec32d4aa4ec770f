"""The three token sets of a job, from the texts that were given or the package's own, with no text in common."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from qarat.ground.errors import UserError
from qarat.model.model import Model
from qarat.model.reference_models import reference_models
from qarat.model.texts import Document, Language, bundled_documents, read_documents, split_documents
from qarat.model.tokens import Bos, TokenSet, default_bos, make_token_set

_NAMES = ("calibration", "selection", "report")
_LENGTH = 512  # tokens of a window where neither the caller nor the model asks for fewer


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
) -> tuple[TokenSet, TokenSet, TokenSet]:
    """The three token sets of a run.

    Args:
        model: Gives the tokenizer and the longest window.
        calibration: As `read_text` takes it. Without ``selection`` it is split by documents into the sets that have no
            text of their own.
        selection: As `read_text` takes it. Without ``report`` it is split by documents into the two.
        report: As `read_text` takes it. With none of the three given, the package's own text is used, in the
            language of `bundled_language`.
        column: As `read_text`, of every text that is given.
        length: Tokens of a window; default the model's own length, at most 512.
        bos: As `make_token_set`; ``auto`` does as the tokenizer does (`default_bos`).
        samples: At most so many windows for calibration, and for selection.
        report_samples: At most so many windows for the report.
        seed: For the split and the choice of windows.

    Raises:
        UserError: Some but not all of the texts given, texts in common, or as `read_text` and `make_token_set`.
    """
    names = {"calibration": calibration, "selection": selection, "report": report}
    missing = [name for name, path in names.items() if path is None]
    read = partial(read_documents, column=column, tokenizer=model.tokenizer)
    if len(missing) == 3:
        _refuse_column(column)
        language = bundled_language(model)
        texts = [bundled_documents(which, language) for which in ("calibration", "selection", "report")]
    elif missing in (["selection"], ["selection", "report"]) and calibration is not None:
        texts = list(split_documents(read(calibration), seed, parts=(1, 1, 2)[: len(missing) + 1]))
        texts += [] if report is None else [read(report)]
    elif missing == ["report"] and calibration is not None and selection is not None:
        texts = [read(calibration), *split_documents(read(selection), seed, parts=(1, 2))]
    elif missing:
        raise UserError(
            f"text is missing for: {', '.join(missing)}; give all three (`calibration`, `selection`, `report`), "
            "`calibration` and one of the others or none (a text is then split by documents), or no text (the bundled)"
        )
    else:
        texts = [read(path) for path in names.values() if path is not None]
    limits = (samples, samples, report_samples)
    sets = [
        _cut(model, name, text, length, bos, limit, seed)
        for name, text, limit in zip(_NAMES, texts, limits, strict=True)
    ]
    check_disjoint(*sets)
    return sets[0], sets[1], sets[2]


def load_report_set(
    model: Model,
    *,
    report: str | None = None,
    column: str | None = None,
    length: int | None = None,
    bos: Bos | Literal["auto"] = "auto",
    report_samples: int = 256,
    seed: int = 0,
) -> TokenSet:
    """The report set alone, where nothing is calibrated or chosen.

    It is the one of `load_token_sets`, whose arguments and errors these are; of no text, the package's own.
    """
    if report is None:
        _refuse_column(column)
        text = bundled_documents("report", bundled_language(model))
    else:
        text = read_documents(report, column, model.tokenizer)
    return _cut(model, "report", text, length, bos, report_samples, seed)


def _refuse_column(column: str | None) -> None:
    if column is not None:
        raise UserError(f"`column` {column} is of a text, and none was given; give `calibration` or `report`")


def _cut(
    model: Model,
    name: str,
    text: Sequence[Document],
    length: int | None,
    bos: Bos | Literal["auto"],
    limit: int,
    seed: int,
) -> TokenSet:
    tokenizer = model.tokenizer
    rule: Bos = default_bos(tokenizer) if bos == "auto" else bos
    size = min(model.length, _LENGTH) if length is None else length
    return make_token_set(
        name, text, tokenizer, length=size, bos=rule, limit=limit, seed=seed, model_length=model.length
    )

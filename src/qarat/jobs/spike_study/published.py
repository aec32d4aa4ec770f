"""Published figures of known checkpoints, to be set beside a study's own.

Only what a public source states, each with that source and its scheme. None is of the paper this study follows
(arXiv 2504.21553): its tables could not be recovered. Conventions differ between sources, so compare differences and
factors, and those only where the float perplexities agree.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

CAVEAT = "None is the first paper's (arXiv 2504.21553), whose tables could not be recovered; conventions differ."
"""What published figures are not."""


class PublishedResult(NamedTuple):
    """One published figure.

    Attributes:
        model: Checkpoint, as models are commonly named.
        quantity: Which figure it is, and of which scheme.
        value: As printed.
        source: Whose, and where it was read.
    """

    model: str
    quantity: str
    value: str
    source: str


class PublishedResults(NamedTuple):
    """Published figures.

    Attributes:
        rows: In an order to be read.
    """

    rows: tuple[PublishedResult, ...]


_FILE = Path(__file__).parents[2] / "bundled" / "spikes" / "published.jsonl"
_ROWS = msgspec.json.Decoder(dict[str, str]).decode_lines(_FILE.read_bytes())
PUBLISHED = PublishedResults(tuple(PublishedResult(**row) for row in _ROWS))


def published_of(name: str) -> PublishedResults:
    """The figures of a checkpoint, by the name it was opened by.

    Args:
        name: A folder, or a hub id.
    """
    own = name.rstrip("/").rpartition("/")[2].casefold().replace("_", "-")
    plain = own.removeprefix("meta-").removesuffix("-hf")  # not -chat or -instruct: those are other weights
    return PublishedResults(
        tuple(row for row in PUBLISHED.rows if plain in (row.model.casefold(), f"{row.model.casefold()}-v0.1"))
    )

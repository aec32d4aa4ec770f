"""What the name of a text may be beside a file or a dataset: the model itself, or several texts by weight.

``self`` stands for text drawn from the float model (`qarat.model.drawing`), and ``mix:3=code.jsonl,1=prose.txt`` for
windows of both, three to one. A file that is called so is named by its path, ``./self``. Nothing is read here, so that
a slip is found before anything is imported that takes seconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from qarat.ground.errors import UserError
from qarat.model.text_files import HUB, check_text

SELF = "self"
"""The name of what the model itself writes."""
MIX = "mix:"
"""What a mixture's name begins with."""
LANGUAGES: tuple[Literal["python"], Literal["english"]] = ("python", "english")
"""What the package's own text is in, where a study names it."""
_FORM = f"{MIX}3=one.txt,1=another.txt"
_NEXT = re.compile(r",(?=[^=,/]*=)")  # a comma in a path begins no part unless a weight stands behind it


class Share(NamedTuple):
    """One text of a mixture.

    Attributes:
        weight: Its windows, as parts of the whole.
        text: `SELF`, or as `qarat.model.texts.read_text` takes it.
    """

    weight: float
    text: str


Mixture = tuple[Share, ...]


def parse_mixture(name: str) -> Mixture:
    """The texts behind a name; one for what is no mixture.

    Args:
        name: A text, `SELF`, or texts by weight behind `MIX`.

    Raises:
        UserError: A mixture of less than two different texts, or a weight that is none.
    """
    if not name.startswith(MIX):
        return (Share(1.0, name),)
    shares = tuple(_parse_share(name, part) for part in _NEXT.split(name.removeprefix(MIX)))
    texts = [share.text for share in shares]
    if len(texts) < 2 or len(set(texts)) < len(texts):
        raise UserError(f"{name} is no mixture of at least two different texts; write {_FORM}")
    return shares


def _parse_share(name: str, part: str) -> Share:
    number, _, text = part.partition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not (0 < weight < math.inf) or not text:
        raise UserError(f"{name}: {part!r} is no weight above 0 and a text behind `=`; write {_FORM}")
    return Share(weight, text)


def spell(mixture: Mixture) -> str:
    """A mixture, or a text alone, without the places of one machine, as records have it."""
    homes = [_home(text) for _, text in mixture]
    weighed = ",".join(f"{share.weight:g}={home}" for share, home in zip(mixture, homes, strict=True))
    return f"{MIX}{weighed}" if len(mixture) > 1 else homes[0]


def _home(text: str) -> str:
    return text if text.startswith(HUB) else Path(text).name


def check_texts(calibration: Sequence[str], others: Sequence[str] = (), known: Sequence[str] = ()) -> None:
    """Refuse what is no text here, nor of the hub; and text of the model's own where text is to be judged by.

    Args:
        calibration: Each may be `SELF`, or have it among others.
        others: To choose by or to measure on.
        known: Names that stand for texts of the package's own.

    Raises:
        UserError: As `parse_mixture`, or `qarat.model.text_files.check_text`.
    """
    for name in (*calibration, *others):
        for share in parse_mixture(name):
            if share.text not in (SELF, *known):
                check_text(share.text)
    for name in others:
        refuse_self(parse_mixture(name))


def refuse_self(mixture: Mixture) -> None:
    """Refuse text of the model's own for choices and figures.

    Raises:
        UserError: It has some.
    """
    if any(share.text == SELF for share in mixture):
        raise UserError(
            f"{SELF} is for `calibration` alone: choices and figures need text that somebody wrote, as a model finds "
            "its own likelier than any other; give a text for `selection` and `report`, or leave them out"
        )


def share_out(total: int, weights: Sequence[float]) -> list[int]:
    """A number of windows by weight, whole ones, by largest remainders; the first of equal ones first."""
    exact = [total * weight / math.fsum(weights) for weight in weights]
    counts = [math.floor(part) for part in exact]
    for i in sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])[: total - sum(counts)]:
        counts[i] += 1
    return counts

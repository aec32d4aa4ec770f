"""Schemes as searches are given them: a scheme's spelling, a short name, or a format alone; several between commas."""

from __future__ import annotations

import re
from collections.abc import Iterable

from qarat.ground.errors import UserError
from qarat.values.requests.protect import PROTECTIONS
from qarat.values.schemes import FLOAT, LinearScheme, parse_scheme

FORMATS = {
    "mxint4": "w=mxint4 a=mxint4",
    "mxfp4": "w=mxfp4 a=mxfp4",
    "int4": "w=int4/g32",
    "int8-static": "w=int8/tensor a=int8/tensor/static",
}
"""Short names: the MX formats for weights and inputs, int4 for weights alone, int8 as engines compute it fastest."""


def full_spelling(text: str) -> str:
    """A scheme's spelling: of a short name what it stands for, of a format alone (``int4/g128``) that of the weight.

    Args:
        text: A name of `FORMATS` or `PROTECTIONS`, a format, or a scheme; not checked here.
    """
    text = text.strip()
    if text in FORMATS or text in PROTECTIONS:
        return FORMATS.get(text) or PROTECTIONS[text]
    return text if "=" in text or text == FLOAT else f"w={text}"


def split_commas(words: Iterable[str]) -> tuple[str, ...]:
    """The words, and what commas divide in them; those of a table of values (``{-1,0,1}``) divide nothing."""
    parts = (part.strip() for word in words for part in re.split(r",(?![^{]*\})", word))
    return tuple(part for part in parts if part)


def parse_low(text: str) -> LinearScheme:
    """A low scheme, which Q_r counts by the bits of its weight.

    Args:
        text: As `full_spelling` takes it.

    Raises:
        UserError: No scheme of a projection's weight.
    """
    scheme = parse_scheme(full_spelling(text))
    if not isinstance(scheme, LinearScheme) or scheme.weight is None:
        raise UserError(f"{text!r} keeps no weight low; give one of {', '.join(FORMATS)}, or a scheme with w=…")
    return scheme

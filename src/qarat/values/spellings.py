"""Schemes as searches are given them: a scheme's spelling, a short name, or a format alone; several between commas.

And one low format at several block sizes: what a family of searches varies besides the model and the ratio.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from qarat.ground.errors import UserError
from qarat.values.parsing import parse_scheme
from qarat.values.requests.protect import PROTECTIONS
from qarat.values.schemes import FLOAT, Granularity, LinearScheme, TensorScheme
from qarat.values.sites import Site

ROW, TENSOR = "row", "tensor"
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


def is_of_caches(text: str) -> bool:
    """Whether a spelling is one of caches, and of no projection."""
    return text.startswith("c=")


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


def low_schemes(formats: Sequence[str], blocks: Sequence[str]) -> tuple[str, ...]:
    """Spellings of every format at every block size, in that order, each once.

    Static scales of inputs come from the stats at one granularity, so a format that has them keeps its own.

    Args:
        formats: Names of `FORMATS`, or spellings of schemes.
        blocks: Block sizes as `with_block` takes them.

    Raises:
        UserError: No scheme of a projection's weight, or no block size.
    """
    spellings: list[str] = []
    for name in formats:
        low = parse_low(name)
        fixed = low.input is not None and low.input.static
        spellings += [str(low)] if fixed else [with_block(str(low), block) for block in blocks]
    return tuple(dict.fromkeys(spellings))


def with_block(low: str, block: str) -> str:
    """A low scheme with another block size, of weight and input alike.

    Args:
        low: Spelling.
        block: Values that share a scale, ``row`` (a weight's output channel, an input's token) or ``tensor``.

    Raises:
        UserError: No scheme of a projection's weight, static scales, or no block size.
    """
    scheme = parse_low(low)
    if scheme.input is not None and scheme.input.static:
        raise UserError(f"{low}: static scales keep their granularity; leave the block size out, or make it dynamic")
    granularity = _granularity(block)

    def change(tensor: TensorScheme | None) -> TensorScheme | None:
        return None if tensor is None else msgspec.structs.replace(tensor, granularity=granularity)

    return str(LinearScheme(change(scheme.weight), change(scheme.input)))


def format_words(low: str) -> str:
    """What is low, without the block size: ``mxint4 weights and inputs``, ``int4/mse weights``."""
    scheme = parse_low(low)
    weight, given = _format(scheme.weight), _format(scheme.input)
    if scheme.input is None:
        return f"{weight} weights"
    timing = "static " if scheme.input.static else ""
    same = weight == given
    return f"{weight} weights and {timing}inputs" if same else f"{weight} weights and {given} {timing}inputs"


def granularity_word(low: str) -> str:
    """Which weights share a scale: ``tensor``, ``channel`` or ``group``."""
    match _weight(low).granularity:
        case Granularity(None, None):
            return "tensor"
        case Granularity(1, None):
            return "channel"
        case _:
            return "group"


def mean_block(low: str, sites: Sequence[Site]) -> float:
    """Q_b: the weights that share a scale, the mean over all as in the second founding paper.

    Of blocks too: where they do not divide a row, its last one is shorter.

    Args:
        low: Spelling.
        sites: Of the model; attention products have no weights.
    """
    granularity = _weight(low).granularity
    shapes = [site.shape for site in sites if site.shape]
    scales = 0
    for rows, cols in shapes:
        tall, wide = granularity.scale_shape(rows, cols)
        scales += tall * wide
    return sum(rows * cols for rows, cols in shapes) / scales


def _weight(low: str) -> TensorScheme:
    weight = parse_low(low).weight
    assert weight is not None
    return weight


def _format(tensor: TensorScheme | None) -> str:
    """A tensor's spelling without its granularity: the preset's name where it is one at some block size."""
    if tensor is None:
        return ""
    spelling = msgspec.structs.replace(tensor, granularity=Granularity(1, 2), static=False).spell("w")
    name, _, *rest = spelling.split("/")
    return "/".join([name, *rest])


def _granularity(block: str) -> Granularity:
    if block == TENSOR:
        return Granularity()
    if block == ROW:
        return Granularity(1, None)
    if not block.isdecimal() or int(block) < 1:
        raise UserError(f"{block!r} is no block size; give a number of values, {ROW!r} or {TENSOR!r}")
    return Granularity(1, int(block))

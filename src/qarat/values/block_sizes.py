"""One low format at several block sizes: what a family of searches varies besides the model and the ratio."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from qarat.ground.errors import UserError
from qarat.values.schemes import Granularity, LinearScheme, TensorScheme
from qarat.values.sites import Site
from qarat.values.spellings import parse_low

ROW, TENSOR = "row", "tensor"


def low_schemes(formats: Sequence[str], blocks: Sequence[str]) -> tuple[str, ...]:
    """Spellings of every format at every block size, in that order, each once.

    Static scales of inputs come from the stats at one granularity, so a format that has them keeps its own.

    Args:
        formats: Names of `qarat.values.spellings.FORMATS`, or spellings of schemes.
        blocks: Block sizes as `with_block` takes them.

    Raises:
        UserError: No scheme of a projection's weight, or no block size.
    """
    found: list[str] = []
    for name in formats:
        low = parse_low(name)
        fixed = low.input is not None and low.input.static
        found += [str(low)] if fixed else [with_block(str(low), block) for block in blocks]
    return tuple(dict.fromkeys(found))


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

"""Reading the spellings of schemes; what is wrong is shown under the character where it stands."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.values.formats import FORMATS, LEARNED, format_named
from qarat.values.schemes import (
    FLOAT,
    FLOATS,
    PRESETS,
    SCALE_BITS,
    CacheScheme,
    Granularity,
    LinearScheme,
    MatmulScheme,
    Scheme,
    SchemeError,
    TensorScheme,
)
from qarat.values.sites import Kind

_KEYS = {
    "w": "weight of a projection",
    "a": "input of a projection",
    "l": "left operand",
    "r": "right operand",
    "c": "cache of keys or values",
}
_WORDS: dict[str, Callable[[re.Match[str]], dict[str, object]]] = {
    # A word of a spelling, as a regular expression, to the fields that it sets.
    "tensor": lambda m: {"granularity": Granularity()},
    "channel|token": lambda m: {"granularity": Granularity(1, None)},
    r"g([1-9]\d*)": lambda m: {"granularity": Granularity(1, int(m[1]))},
    r"([1-9]\d*)x([1-9]\d*)": lambda m: {"granularity": Granularity(int(m[1]), int(m[2]))},
    "static|dynamic": lambda m: {"timing": m[0]},
    f"scale-({'|'.join(SCALE_BITS)})": lambda m: {"scale": m[1]},
    "absmax|mse|typical|mx-floor|mx-even": lambda m: {"choice": m[0]},
    # From 50 to 100 per cent.
    r"p(0*[5-9]\d(?:\.\d+)?|0*100(?:\.0+)?)": lambda m: {"choice": "percentile", "percentile": float(m[1])},
    r"reach-(\d+(?:\.\d+)?(?:e[+-]?\d+)?)": lambda m: {"reach": float(m[1])},
    "asymmetric": lambda m: {"symmetric": False},
    r"outliers-(\d+(?:\.\d+)?(?:e[+-]?\d+)?)": lambda m: {"outliers": float(m[1])},
    r"sparse-(\d+(?:\.\d+)?(?:e[+-]?\d+)?)": lambda m: {"sparse": float(m[1])},
    "round-([a-z][a-z0-9-]*)": lambda m: {"rounding": m[1]},
    "past-only": lambda m: {"past_only": True},
    "2d": lambda m: {"two_dimensional": True},
}
_HOMES = {
    # Words, whole or up to a hyphen, that some tensors cannot have: keys of those that can, what is said to the others.
    "channel": ("w", "does not fit the {tensor}; use token"),
    "token": ("alrc", "does not fit the {tensor}; use channel"),
    "outliers": ("a", "belongs to the input of a projection (a=…), whose columns stay in float"),
    "reach": ("alrc", "belongs to an input, whose extremes calibration saw"),
    "typical": ("w", "belongs to a weight (w=…): inputs are far from Gaussian, and what is large among them counts"),
    "scale-uint8": ("w", "belongs to a weight (w=…), which has scales enough to share a float32"),
    "sparse": ("w", "belongs to a weight (w=…), some of whose numbers are kept in float16 beside it"),
    "round": ("w", "belongs to a weight (w=…); inputs are rounded while the model runs"),
    "past": ("c", "belongs to a cache (c=…), from which later tokens read"),
    "2d": ("c", "belongs to a cache (c=…), whose channels are scaled before its tokens are quantized"),
}


def parse_scheme(text: str, kind: Kind = "projection") -> Scheme:
    """Read a short spelling.

    Args:
        text: ``float``, or ``w=… a=…`` for a projection, ``l=… r=…`` for an attention product, ``c=…`` for a cache; a
            missing key is float.
        kind: Of the site, which says what ``float`` stands for.

    Raises:
        SchemeError: With the text, a mark under the character, what is wrong and what is known.
    """
    if text.strip() == FLOAT:
        return FLOATS[kind]
    parts: dict[str, TensorScheme | None] = {}
    for word in re.finditer(r"\S+", text):
        key, equals, body = word.group().partition("=")
        if not equals or key not in _KEYS:
            known = "`w=…`, `a=…` (projections), `l=…`, `r=…` (attention products), `c=…` (caches)"
            _fail(text, word.start(), f"expected `float`, {known}")
        if key in parts:
            _fail(text, word.start(), f"{key}= is given twice")
        start = word.start() + len(key) + 1
        parts[key] = None if body == FLOAT else _parse_tensor(text, body, start, key)
    if not parts:
        _fail(text, 0, "empty scheme")
    if set(parts) <= {"w", "a"}:
        return LinearScheme(parts.get("w"), parts.get("a"))
    if set(parts) <= {"l", "r"}:
        return MatmulScheme(parts.get("l"), parts.get("r"))
    if set(parts) <= {"c"}:
        return CacheScheme(parts.get("c"))
    _fail(text, 0, "w= and a= belong to projections, l= and r= to attention products, c= to caches; give one kind")


def parse_tensor_scheme(text: str, role: str) -> TensorScheme:
    """Read the spelling of one tensor, e.g. ``int8/tensor/static``; ``role`` is ``w``, ``a``, ``l``, ``r`` or ``c``.

    Raises:
        SchemeError: As `parse_scheme`.
    """
    return _parse_tensor(text, text, 0, role)


def input_scheme(spelling: str) -> TensorScheme | None:
    """How a scheme of projections keeps their inputs; None where it leaves them in float, or is one of products."""
    scheme = parse_scheme(spelling)
    return scheme.input if isinstance(scheme, LinearScheme) else None


def _parse_tensor(text: str, body: str, start: int, role: str) -> TensorScheme:
    words = [(m.group(), start + m.start()) for m in re.finditer(r"[^/]+", body)]
    if not words or "//" in body or body.startswith("/") or body.endswith("/"):
        _fail(text, start, "expected FORMAT/GRANULARITY[/…], for example int8/channel")
    (name, at), *rest = words
    if name.startswith("{"):
        try:
            name = format_named(name).name
        except UserError as error:
            _fail(text, at, str(error))
    elif name in LEARNED and role != "w":
        _fail(text, at, f"{name} is for weights (w=…): its tables are found once, and kept with them")
    elif name not in (*FORMATS, *LEARNED, *PRESETS):
        _fail(text, at, f"unknown number format {name!r}; {nearest_names(name, [*FORMATS, *LEARNED, *PRESETS])}")
    fields: dict[str, Any] = msgspec.structs.asdict(PRESETS[name]) if name in PRESETS else {"format": name}
    given: dict[str, int] = {}
    for word, at in rest:
        for field, value in _read_word(text, word, at, role).items():
            if field in given:
                _fail(text, at, f"{word!r} sets the {field} a second time")
            given[field] = at
            fields[field] = value
    timing = fields.pop("timing", None)
    scheme = TensorScheme(**fields)
    if name not in PRESETS and "granularity" not in given:
        _fail(text, start + len(body), "the granularity is missing: tensor, channel, token, gN or RxC")
    scheme = _apply_timing(text, start, scheme, timing, role)
    if role == "c" and scheme.joins_tokens:
        _fail(text, start, "a cache is written token by token: say token, gN (a scale for each token), or static")
    if offences := scheme.contradictions():
        _fail(text, start, "; ".join(offences))
    return scheme


def _apply_timing(text: str, start: int, scheme: TensorScheme, timing: str | None, role: str) -> TensorScheme:
    """Check `static`/`dynamic` against the granularity, and widen static groups over all tokens."""
    if role == "w":
        if timing:
            _fail(text, start, "a weight's scales are always fixed; static and dynamic belong to inputs")
        return scheme
    if scheme.granularity == Granularity() and timing is None:
        _fail(text, start, "say static or dynamic for an input with one scale per tensor")
    if timing == "static":
        if scheme.granularity == Granularity(1, None):
            _fail(text, start, "a scale per token cannot be static: tokens are not known beforehand")
        return msgspec.structs.replace(scheme, static=True, granularity=Granularity(None, scheme.granularity.cols))
    return scheme


def _read_word(text: str, word: str, at: int, role: str) -> dict[str, object]:
    """The fields that one word of a spelling sets."""
    for pattern, fields in _WORDS.items():
        if match := re.fullmatch(pattern, word):
            roles, elsewhere = _HOMES.get(word) or _HOMES.get(word.partition("-")[0], (role, ""))
            if role not in roles:
                _fail(text, at, f"{word!r} {elsewhere.format(tensor=_KEYS[role])}")
            return fields(match)
    known = ["tensor", "channel", "token", "g128", "128x128", "static", "dynamic", "absmax", "mse", "p99.9", "mx-floor"]
    known += [
        "mx-even",
        "typical",
        "reach-1.2",
        "asymmetric",
        "outliers-6",
        "sparse-0.45",
        "round-gptq",
        "round-gptq-ordered",
        "round-fisher",
        "round-clip",
        "round-squeezellm",
        "round-gwq",
        "past-only",
        "2d",
        *(f"scale-{kind}" for kind in SCALE_BITS),
    ]
    _fail(text, at, f"unknown word {word!r}; {nearest_names(word, known)}")


def is_scheme(name: str) -> bool:
    """Whether a name is the spelling of a scheme of projections, and no path."""
    return name.startswith(("w=", "a="))


def parse_scheme_in(field: str, text: str) -> Scheme:
    """Read the scheme that an argument is given as.

    Raises:
        SchemeError: Naming the argument.
    """
    try:
        return parse_scheme(text)
    except SchemeError as error:
        raise SchemeError(f"`{field}`: {error}") from None


def _fail(text: str, at: int, why: str) -> NoReturn:
    raise SchemeError(f"{why}\n  {text}\n  {' ' * at}^")

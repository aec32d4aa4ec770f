"""Schemes: how one site is stored and computed, as a value with a short spelling.

One type describes every tensor (format, granularity, scale kind, scale choice, static or dynamic); a projection has two
(weight and input), an attention product two (left and right operand). Mixed precision is then just different values at
different sites, and no name has to be invented for a combination.

The spelling is a row of words between slashes, e.g. ``w=int8/channel a=int8/tensor/static``; `parse_scheme` reads it,
`str` prints it, and both are inverse to each other.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NoReturn

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.values.formats import FORMATS, NumberFormat, format_named

ScaleKind = Literal["float32", "float16", "e8m0", "e4m3"]
ScaleChoice = Literal["absmax", "mse", "percentile", "mx-floor", "mx-even"]

NEAREST = "nearest"
"""The rounding where none is named."""
SCALE_BITS: dict[str, int] = {"float32": 32, "float16": 16, "e8m0": 8, "e4m3": 8}


class SchemeError(UserError):
    """A spelling that is no scheme; the message points at the character."""


class Granularity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tile of a matrix whose elements share one scale; ``None`` is the whole axis.

    Rows are output channels of a weight, tokens of an activation; columns run along the reduction axis of the product.
    Tensor ``(None, None)``, channel or token ``(1, None)``, group of n ``(1, n)``, tile ``(r, c)``; ``(None, n)``
    shares a group of columns over all rows (static groups of an input).
    """

    rows: int | None = None
    cols: int | None = None

    def scale_shape(self, rows: int, cols: int) -> tuple[int, int]:
        """How many scales a (rows, cols) matrix has along each axis; a last tile may be shorter."""
        tall = 1 if self.rows is None else -(-rows // self.rows)
        wide = 1 if self.cols is None else -(-cols // self.cols)
        return tall, wide

    def spell(self, row_word: str) -> str:
        """The word of the spelling; ``row_word`` is ``channel`` for weights and ``token`` for activations."""
        match self.rows, self.cols:
            case None, None:
                return "tensor"
            case 1, None:
                return row_word
            case ((1 | None), int(cols)):
                return f"g{cols}"
            case rows, cols:
                return f"{rows or 'all'}x{cols or 'all'}"


class TensorScheme(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one tensor is quantized.

    Attributes:
        format: Name of a number format.
        granularity: Which elements share a scale.
        scale: How scales are kept. ``e8m0`` is a power of two (MX); ``e4m3`` has one float32 per tensor above it
            (NVFP4).
        choice: How a scale is chosen from the values: of `qarat.maths.scales`.
        percentile: Per cent of the magnitudes that `percentile` keeps unclipped.
        symmetric: Whether the zero point is fixed at 0.
        static: Activations only: scales come from the calibration stats instead of the values at hand.
        rounding: Weights only: how codes are found, of `qarat.stages.rounding`.
        outliers: Inputs of projections only: columns that hold a magnitude of at least this stay in float and have no
            part in any scale (LLM.int8(), `qarat.maths.kernels.reference`); None leaves none.
    """

    format: str
    granularity: Granularity = Granularity()
    scale: ScaleKind = "float32"
    choice: ScaleChoice = "absmax"
    percentile: float = 99.9
    symmetric: bool = True
    static: bool = False
    outliers: float | None = None
    rounding: str = NEAREST

    @property
    def number_format(self) -> NumberFormat:
        """The format itself."""
        return format_named(self.format)

    def contradictions(self) -> tuple[str, ...]:
        """What in the scheme cannot go together, in words; empty if nothing is."""
        fmt, found = self.number_format, list[str]()
        if not self.symmetric and not fmt.is_integer:
            found.append(f"asymmetric needs an integer format: {fmt.name} has no uniform step to count a zero point in")
        if self.choice.startswith("mx-") and not self.symmetric:
            found.append(f"{self.choice} knows no zero point")
        if self.choice.startswith("mx-") and self.scale == "e4m3":
            found.append(f"{self.choice} gives powers of two, which e4m3 scales under a tensor scale do not keep")
        if self.static and self.granularity.cols is not None and self.choice in ("mse", "percentile"):
            found.append(f"{self.choice} needs a histogram, which is kept for a whole stream and not for its groups")
        if self.static and self.choice == "mse" and not self.symmetric:
            found.append("static asymmetric mse needs the signs of the values, and the histogram keeps magnitudes")
        if self.outliers is not None and self.static:
            found.append("outlier columns are found in the values at hand, which static scales do not wait for")
        if self.outliers is not None and self.choice in ("mse", "percentile"):
            found.append(f"{self.choice} would count the outlier columns, which are not rounded, as zeros")
        return tuple(found)

    def bits(self, rows: int, cols: int) -> int:
        """Storage of a (rows, cols) matrix in bits: elements, scales and zero points."""
        tall, wide = self.granularity.scale_shape(rows, cols)
        scales = tall * wide
        total = rows * cols * self.number_format.bits + scales * SCALE_BITS[self.scale]
        if self.scale == "e4m3":
            total += 32
        if not self.symmetric:
            total += scales * self.number_format.bits
        return total

    def spell(self, role: str) -> str:
        """The spelling without its key; ``role`` is ``w`` for a weight, anything else for an activation."""
        if self.rounding != NEAREST:
            return f"{msgspec.structs.replace(self, rounding=NEAREST).spell(role)}/round-{self.rounding}"
        for name, preset in PRESETS.items():
            if self == preset:
                return name
            other_block = self.granularity.rows == 1 and self.granularity.cols is not None
            if other_block and msgspec.structs.replace(self, granularity=preset.granularity) == preset:
                return f"{name}/g{self.granularity.cols}"
        words = [self.format, self.granularity.spell("channel" if role == "w" else "token")]
        if role != "w" and (self.static or self.granularity == Granularity()):
            words.append("static" if self.static else "dynamic")
        if self.scale != "float32":
            words.append(f"scale-{self.scale}")
        if self.choice == "percentile":
            words.append("p" + repr(self.percentile).removesuffix(".0"))  # every digit, so that it reads back equal
        elif self.choice != "absmax":
            words.append(self.choice)
        if not self.symmetric:
            words.append("asymmetric")
        if self.outliers is not None:
            words.append("outliers-" + repr(self.outliers).removesuffix(".0"))
        return "/".join(words)


PRESETS: dict[str, TensorScheme] = {
    # OCP MX v1.0: blocks of 32, power-of-two scales; mxint4 is the natural 4-bit sibling of its MXINT8.
    "mxint4": TensorScheme("sint4", Granularity(1, 32), "e8m0", "mx-floor"),
    "mxint8": TensorScheme("sint8", Granularity(1, 32), "e8m0", "mx-floor"),
    "mxfp4": TensorScheme("e2m1", Granularity(1, 32), "e8m0", "mx-floor"),
    "mxfp6": TensorScheme("e2m3", Granularity(1, 32), "e8m0", "mx-floor"),
    "mxfp8": TensorScheme("e4m3", Granularity(1, 32), "e8m0", "mx-floor"),
    # NVIDIA's 4-bit format: blocks of 16, e4m3 scales under one float32 per tensor.
    "nvfp4": TensorScheme("e2m1", Granularity(1, 16), "e4m3", "absmax"),
}
"""Named formats that fix granularity and scales too; ``mxint4/g16`` changes the block size."""


class LinearScheme(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a projection is kept: its weight and its input, ``None`` = left in float.

    What it shares with `MatmulScheme`, so that few need to ask which it is: `operands`, `weight`, `is_float`, `fits`.
    """

    weight: TensorScheme | None = None
    input: TensorScheme | None = None

    def operands(self) -> tuple[TensorScheme | None, ...]:
        """Schemes of what flows in, in the order of the site's streams."""
        return (self.input,)

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self == LinearScheme()

    def fits(self, kind: str) -> bool:
        """Whether it is one of sites of that kind, ``projection`` or ``product``."""
        return kind == "projection"

    def __str__(self) -> str:
        return _spell({"w": self.weight, "a": self.input})


class MatmulScheme(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an attention product is computed: Q and K of ``qk``, probabilities and V of ``av``; ``None`` = float."""

    left: TensorScheme | None = None
    right: TensorScheme | None = None

    def operands(self) -> tuple[TensorScheme | None, ...]:
        """Schemes of what flows in, in the order of the site's streams."""
        return (self.left, self.right)

    @property
    def weight(self) -> None:
        """An attention product has none."""

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self == MatmulScheme()

    def fits(self, kind: str) -> bool:
        """Whether it is one of sites of that kind, ``projection`` or ``product``."""
        return kind == "product"

    def __str__(self) -> str:
        return _spell({"l": self.left, "r": self.right})


Scheme = LinearScheme | MatmulScheme
FLOAT = "float"
LOW = "w=int8/channel a=int8/tensor/static"
"""The low scheme where none is named: what every int8 engine computes fastest, and what spikes hurt most."""
_KEYS = {"w": "weight of a projection", "a": "input of a projection", "l": "left operand", "r": "right operand"}
_ROW_WORDS = {"channel": "w", "token": "alr"}


def parse_scheme(text: str, *, matmul: bool = False) -> Scheme:
    """Read a short spelling.

    Args:
        text: ``float``, or ``w=… a=…`` for a projection, ``l=… r=…`` for an attention product; a missing key is float.
        matmul: What ``float`` stands for: an attention product's scheme instead of a projection's.

    Raises:
        SchemeError: With the text, a mark under the character, what is wrong and what is known.
    """
    if text.strip() == FLOAT:
        return MatmulScheme() if matmul else LinearScheme()
    parts: dict[str, TensorScheme | None] = {}
    for word in re.finditer(r"\S+", text):
        key, equals, body = word.group().partition("=")
        if not equals or key not in _KEYS:
            _fail(text, word.start(), "expected `float`, `w=…`, `a=…` (projections), `l=…`, `r=…` (attention products)")
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
    _fail(text, 0, "w= and a= belong to projections, l= and r= to attention products; give one kind")


def parse_tensor_scheme(text: str, role: str) -> TensorScheme:
    """Read the spelling of one tensor, e.g. ``int8/tensor/static``; ``role`` is ``w``, ``a``, ``l`` or ``r``.

    Raises:
        SchemeError: As `parse_scheme`.
    """
    return _parse_tensor(text, text, 0, role)


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
    elif name not in FORMATS and name not in PRESETS:
        _fail(text, at, f"unknown number format {name!r}; {nearest_names(name, [*FORMATS, *PRESETS])}")
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
    if word == "tensor":
        return {"granularity": Granularity()}
    if word in _ROW_WORDS:
        if role not in _ROW_WORDS[word]:
            _fail(text, at, f"{word!r} does not fit the {_KEYS[role]}; use {'channel' if role == 'w' else 'token'}")
        return {"granularity": Granularity(1, None)}
    if match := re.fullmatch(r"g([1-9]\d*)", word):
        return {"granularity": Granularity(1, int(match[1]))}
    if match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", word):
        return {"granularity": Granularity(int(match[1]), int(match[2]))}
    if word in ("static", "dynamic"):
        return {"timing": word}
    if word.startswith("scale-") and word[6:] in SCALE_BITS:
        return {"scale": word[6:]}
    if word in ("absmax", "mse", "mx-floor", "mx-even"):
        return {"choice": word}
    if (match := re.fullmatch(r"p(\d+(?:\.\d+)?)", word)) and 50 <= float(match[1]) <= 100:
        return {"choice": "percentile", "percentile": float(match[1])}
    if word == "asymmetric":
        return {"symmetric": False}
    if match := re.fullmatch(r"outliers-(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", word):
        if role != "a":
            _fail(text, at, f"{word!r} belongs to the input of a projection (a=…), whose columns stay in float")
        return {"outliers": float(match[1])}
    if match := re.fullmatch(r"round-([a-z][a-z0-9-]*)", word):
        if role != "w":
            _fail(text, at, f"{word!r} belongs to a weight (w=…); inputs are rounded while the model runs")
        return {"rounding": match[1]}
    known = ["tensor", "channel", "token", "g128", "128x128", "static", "dynamic", "absmax", "mse", "p99.9", "mx-floor"]
    known += ["mx-even", "asymmetric", "outliers-6", "round-gptq", *(f"scale-{kind}" for kind in SCALE_BITS)]
    _fail(text, at, f"unknown word {word!r}; {nearest_names(word, known)}")


def _spell(parts: dict[str, TensorScheme | None]) -> str:
    words = [f"{key}={scheme.spell(key)}" for key, scheme in parts.items() if scheme is not None]
    return " ".join(words) or FLOAT


def _fail(text: str, at: int, why: str) -> NoReturn:
    raise SchemeError(f"{why}\n  {text}\n  {' ' * at}^")


def input_scheme(spelling: str) -> TensorScheme | None:
    """How a scheme of projections keeps their inputs; None where it leaves them in float, or is one of products."""
    scheme = parse_scheme(spelling)
    return scheme.input if isinstance(scheme, LinearScheme) else None

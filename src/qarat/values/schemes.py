"""Schemes: how one site is stored and computed, as a value with a short spelling.

One type describes every tensor (format, granularity, scale kind, scale choice, static or dynamic); a projection has two
(weight and input), an attention product two (left and right operand), a cache of keys or values one. Mixed precision is
then just different values at different sites, and no name has to be invented for a combination.

The spelling is a row of words between slashes, e.g. ``w=int8/channel a=int8/tensor/static``; `str` prints it,
`qarat.values.parsing.parse_scheme` reads it, and both are inverse to each other.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from qarat.ground.errors import UserError
from qarat.values.formats import NumberFormat, format_named

ScaleKind = Literal["float32", "float16", "e8m0", "e4m3", "uint8"]
ScaleChoice = Literal["absmax", "mse", "percentile", "typical", "mx-floor", "mx-even"]

NEAREST = "nearest"
"""The rounding where none is named."""
SCALE_BITS: dict[str, int] = {"float32": 32, "float16": 16, "e8m0": 8, "e4m3": 8, "uint8": 8}
SCALES_PER_BLOCK = 256
"""Scales of kind uint8, in reading order, under one float32; as many as in bitsandbytes' nested quantization."""
TABLE_BITS = 16
"""Of a number in a learned table."""
SPARSE_BITS, ROW_BITS = 32, 32
"""Of a weight in the sparse part, value and column, and of where a row of it ends."""


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
            (NVFP4). ``uint8`` is 1 to 255 of one float32 for each 256 scales (double quantization).
        choice: How a scale is chosen from the values: of `qarat.maths.scales`.
        percentile: Per cent of the magnitudes that `percentile` keeps unclipped.
        symmetric: Whether the zero point is fixed at 0.
        static: Activations only: scales come from the calibration stats instead of the values at hand.
        rounding: Weights only: how codes are found, of `qarat.stages.rounding`.
        outliers: Inputs of projections only: columns that hold a magnitude of at least this stay in float and have no
            part in any scale (LLM.int8(), `qarat.maths.kernels.reference`); None leaves none.
        sparse: Weights only: per cent of a matrix's weights that are kept in float16 beside it, by row and column
            (`qarat.maths.sparse`), and are 0 to whatever is found for the others; which, the rounding says. None
            keeps none.
        reach: Static only: what scales reach, as a multiple of the extremes that calibration saw. More than 1 leaves
            room for values that it did not see, less clips.
        past_only: Caches only: a token's own key and value are used as they are, only later tokens read the quantized
            ones (WKVQuant, arXiv 2402.12065).
        two_dimensional: Caches only: channels are first shifted and scaled to one range, as calibration saw them, and
            back when they are read (WKVQuant, `qarat.maths.kernels.reference.kept`).
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
    reach: float = 1.0
    sparse: float | None = None
    past_only: bool = False
    two_dimensional: bool = False

    @property
    def number_format(self) -> NumberFormat:
        """The format itself."""
        return format_named(self.format)

    @property
    def nests_scales(self) -> bool:
        """Whether scales are stored in units of a float32 above them, which those of several tiles share."""
        return self.scale in ("e4m3", "uint8")

    def scales_above(self, rows: int, cols: int) -> int:
        """How many float32 stand above the scales of a (rows, cols) matrix: one a matrix, or one a block of scales."""
        tall, wide = self.granularity.scale_shape(rows, cols)
        return {"e4m3": 1, "uint8": -(-tall * wide // SCALES_PER_BLOCK)}.get(self.scale, 0)

    @property
    def needs_stats(self) -> bool:
        """Whether anything of it comes from calibration stats: static scales, or the channels' of a cache."""
        return self.static or self.two_dimensional

    @property
    def joins_tokens(self) -> bool:
        """Of an activation: whether a token's numbers depend on the tokens beside it."""
        across = self.granularity.rows != 1 or self.nests_scales or self.outliers is not None
        return across and not self.static

    @property
    def is_shared_when_merged(self) -> bool:
        """Whether weights that an engine merges have one scale: floats per tensor, and what stands above NVFP4's.

        Of integers per tensor every part keeps its own, spread over its channels.
        """
        return self.scale == "e4m3" or (self.granularity == Granularity() and not self.number_format.is_integer)

    def contradictions(self) -> tuple[str, ...]:
        """What in the scheme cannot go together, in words; empty if nothing is."""
        fmt, reasons = self.number_format, list[str]()
        if not self.symmetric and not fmt.is_integer:
            reasons.append(
                f"asymmetric needs an integer format: {fmt.name} has no uniform step to count a zero point in"
            )
        if (self.choice.startswith("mx-") or self.choice == "typical") and not self.symmetric:
            reasons.append(f"{self.choice} knows no zero point")
        if self.choice.startswith("mx-") and self.nests_scales:
            reasons.append(f"{self.choice} gives powers of two, which {self.scale} scales under another do not keep")
        if self.static and self.granularity.cols is not None and self.choice in ("mse", "percentile"):
            reasons.append(f"{self.choice} needs a histogram, which is kept for a whole stream and not for its groups")
        if self.static and self.choice == "mse" and not self.symmetric:
            reasons.append("static asymmetric mse needs the signs of the values, and the histogram keeps magnitudes")
        if self.reach != 1 and not (self.static and self.choice == "absmax"):
            reasons.append("reach is a multiple of the extremes that calibration saw: it goes with static and absmax")
        if self.reach <= 0:
            reasons.append("a reach of 0 clips everything; give a number above 0, 1 for what calibration saw")
        if self.outliers is not None and self.static:
            reasons.append("outlier columns are found in the values at hand, which static scales do not wait for")
        if self.outliers is not None and self.choice in ("mse", "percentile"):
            reasons.append(f"{self.choice} would count the outlier columns, which are not rounded, as zeros")
        if fmt.learned and (self.granularity.rows != 1 or self.scale != "float32" or self.choice != "absmax"):
            reasons.append(f"{fmt.name} has a table a row (channel) or group (gN) and no scale that could be chosen")
        if self.two_dimensional and self.static:
            reasons.append("2d has scales by token; static ones of each channel are g1/static")
        if self.sparse is not None and not 0 < self.sparse <= 50:
            reasons.append("a sparse part is more than 0 and at most 50 per cent of the weights")
        if self.sparse is not None and self.choice in ("percentile", "typical"):
            reasons.append(f"{self.choice} would count the weights of the sparse part as zeros")
        if self.sparse is not None and self.is_shared_when_merged:
            reasons.append("a sparse part belongs to one weight, and this scale to all that an engine merges")
        return tuple(reasons)

    def sparse_count(self, rows: int, cols: int) -> int:
        """Weights of a (rows, cols) matrix that are kept in the sparse part; at least 1 where there is one."""
        return 0 if self.sparse is None else max(1, round(rows * cols * self.sparse / 100))

    def bits(self, rows: int, cols: int) -> int:
        """Storage of a (rows, cols) matrix in bits: elements, scales or tables, zero points, the sparse part."""
        tall, wide = self.granularity.scale_shape(rows, cols)
        scales, fmt = tall * wide, self.number_format
        of_scale = TABLE_BITS * len(fmt.values) if fmt.learned else SCALE_BITS[self.scale]
        total = rows * cols * fmt.bits + scales * of_scale + 32 * self.scales_above(rows, cols)
        if self.sparse is not None:
            total += self.sparse_count(rows, cols) * SPARSE_BITS + rows * ROW_BITS
        if not self.symmetric:
            total += scales * fmt.bits
        return total

    def spell(self, role: str) -> str:
        """The spelling without its key; ``role`` is ``w`` for a weight, anything else for an activation."""
        if self.rounding != NEAREST:
            return f"{msgspec.structs.replace(self, rounding=NEAREST).spell(role)}/round-{self.rounding}"
        if self.sparse is not None:
            return f"{msgspec.structs.replace(self, sparse=None).spell(role)}/sparse-{_number(self.sparse)}"
        for name, preset in PRESETS.items():
            if self == preset:
                return name
            other_block = self.granularity.rows == 1 and self.granularity.cols is not None
            if other_block and msgspec.structs.replace(self, granularity=preset.granularity) == preset:
                return f"{name}/g{self.granularity.cols}"
        parts = [self.format, self.granularity.spell("channel" if role == "w" else "token")]
        if role != "w" and (self.static or self.granularity == Granularity()):
            parts.append("static" if self.static else "dynamic")
        if self.reach != 1:
            parts.append("reach-" + _number(self.reach))
        if self.scale != "float32":
            parts.append(f"scale-{self.scale}")
        if self.choice == "percentile":
            parts.append("p" + _number(self.percentile))
        elif self.choice != "absmax":
            parts.append(self.choice)
        if not self.symmetric:
            parts.append("asymmetric")
        if self.outliers is not None:
            parts.append("outliers-" + _number(self.outliers))
        if self.two_dimensional:
            parts.append("2d")
        if self.past_only:
            parts.append("past-only")
        return "/".join(parts)


def _number(value: float) -> str:
    """Every digit, so that it reads back equal."""
    return repr(value).removesuffix(".0")


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

    What it shares with `MatmulScheme` and `CacheScheme`, so that few need to ask which it is: `operands`, `weight`,
    `joins_tokens`, `is_float`, `fits`.
    """

    weight: TensorScheme | None = None
    input: TensorScheme | None = None

    def operands(self) -> tuple[TensorScheme | None, ...]:
        """Schemes of what flows in, in the order of the site's streams."""
        return (self.input,)

    @property
    def joins_tokens(self) -> bool:
        """Whether what is computed of a token depends on those beside it."""
        return self.input is not None and self.input.joins_tokens

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self == LinearScheme()

    def fits(self, kind: str) -> bool:
        """Whether it is one of sites of that kind."""
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
    def joins_tokens(self) -> bool:
        """Whether scales depend on the tokens beside one, as those of V's groups do."""
        return any(operand is not None and not operand.static for operand in self.operands())

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self == MatmulScheme()

    def fits(self, kind: str) -> bool:
        """Whether it is one of sites of that kind."""
        return kind == "product"

    def __str__(self) -> str:
        return _spell({"l": self.left, "r": self.right})


class CacheScheme(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How keys or values are kept for later tokens, as a matrix (tokens, key heads × head channels); ``None`` = float.

    Every token is quantized by itself, when it is written: dynamic scales belong to one token, static ones to all.
    Groups run along the channels, those of one head behind those of another: groups as wide as a head are scales per
    token and head, static ones per head; static groups of 1 are scales per channel.
    """

    kept: TensorScheme | None = None

    def operands(self) -> tuple[TensorScheme | None, ...]:
        """Schemes of what flows in, in the order of the site's streams."""
        return (self.kept,)

    @property
    def weight(self) -> None:
        """A cache has none."""

    @property
    def joins_tokens(self) -> bool:
        """Whether what is computed of a token depends on those beside it."""
        return False

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self.kept is None

    def fits(self, kind: str) -> bool:
        """Whether it is one of sites of that kind."""
        return kind == "cache"

    def token_bits(self, width: int, float_bits: int) -> int:
        """Storage of one token in bits: elements, and where they are dynamic, scales and zero points.

        Args:
            width: Channels over all key heads.
            float_bits: Of an element in float.
        """
        if self.kept is None:
            return width * float_bits
        return width * self.kept.number_format.bits if self.kept.static else self.kept.bits(1, width)

    def __str__(self) -> str:
        return _spell({"c": self.kept})


Scheme = LinearScheme | MatmulScheme | CacheScheme
FLOATS: dict[str, Scheme] = {"projection": LinearScheme(), "product": MatmulScheme(), "cache": CacheScheme()}
"""What leaves a site in float, by the kind of the site."""
FLOAT = "float"
LOW = "w=int8/channel a=int8/tensor/static"
"""The low scheme where none is named: what every int8 engine computes fastest, and what spikes hurt most."""


def is_static(scheme: Scheme) -> bool:
    """Whether any of its scales come from stats."""
    return any(operand is not None and operand.needs_stats for operand in scheme.operands())


def _spell(parts: dict[str, TensorScheme | None]) -> str:
    spelled = [f"{key}={scheme.spell(key)}" for key, scheme in parts.items() if scheme is not None]
    return " ".join(spelled) or FLOAT

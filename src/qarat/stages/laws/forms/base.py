"""What a functional form is: the logarithm of a response as a sum of terms, one coefficient each.

    ln y = ln C + Σ ± θ_j · g_j(x_j)

Every law here has this shape, except that a term may shift its variable by a fitted offset before the logarithm, as the
strong law does with Q_b + d. So one class gives values, gradients and inverses of all of them.

Listing forms takes no arithmetic, so numpy is imported where there is some.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_LOG = 700.0  # of a prefactor: beyond, e to it is no float

Vector: TypeAlias = "NDArray[np.float64]"
Scale = Literal["linear", "share", "log", "log-log2", "log-share"]
_FALLING = ("share", "log-share")  # g falls where x grows

VARIABLES = {
    "size": "N, parameters",
    "tokens": "D, training tokens",
    "ratio": "Q_r, low share, 0 to 1",
    "block": "Q_b, values that share one scale",
    "bits": "P, bits a weight, averaged over all sites",
    "loss": "δ, loss increase, nats per token",
}
"""What a form may be about."""

MEAN_BITS = "the authors fitted whole models in one precision; mixed plans are counted by their mean bits"
"""What stands for a mixed plan where precision is a number of bits."""

RESPONSES = {
    "loss": "δ, nats per token",
    "perplexity-increase": "relative increase of perplexity, per cent",
    "billions": "N, billions of parameters",
}
"""What a form may give."""


@dataclass(frozen=True)
class Term:
    """One summand of a logarithm: ± θ · g(x), or ± θ · ln(x + d), or ± θ · ln(1 − x + d).

    Attributes:
        parameter: Name of θ.
        variable: Name of x.
        scale: g: x itself, 1 − x, ln x, ln log2 x, or ln(1 − x).
        sign: Of the term, so that θ is positive where the equation has it so.
        offset: Name of d; empty for none.
    """

    parameter: str
    variable: str
    scale: Scale
    sign: int = 1
    offset: str = ""

    def of(self, x: Vector | float, shift: float = 0.0) -> Vector:
        """g(x), of any shape."""
        import numpy as np

        x = self._shifted(x, shift)
        if not self.scale.startswith("log"):
            return x
        return np.log(np.log2(x)) if self.scale == "log-log2" else np.log(x)

    def by_offset(self, x: Vector, shift: float) -> Vector:
        """The derivative of ln(x + d), or of ln(1 − x + d), with respect to d; of the shape of x."""
        return 1 / self._shifted(x, shift)

    def inverse(self, g: float, shift: float = 0.0) -> float:
        """The x of a g(x)."""
        if self.scale.startswith("log"):
            g = math.exp(min(g, 700.0))
        if self.scale == "log-log2":
            g = 2.0 ** min(g, 1000.0)
        return 1 + shift - g if self.scale in _FALLING else g - shift

    def _shifted(self, x: Vector | float, shift: float) -> Vector:
        import numpy as np

        x = np.asarray(x, float)
        return (1 - x if self.scale in _FALLING else x) + shift


@dataclass(frozen=True, kw_only=True)
class Published:
    """Coefficients that a form's authors print.

    Attributes:
        name: Distinguishes several; empty if there is one.
        values: Parameter to value.
        group: What they hold for, where the form is fitted in groups.
        domain: Variable to range of the authors' data.
        note: What a reader must know.
    """

    values: Mapping[str, float]
    domain: Mapping[str, tuple[float, float]]
    name: str = ""
    group: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Form:
    """A functional form.

    Attributes:
        title: In a few words.
        equation: As a reader writes it.
        source: Paper and place.
        terms: Summands of ln y.
        prefactor: Name of the constant C; with ``logarithmic`` False, of ln C.
        logarithmic: Whether the constant is reported as C.
        response: Key of `RESPONSES`.
        by: Variables for each value of which it is fitted once.
        needs: Variable to how many different values it must have in the data.
        points: How many points it needs at the least.
        uniform: Whether it is about whole models in one precision, Q_r = 1, alone.
        mixed: What stands for a mixed plan in a law that its authors fitted to whole models in one precision; empty for
            a form that is about mixed plans, or takes none.
        method: The authors' way to fit it.
        transfers: What the authors say about other data.
        published: Coefficients that are known.
    """

    title: str
    equation: str
    source: str
    terms: tuple[Term, ...]
    prefactor: str
    points: int
    needs: Mapping[str, int]
    logarithmic: bool = True
    response: Literal["loss", "perplexity-increase", "billions"] = "loss"
    by: tuple[str, ...] = ()
    uniform: bool = False
    mixed: str = ""
    method: Literal["huber", "ols"] = "huber"
    transfers: str = ""
    published: tuple[Published, ...] = ()

    @property
    def variables(self) -> tuple[str, ...]:
        """What the terms are about."""
        return tuple(t.variable for t in self.terms)

    @property
    def offsets(self) -> tuple[Term, ...]:
        """Terms with a fitted offset."""
        return tuple(t for t in self.terms if t.offset)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters, in the order of θ: constant, terms, offsets."""
        return (self.prefactor, *(t.parameter for t in self.terms), *(t.offset for t in self.offsets))

    def log_response(self, theta: Vector, x: Mapping[str, Vector]) -> Vector:
        """Ln y, (n,), of θ (p,) with ln C first, and of variables (n,) each."""
        shifts = self._shifts(theta)
        total = theta[0]
        for slope, term in zip(theta[1:], self.terms, strict=False):
            total = total + term.sign * slope * term.of(x[term.variable], shifts.get(term.offset, 0.0))
        return total

    def gradient(self, theta: Vector, x: Mapping[str, Vector]) -> Vector:
        """Of ln y with respect to θ, (n, p)."""
        import numpy as np

        shifts = self._shifts(theta)
        columns = [np.ones(len(next(iter(x.values()))))]
        columns += [t.sign * t.of(x[t.variable], shifts.get(t.offset, 0.0)) for t in self.terms]
        slopes = dict(zip((t.parameter for t in self.terms), theta[1:], strict=False))
        columns += [t.sign * slopes[t.parameter] * t.by_offset(x[t.variable], shifts[t.offset]) for t in self.offsets]
        return np.stack(columns, axis=1)

    def solve(self, theta: Vector, asked: str, known: Mapping[str, float], log_response: float) -> float:
        """The variable that gives ln y, the others being known; NaN where its coefficient is zero."""
        shifts = self._shifts(theta)
        rest, wanted, slope = theta[0], self.terms[0], 0.0
        for coefficient, term in zip(theta[1:], self.terms, strict=False):
            if term.variable == asked:
                wanted, slope = term, term.sign * coefficient
            else:
                shift = shifts.get(term.offset, 0.0)
                rest += term.sign * coefficient * float(term.of(known[term.variable], shift))
        return wanted.inverse((log_response - rest) / slope, shifts.get(wanted.offset, 0.0)) if slope else math.nan

    def direction(self, theta: Vector, variable: str) -> float:
        """The slope of ln y along a variable as its term sees it: positive where y grows with the variable."""
        i = self.variables.index(variable)
        term = self.terms[i]
        return float(theta[1 + i]) * term.sign * (-1 if term.scale in _FALLING else 1)

    def has_numbers(self, theta: Vector) -> bool:
        """Whether the constant can be reported: an offset far beyond the data drives C to nothing, or beyond all."""
        return not self.logarithmic or abs(float(theta[0])) <= _MOST_LOG

    def natural(self, theta: Vector) -> Vector:
        """θ as it is reported: C in the place of ln C."""
        return self._with_constant(theta, math.exp)

    def internal(self, values: Vector) -> Vector:
        """The reverse of `natural`."""
        return self._with_constant(values, math.log)

    def _with_constant(self, values: Vector, convert: Callable[[float], float]) -> Vector:
        converted = values.copy()
        if self.logarithmic:
            converted[0] = convert(values[0])
        return converted

    def _shifts(self, theta: Vector) -> dict[str, float]:
        return dict(zip((t.offset for t in self.offsets), theta[1 + len(self.terms) :], strict=True))

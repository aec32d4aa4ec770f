"""What a functional form is: the logarithm of a response as a sum of terms, one coefficient each.

    ln y = ln C + Σ ± θ_j · g_j(x_j)

Every law here has this shape, except that a term may shift its variable by a fitted offset before the logarithm, as the
strong law does with Q_b + d. So a form is data: one TOML file of this folder each, of the form's name, with the fields
of `Form`; what is computed with any of them is in `qarat.stages.laws.equations`. Numbers are not needed to list forms,
so numpy is not imported here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names

Scale = Literal["linear", "share", "log", "log-log2", "log-share"]

VARIABLES = {
    "size": "N, parameters",
    "tokens": "D, training tokens",
    "ratio": "Q_r, low share, 0 to 1",
    "block": "Q_b, values that share one scale",
    "bits": "P, bits a weight, averaged over all sites",
    "loss": "δ, loss increase, nats per token",
}
"""What a form may be about."""

RESPONSES = {
    "loss": "δ, nats per token",
    "perplexity-increase": "relative increase of perplexity, per cent",
    "billions": "N, billions of parameters",
}
"""What a form may give."""


class Term(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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

    @property
    def falls(self) -> bool:
        """Whether g falls where x grows."""
        return self.scale in ("share", "log-share")


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Coefficients that a form's authors print.

    Attributes:
        name: Distinguishes several; empty if there is one.
        values: Parameter to value.
        group: What they hold for, where the form is fitted in groups.
        domain: Variable to range of the authors' data.
        note: What a reader must know.
    """

    values: dict[str, float]
    domain: dict[str, tuple[float, float]]
    name: str = ""
    group: dict[str, float] = {}
    note: str = ""


class Form(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
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
    needs: dict[str, int]
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

    @property
    def question(self) -> tuple[str, ...]:
        """The variables of a question to it, of which one is left open; what stands for the response is the last."""
        response = "size" if self.response == "billions" else "loss"
        return tuple(dict.fromkeys((*self.variables, *self.by, response)))


class Catalog(msgspec.Struct, frozen=True):
    """Every form, by name."""

    forms: dict[str, Form]

    def names(self) -> list[str]:
        """The forms there are, sorted."""
        return list(self.forms)

    def load(self, name: str) -> Form:
        """The form of that name.

        Raises:
            UserError: Unknown name; names the nearest known ones.
        """
        if name not in self.forms:
            raise UserError(f"unknown form {name!r}; {nearest_names(name, self.forms)}")
        return self.forms[name]


def read_form(text: str) -> Form:
    """A form from its TOML.

    Raises:
        msgspec.ValidationError: Naming the field that is missing, unknown or of another type.
    """
    return msgspec.toml.decode(text, type=Form)


def _read(path: Path) -> Form:
    try:
        return read_form(path.read_text(encoding="utf-8"))
    except msgspec.DecodeError as error:
        raise UserError(f"{path} is no form of a law: {error}; correct it, or remove it") from error


_FILES = sorted(Path(__file__).parent.glob("*.toml"), key=lambda path: path.stem)
FORMS = Catalog({path.stem: _read(path) for path in _FILES})

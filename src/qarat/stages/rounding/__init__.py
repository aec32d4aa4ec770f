"""Roundings: which code each weight gets, of those its scheme has. One file each; the folder is the registry.

A scheme names its rounding (``w=int4/g128/round-gptq``; none named is `nearest`), and whoever needs the weight that a
scheme means asks `round_weight`: quantization, the measurements of a search, and the prices of every metric. So what
was priced is what is run.

A file has `NEEDS` and `round_weight`, those of `Rounding`. Most roundings look at the weight alone. One that asks what
the projection reads gets it from its `Context`, computed when it is asked for and not before: the inputs of the *float*
model on the calibration tokens. GPTQ's own code lets every block read what the quantized ones before it put out, which
takes up part of their error. Here the codes of a site follow from the site, its scheme and the tokens alone: a price,
the measurement of a plan and the folder on disk mean the same numbers, blocks are built in any order, and a weight
rounded once can be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from qarat.ground.errors import UserError
from qarat.ground.registry import Registry
from qarat.maths.tensors import QuantizedTensor
from qarat.values.schemes import Scheme, TensorScheme
from qarat.values.sites import Site

__all__ = [
    "ROUNDINGS",
    "Context",
    "Merged",
    "Needs",
    "NoContext",
    "Rounding",
    "check_roundings",
    "needs_calibration",
    "round_weight",
    "why_not",
]

Needs = Literal["", "moments", "weighted_moments", "inputs", "fisher", "gradient"]


class Context(Protocol):
    """What a projection reads, in float, on the calibration tokens."""

    @property
    def moments(self) -> Tensor:
        """Mean of x·xᵀ over the tokens, (in, in) float32: the Hessian of ½ · the mean squared error of an output."""
        ...

    @property
    def weighted_moments(self) -> Tensor:
        """Mean of ḡ²·x·xᵀ over the tokens, (in, in) float32.

        ḡ² is the mean, over a token's outputs, of the squared gradient of the log-probability of labels drawn from the
        model itself.
        """
        ...

    @property
    def inputs(self) -> Tensor:
        """One row a token, (tokens, in) float32."""
        ...

    @property
    def fisher(self) -> Tensor:
        """Mean of g²·x² over the tokens, (out, in) float32: of each weight, the diagonal of the Fisher information.

        g is the gradient of the log-probability of labels drawn from the model itself, as above.
        """
        ...

    @property
    def gradient(self) -> Tensor:
        """Mean of g·x over the tokens, (out, in) float32; g the gradient of the log-probability of the next tokens."""
        ...


class NoContext:
    """The context where no calibration tokens are at hand."""

    @property
    def moments(self) -> Tensor:
        """None there are."""
        raise UserError(_MISSING.format("this rounding"))

    weighted_moments = inputs = fisher = gradient = moments


class Rounding(Protocol):
    """What a file of this folder offers.

    One that rounds to tables of a weight's own, or leaves some weights to its sparse part, has a function `why_not`
    too, from a scheme to the reason why it does not round so, empty if it does. The others are asked for neither.
    """

    NEEDS: Needs
    """What of its context it looks at; empty for nothing, so that no calibration tokens are asked for."""

    def round_weight(self, weight: Tensor, scheme: TensorScheme, context: Context) -> QuantizedTensor:
        """Round a weight.

        Args:
            weight: (out, in), any float dtype; not written to.
            scheme: Of the weight.
            context: What the projection reads.
        """
        ...


ROUNDINGS: Registry[Rounding] = Registry(__name__, "rounding", helpers=["inputs", "kept", "weighing"])
_MISSING = "{} looks at what a projection reads, and no calibration tokens are at hand; give them, or leave it out"


class Merged(NamedTuple):
    """The weights that engines merge into one, of projections that read one stream.

    Attributes:
        parts: Each (out, in), in the order they are merged; one alone where engines merge it with nothing.
        place: Which of them is meant.
        names: Of their sites.
    """

    parts: Sequence[Tensor]
    place: int
    names: Sequence[str]

    @classmethod
    def of(cls, block: nn.Module, prefix: str, site: Site, sites: Iterable[Site]) -> Merged:
        """The weights that go with a projection's.

        Args:
            block: In float.
            prefix: Of the full names of its modules.
            site: The projection.
            sites: Of the model, at least those of the block.
        """
        tied = [s for s in sites if s.block == site.block and site.tie and s.tie == site.tie] or [site]
        parts = [block.get_submodule(s.name.removeprefix(prefix)).get_parameter("weight").detach() for s in tied]
        return cls(parts, tied.index(site), [s.name for s in tied])

    def whole(self) -> Tensor:
        """All of them, one below the other."""
        return torch.cat(list(self.parts))

    def own(self, whole: QuantizedTensor) -> QuantizedTensor:
        """Of what the whole was rounded to, the part that is meant; a view."""
        first = sum(len(part) for part in self.parts[: self.place])
        return whole.rows(first, first + len(self.parts[self.place]))


def why_not(scheme: TensorScheme) -> str:
    """Why a scheme's rounding does not round a weight so; empty if it does.

    Raises:
        UserError: An unknown rounding; names the nearest.
    """
    of_rounding: Callable[[TensorScheme], str] = getattr(ROUNDINGS.load(scheme.rounding), "why_not", _scales_alone)
    why = of_rounding(scheme)
    return f"w={scheme.spell('w')}: round-{scheme.rounding} cannot: {why}" if why else ""


def _scales_alone(scheme: TensorScheme) -> str:
    if scheme.number_format.learned:
        return f"it rounds under scales, and {scheme.format} has none; use round-squeezellm, or name no rounding"
    if scheme.sparse is not None:
        return "it rounds every weight, and sparse leaves some out; use round-gwq, or name no rounding"
    return ""


def round_weight(weight: Tensor | Merged, scheme: TensorScheme, context: Context | None = None) -> QuantizedTensor:
    """Round a weight as its scheme says; other arguments as `Rounding.round_weight`.

    Where the merged weight has but one scale, the whole is rounded and the part taken from it, so that what engines
    serve is what was priced and measured.

    Args:
        weight: (out, in), any float dtype, not written to; or that and those that engines merge it with.
        scheme: Of the weight.
        context: What the projection reads.

    Raises:
        UserError: An unknown rounding, one that does not round so, or that needs a context where there is none.
    """
    if why := why_not(scheme):
        raise UserError(why)
    rounding, context = ROUNDINGS.load(scheme.rounding), context or NoContext()
    if not isinstance(weight, Merged):
        return rounding.round_weight(weight, scheme, context)
    if len(weight.parts) == 1 or not scheme.is_shared_when_merged:
        return rounding.round_weight(weight.parts[weight.place], scheme, context)
    return weight.own(rounding.round_weight(weight.whole(), scheme, context))


def needs_calibration(schemes: Iterable[Scheme]) -> bool:
    """Whether a weight of any scheme is rounded by what its projection reads.

    Raises:
        UserError: An unknown rounding; names the nearest.
    """
    return any(ROUNDINGS.load(s.weight.rounding).NEEDS for s in schemes if s.weight is not None)


def check_roundings(pairs: Iterable[tuple[Site, Scheme]], tokens: int) -> None:
    """Check that every weight can be rounded, before any long work.

    Args:
        pairs: Sites, each with a scheme that it may have.
        tokens: Of calibration, those whose inputs count; 0 where none are at hand.

    Raises:
        UserError: An unknown rounding (names the nearest), one that cannot be had of a scheme, that needs calibration
            tokens where there are none, or that weighs more channels against each other than there are tokens.
    """
    widest: dict[str, int] = {}
    for site, scheme in pairs:
        if scheme.weight is not None:
            name = scheme.weight.rounding
            if why := why_not(scheme.weight):
                raise UserError(why)
            widest[name] = max(widest.get(name, 0), site.shape[1])
    for name, channels in widest.items():
        needs = ROUNDINGS.load(name).NEEDS
        if needs and not tokens:
            raise UserError(_MISSING.format(f"round-{name}"))
        if needs in ("moments", "weighted_moments") and tokens < channels:
            raise UserError(
                f"round-{name} weighs {channels} input channels of a projection against each other, which {tokens} "
                f"calibration tokens cannot tell apart; give more windows or more text, at least {channels} tokens"
            )

"""What a plan that protects sites should be."""

from __future__ import annotations

from typing import Literal

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.values.budgets import parse_loss_budget
from qarat.values.plans import PlanError
from qarat.values.schemes import LOW, LinearScheme, SchemeError, parse_scheme

PLANNING_RULES = ("snr", "ratio", "super-weight", "gap")
"""The spike rules that a plan can follow: they flag streams that projections read, while ``massive`` watches the
residual stream."""
PROTECTIONS = {
    "float": "float",
    "fp8": "w=e4m3/tensor a=e4m3/tensor/static",
    "fp8-e5m2": "w=e5m2/tensor a=e5m2/tensor/static",
}
ENGINES_THAT_FUSE = ("vllm",)
RULE = "*.down_proj: w=int8/channel a=int8/token"  # an example, for messages


class ProtectRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a plan should be.

    Attributes:
        low: Scheme of every projection that is not protected.
        protect: ``float``, ``fp8``, ``fp8-e5m2`` or the spelling of a scheme.
        budget: ``ppl+1%`` or ``nats+0.05``.
        by: ``damage`` (ranked by damage per parameter, confirmed by the measured sweep) or a spike rule (its sites
            alone).
        sites: Patterns of the sites to protect, instead of choosing them.
        rules: Ordered ``pattern: scheme`` overrides, last match wins; they are part of every plan that is tried.
        runtime: ``any``, or an engine that fuses q/k/v and gate/up, so that they must share a scheme: ``vllm``.
        prefix: So many tokens in front of every window are computed in float; ``auto``: as many as hold spikes.
        transforms: What is done to the float model before it is planned, in order, e.g. ``smooth/auto``, ``hadamard``
            (`qarat.jobs.transforming`).
    """

    low: str = LOW
    protect: str = "float"
    budget: str = "ppl+1%"
    by: str = "damage"
    sites: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    runtime: str = "any"
    prefix: int | Literal["auto"] = 0
    transforms: tuple[str, ...] = ()

    def check(self) -> None:
        """Check everything that can be checked without a model.

        Raises:
            UserError: Malformed or unknown words.
        """
        _check_scheme("low", self.low)
        _check_scheme("protect", self.protection)
        parse_loss_budget(self.budget)
        if self.sites and self.by != "damage":
            raise UserError("`sites` and `by` both say what to protect; give one of them")
        if self.by == "massive":
            raise UserError("`by` massive: it flags the residual stream, which no site reads; try `by` super-weight")
        if self.by != "damage" and self.by not in PLANNING_RULES:
            raise UserError(f"`by` {self.by}: {nearest_names(self.by, ['damage', *PLANNING_RULES])}")
        if self.runtime not in ("any", *ENGINES_THAT_FUSE):
            raise UserError(f"`runtime` {self.runtime}: known are any, {', '.join(ENGINES_THAT_FUSE)}")
        if self.prefix != "auto" and self.prefix < 0:
            raise UserError(f"`prefix` {self.prefix}: give the number of leading tokens, or auto")
        self.overrides()

    @property
    def protection(self) -> str:
        """Spelling of the scheme that protected sites get."""
        return PROTECTIONS.get(self.protect, self.protect)

    def overrides(self) -> tuple[tuple[str, str], ...]:
        """The rules as (pattern, spelling) pairs.

        Raises:
            PlanError: A rule without a colon.
        """
        pairs: list[tuple[str, str]] = []
        for rule in self.rules:
            pattern, colon, spelling = rule.partition(":")
            if not colon:
                raise PlanError(f"{rule!r} is no rule; write PATTERN: SCHEME, e.g. {RULE!r}")
            try:
                parse_scheme(spelling.strip())
            except SchemeError as error:
                raise SchemeError(f"`rules` {rule!r}: {error}") from None
            pairs.append((pattern.strip(), spelling.strip()))
        return tuple(pairs)


def _check_scheme(field: str, spelling: str) -> None:
    try:
        scheme = parse_scheme(spelling)
    except SchemeError as error:
        raise SchemeError(f"`{field}`: {error}") from None
    if not isinstance(scheme, LinearScheme):
        raise SchemeError(
            f"`{field}` {spelling!r}: projections have w=… and a=…; l= and r= belong to attention products"
        )

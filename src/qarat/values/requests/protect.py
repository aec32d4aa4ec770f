"""What a plan that protects sites should be."""

from __future__ import annotations

from typing import Literal

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.values.budgets import parse_loss_budget
from qarat.values.parsing import parse_scheme, parse_scheme_in
from qarat.values.plans import PlanError
from qarat.values.schemes import LOW, LinearScheme, SchemeError

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
    """What is quantized, what may be protected, and what that may cost.

    Attributes:
        low: Scheme of every projection that is not protected.
        protect: What protected sites get: float, fp8, fp8-e5m2, or a scheme.
        budget: What may be lost over float: a perplexity (ppl+1%) or nats per token (nats+0.05).
        by: What chooses: damage, a few plans measured; or one rule alone: snr, ratio, super-weight, gap.
        sites: Protect just these instead of choosing, such as 1.down or '*.30.*.down_proj'.
        rules: Override the scheme of some sites; may be given several times, the last match wins.
        runtime: Engine whose fused projections must share a scheme (q, k and v; gate and up): vllm, or any for none.
        prefix: Keep so many tokens in front of each window in float, as keys and values; auto: as many as hold spikes.
        transforms: Change the float model first, its function kept: hadamard, smooth/0.5, smooth/auto, split/64 (see
            docs/formats.md).
        rewrites: Do not scale and split channels first, which is free at run time (and not done where transforms are
            given).
    """

    low: str = LOW
    protect: str = "float"
    budget: str = "ppl+1%"
    by: str = "damage"
    sites: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    runtime: str = ENGINES_THAT_FUSE[0]
    prefix: int | Literal["auto"] = 0
    transforms: tuple[str, ...] = ()
    rewrites: bool = True

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
    scheme = parse_scheme_in(field, spelling)
    if not isinstance(scheme, LinearScheme):
        raise SchemeError(
            f"`{field}` {spelling!r}: projections have w=… and a=…; l= and r= belong to attention products, and c= to "
            "caches"
        )

"""What a sweep over a family of models is asked to measure."""

from __future__ import annotations

import msgspec

from qarat.ground.errors import UserError
from qarat.values.block_sizes import low_schemes
from qarat.values.budgets import parse_loss_budget
from qarat.values.requests.search import SearchRequest


class FamilyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be measured of every model.

    Attributes:
        formats: Low formats: mxint4, mxfp4 (weights and inputs), int4 (weights), int8-static, or schemes 'w=... a=...'.
        blocks: Values that share a scale, a row (channel or token), or the tensor; formats with static scales keep
            theirs.
        ratios: Ratios at which the best predicted plan is measured.
        budgets: Losses within which the highest ratio is looked for.
        granularity: Decide each projection, or whole blocks.
        basis: What Q_r counts; by macs, the attention products are decided too.
        metric: What predictions come from; see `qarat damage --help`.
        price_windows: Selection windows that prices come from.
        family: What the table calls models that share recipe and data. (default: what the names begin with)
    """

    formats: tuple[str, ...] = ("mxint4",)
    blocks: tuple[str, ...] = ("32",)
    ratios: tuple[float, ...] = (0.5, 0.75, 0.9, 1.0)
    budgets: tuple[str, ...] = ("ppl+5%", "ppl+10%", "ppl+20%")
    granularity: str = "matmul"
    basis: str = "parameters"
    metric: str = "fisher"
    price_windows: int = 16
    family: str = ""

    def check(self) -> None:
        """Check everything that can be checked without a model.

        Raises:
            UserError: Malformed or unknown words, numbers out of range, nothing to do.
        """
        for budget in self.budgets:
            parse_loss_budget(budget)
        if not self.formats or not self.blocks or not self.ratios:
            raise UserError("a sweep needs a format (`formats`), a block size (`blocks`) and a ratio (`ratios`)")
        if wrong := [ratio for ratio in self.ratios if not 0 < ratio <= 1]:
            raise UserError(f"`ratios` {', '.join(map(str, wrong))}: a ratio is above 0 and at most 1")

    def searches(self) -> tuple[SearchRequest, ...]:
        """The searches of one model."""
        budgets = (*dict.fromkeys(f"ratio={ratio:g}" for ratio in self.ratios), *self.budgets)
        return tuple(
            SearchRequest(
                low,
                granularity=self.granularity,
                basis=self.basis,
                budgets=budgets,
                metric=self.metric,
                price_windows=self.price_windows,
            )
            for low in low_schemes(self.formats, self.blocks)
        )

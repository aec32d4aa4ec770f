"""What many searches are asked to find out: a ratio study of one model, and a sweep over a family of models."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import msgspec

from qarat.ground.errors import UserError
from qarat.values.budgets import parse_loss_budget
from qarat.values.requests.search import SearchRequest
from qarat.values.spellings import full_spelling, low_schemes, with_block


class RatioRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be found out, ratio by ratio; the defaults are the paper's.

    Attributes:
        low: Scheme whose share is to be as large as possible; `blocks` gives its block size.
        blocks: Block sizes: values that share a scale.
        ratios: Ratios at which each projection is decided; without a value that is left out.
        layer_ratios: Ratios at which whole blocks are decided; without a value that is left out.
        budgets: Losses within which the highest ratio is looked for.
        trials: Random plans at each ratio.
        best_of: Numbers of random plans whose best are compared, matmul-wise at the last block size; none leaves that
            out.
        ablated_ratio: Ratio at which that is done.
        basis: What Q_r counts; by macs, the attention products are decided too.
        metric: What predictions come from; see `qarat damage --help`.
        price_windows: Selection windows that prices come from.
    """

    low: str = "w=mxint4 a=mxint4"
    blocks: tuple[int, ...] = (16, 32)
    ratios: tuple[float, ...] = (0.5, 0.9, 0.95, 0.975, 0.99)
    layer_ratios: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    budgets: tuple[str, ...] = ("ppl+5%", "ppl+10%", "ppl+20%")
    trials: int = 50
    best_of: tuple[int, ...] = (10, 20, 50, 100, 200)
    ablated_ratio: float = 0.9
    basis: str = "parameters"
    metric: str = "fisher"
    price_windows: int = 16

    def check(self) -> None:
        """Check everything that can be checked without a model.

        Raises:
            UserError: Malformed or unknown words, numbers out of range, nothing to do.
        """
        for budget in self.budgets:
            parse_loss_budget(budget)
        if not self.blocks or not (self.ratios or self.layer_ratios):
            raise UserError("a study needs a block size (`blocks`) and a ratio (`ratios` or `layer_ratios`)")
        for values, option in ((self.blocks, "`blocks`"), (self.best_of, "`best_of`")):
            if any(value < 1 for value in values):
                raise UserError(f"{option}: give numbers of at least 1")
        _check_ratios((*self.ratios, *self.layer_ratios, self.ablated_ratio))

    def granularities(self) -> tuple[tuple[str, tuple[float, ...]], ...]:
        """Granularities and their ratios."""
        both = (("matmul", self.ratios), ("layer", self.layer_ratios))
        return tuple((granularity, ratios) for granularity, ratios in both if ratios)

    def searches(self) -> tuple[SearchRequest, ...]:
        """A search for every block size and granularity."""
        pairs = product(self.blocks, self.granularities())
        return tuple(self.search(block, granularity) for block, (granularity, _) in pairs)

    def search(self, block: int, granularity: str, **more: object) -> SearchRequest:
        """The request of one of the study's searches."""
        request = SearchRequest(
            with_block(full_spelling(self.low), str(block)),
            granularity=granularity,
            basis=self.basis,
            budgets=self.budgets,
            metric=self.metric,
            trials=self.trials,
            price_windows=self.price_windows,
            rewrites=False,
        )
        return msgspec.structs.replace(request, **more)

    def plans(self) -> int:
        """How many random plans are drawn in all."""
        arms = len(self.blocks) * self.trials * sum(len(ratios) for _, ratios in self.granularities())
        return arms + max(self.best_of, default=0)


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
        _check_ratios(self.ratios, "`ratios` ")

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
                rewrites=False,
            )
            for low in low_schemes(self.formats, self.blocks)
        )


def _check_ratios(ratios: Sequence[float], field: str = "") -> None:
    if wrong := [ratio for ratio in ratios if not 0 < ratio <= 1]:
        raise UserError(f"{field}{', '.join(map(str, wrong))}: a ratio is above 0 and at most 1")

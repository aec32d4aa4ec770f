"""What a ratio study is asked to find out."""

from __future__ import annotations

from itertools import product

import msgspec

from qarat.ground.errors import UserError
from qarat.values.block_sizes import with_block
from qarat.values.budgets import parse_loss_budget
from qarat.values.requests.search import SearchRequest
from qarat.values.spellings import full_spelling


class RatioRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be found out, ratio by ratio; the defaults are the paper's.

    Attributes:
        low: Scheme whose share is to be as large as possible; `blocks` gives its block size.
        blocks: Block sizes: values that share a scale.
        ratios: Ratios at which each projection is decided; none leaves that out.
        layer_ratios: Ratios at which whole blocks are decided; none leaves that out.
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
        ratios = (*self.ratios, *self.layer_ratios, self.ablated_ratio)
        if wrong := [r for r in ratios if not 0 < r <= 1]:
            raise UserError(f"{', '.join(map(str, wrong))}: a ratio is above 0 and at most 1")

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
        )
        return msgspec.structs.replace(request, **more)

    def plans(self) -> int:
        """How many random plans are drawn in all."""
        arms = len(self.blocks) * self.trials * sum(len(ratios) for _, ratios in self.granularities())
        return arms + max(self.best_of, default=0)

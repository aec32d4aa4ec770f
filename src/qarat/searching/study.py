"""The second founding paper's experiment on one model (arXiv 2410.06722v1, sections 3 and 4.1), whole.

At every ratio 50 random plans and the best of them, layer-wise and matmul-wise, at several block sizes; beside it the
predicted search at the ratios that random came to, and what loss budgets reach. The paper's two ablations: how much
more random plans find (App. D), and how many windows an evaluation needs (App. E), the latter from losses of windows
that are there already. What the paper does not say, how a ratio is enforced, is in `qarat.search.strategies.random`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import msgspec

from qarat import damage
from qarat.budgets import parse_loss_budget
from qarat.errors import UserError
from qarat.recordfiles import encode_record
from qarat.records import paired_difference
from qarat.searches import NOTHING, Reached, SearchResult
from qarat.searching.ablations import best_of, windows_taken
from qarat.searching.blocks import with_block
from qarat.searching.job import SearchJob
from qarat.searching.nested import chosen_plan, reach_of, search_within
from qarat.searching.request import SearchRequest
from qarat.searching.setting import Member, Setting
from qarat.searching.spellings import full_spelling
from qarat.studies import BestOf, RatioStudy, StudyArm, StudyPoint, Windows
from qarat.workspace import Run, write_whole

__all__ = ["STUDY", "StudyJob", "StudyRequest"]

STUDY = "study.json"
DIGITS = 9  # of a ratio that is asked for, cut off so that the plan that has it is never just out of reach


class StudyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be found out; the defaults are the paper's.

    Attributes:
        low: Scheme whose share is to be as large as possible, at any block size.
        blocks: Block sizes Q_b.
        ratios: Q_r at which plans are drawn matmul-wise; empty leaves matmul-wise out.
        layer_ratios: The same layer-wise.
        budgets: Of loss.
        trials: Random plans at each ratio.
        best_of: Numbers of random plans of the first ablation; empty leaves both ablations out.
        ablated_ratio: Q_r of the ablations.
        basis: What Q_r counts.
        metric: Behind predictions.
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
    metric: str = damage.DEFAULT
    price_windows: int = 16

    def check(self) -> None:
        """Check everything that can be checked without a model.

        Raises:
            UserError: Malformed or unknown words, numbers out of range, nothing to do.
        """
        for budget in self.budgets:
            parse_loss_budget(budget)
        if not self.blocks or not (self.ratios or self.layer_ratios):
            raise UserError("a study needs a block size (--blocks) and a ratio (--ratios or --layer-ratios)")
        for values, option in ((self.blocks, "--blocks"), (self.best_of, "--best-of")):
            if any(value < 1 for value in values):
                raise UserError(f"{option}: give numbers of at least 1")
        ratios = (*self.ratios, *self.layer_ratios, self.ablated_ratio)
        if wrong := [r for r in ratios if not 0 < r <= 1]:
            raise UserError(f"{', '.join(map(str, wrong))}: a ratio is above 0 and at most 1")
        for block, (granularity, _) in product(self.blocks, self.granularities()):
            self.search(block, granularity).check()

    def granularities(self) -> tuple[tuple[str, tuple[float, ...]], ...]:
        """Granularities and their ratios."""
        both = (("matmul", self.ratios), ("layer", self.layer_ratios))
        return tuple((granularity, ratios) for granularity, ratios in both if ratios)

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


class StudyJob:
    """A study: a model, what is to be found out, and how."""

    def __init__(self, member: Member, request: StudyRequest, setting: Setting) -> None:
        """Check the request against the model; nothing long is done.

        Args:
            member: Model and tokens.
            request: Checked already.
            setting: How plans are measured.

        Raises:
            UserError: As `SearchJob`.
        """
        self.member, self.request, self.setting = member, request, setting
        for block, (granularity, _) in product(request.blocks, request.granularities()):
            SearchJob(member, request.search(block, granularity), setting)

    def execute(self, run: Run) -> RatioStudy:
        """Do every search that is not done yet, and put the folder into place."""
        request = self.request
        arms = [
            self._arm(run, block, granularity, ratios)
            for block, (granularity, ratios) in product(request.blocks, request.granularities())
        ]
        ablated, trials, windows = self._ablations(run)
        _, selection, report = self.member.tokens
        study = RatioStudy(
            self.member.model.provenance(selection.fingerprint, selection.convention),
            report.fingerprint,
            request.basis,
            request.metric,
            request.trials,
            tuple(arms),
            ablated,
            trials,
            windows,
        )
        write_whole(run.path(STUDY), encode_record(study))
        run.finish()
        return study

    def _arm(self, run: Run, block: int, granularity: str, ratios: Sequence[float]) -> StudyArm:
        budgets = self.request.budgets
        asked = [f"ratio={ratio:g}" for ratio in ratios]
        place = f"{granularity} g{block}"
        random = self._search(
            run,
            f"{place} random",
            block,
            granularity,
            strategy="random",
            budgets=(*dict.fromkeys(asked), *budgets),
            points=tuple(ratios),  # the losses are of the plans that are drawn there, and at no other ratio
        )
        by_budget = {r.budget: r for r in random.reached}
        best = [by_budget[a] for a in asked]
        # Predicted plans are asked for at the ratios that random came to, which may be above those asked for.
        again = [_spell_ratio(chosen_plan(random, r).ratio, r.budget) for r in best]
        predicted = self._search(
            run, f"{place} predicted", block, granularity, budgets=(*dict.fromkeys(again), *budgets)
        )
        by_budget = {r.budget: r for r in predicted.reached}
        return StudyArm(
            granularity,
            block,
            random.menu[0],
            len(random.units),
            tuple(
                _point(ratio, random, r, predicted, by_budget[a])
                for ratio, r, a in zip(ratios, best, again, strict=True)
            ),
            tuple(reach_of(random, budget) for budget in budgets),
            tuple(reach_of(predicted, budget) for budget in budgets),
            random.cost,
            predicted.cost,
        )

    def _ablations(self, run: Run) -> tuple[str, tuple[BestOf, ...], tuple[Windows, ...]]:
        request = self.request
        if not request.best_of:
            return "", (), ()
        block, (granularity, _) = request.blocks[-1], request.granularities()[0]
        place, budget = f"{granularity} g{block} best-of", f"ratio={request.ablated_ratio:g}"
        most = max(request.best_of)
        result = self._search(run, place, block, granularity, strategy="random", budgets=(budget,), trials=most)
        losses = [t.damage.nats for t in result.trials if not t.failure]
        windows = ()
        if result.reached[0].trial >= 0:
            windows = windows_taken(result.report_loss(result.reached[0]), result.float_report)
        words = f"{granularity}-wise, block {block}, Q_r {request.ablated_ratio:g}"
        return words, tuple(best_of(losses, n) for n in sorted(set(request.best_of)) if n <= len(losses)), windows

    def _search(self, run: Run, place: str, block: int, granularity: str, **more: object) -> SearchResult:
        job = SearchJob(self.member, self.request.search(block, granularity, **more), self.setting.within(place))
        return search_within(run, place.replace(" ", "-"), job)


def _point(asked: float, random: SearchResult, r: Reached, predicted: SearchResult, p: Reached) -> StudyPoint:
    more = NOTHING
    if r.report and p.report:
        more = paired_difference(predicted.report_loss(p), random.report_loss(r))
    return StudyPoint(asked, chosen_plan(random, r), chosen_plan(predicted, p), more)


def _spell_ratio(ratio: float, otherwise: str) -> str:
    """A budget at the ratio of a plan; the budget that was asked for where there is no plan."""
    if math.isnan(ratio):
        return otherwise
    digits = f"{math.floor(ratio * 10**DIGITS) / 10**DIGITS:.{DIGITS}f}".rstrip("0").rstrip(".")
    return f"ratio={digits}"

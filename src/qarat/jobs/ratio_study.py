"""The second founding paper's experiment on one model (arXiv 2410.06722v1, sections 3 and 4.1), whole.

At every ratio 50 random plans and the best of them, layer-wise and matmul-wise, at several block sizes; beside it the
predicted search at the ratios that random came to, and what loss budgets reach. The paper's two ablations: how much
more random plans find (App. D), and how many windows an evaluation needs (App. E), the latter from losses of windows
that are there already. What the paper does not say, how a ratio is enforced, is in
`qarat.stages.choose.strategies.random`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import msgspec

from qarat.ground.disk import write_whole
from qarat.jobs.bench import Bench, Member
from qarat.jobs.folder import Run, result_of
from qarat.jobs.search.job import SearchJob
from qarat.jobs.search.nested import chosen_plan, reach_of, search_within
from qarat.values.records.files import encode_record
from qarat.values.records.ratios import BestOf, RatioArm, RatioPoint, RatioStudy, Windows
from qarat.values.records.scores import Evaluation, paired_difference
from qarat.values.records.search import NOTHING, Reached, SearchResult
from qarat.values.requests.studies import RatioRequest

KIND = "ratio-study"
RESULT = result_of(KIND)
FEWEST = 4  # windows from which on the second ablation goes, by doubling
DIGITS = 9  # of a ratio that is asked for, cut off so that the plan that has it is never just out of reach


class RatioJob:
    """A study: a model, what is to be found out, and how."""

    def __init__(self, member: Member, request: RatioRequest, setting: Bench) -> None:
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
        write_whole(run.path(RESULT), encode_record(study))
        run.finish()
        return study

    def _arm(self, run: Run, block: int, granularity: str, ratios: Sequence[float]) -> RatioArm:
        budgets = self.request.budgets
        spellings = [f"ratio={ratio:g}" for ratio in ratios]
        place = f"{granularity} g{block}"
        random = self._search(
            run,
            f"{place} random",
            block,
            granularity,
            strategy="random",
            budgets=(*dict.fromkeys(spellings), *budgets),
            points=tuple(ratios),  # the losses are of the plans that are drawn there, and at no other ratio
        )
        best = [random.budget(spelling) for spelling in spellings]
        # Predicted plans are asked for at the ratios that random came to, which may be above those asked for.
        again = [_spell_ratio(chosen_plan(random, r).ratio, r.budget) for r in best]
        predicted = self._search(
            run, f"{place} predicted", block, granularity, budgets=(*dict.fromkeys(again), *budgets)
        )
        return RatioArm(
            granularity,
            block,
            random.menu[0],
            len(random.units),
            tuple(
                _point(ratio, random, r, predicted, predicted.budget(a))
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
        caption = f"{granularity}-wise, block {block}, Q_r {request.ablated_ratio:g}"
        return caption, tuple(best_of(losses, n) for n in sorted(set(request.best_of)) if n <= len(losses)), windows

    def _search(self, run: Run, place: str, block: int, granularity: str, **more: object) -> SearchResult:
        job = SearchJob(self.member, self.request.search(block, granularity, **more), self.setting.within(place))
        return search_within(run, place.replace(" ", "-"), job)


def _point(ratio: float, random: SearchResult, r: Reached, predicted: SearchResult, p: Reached) -> RatioPoint:
    more = NOTHING
    if r.report and p.report:
        more = paired_difference(predicted.report_loss(p), random.report_loss(r))
    return RatioPoint(ratio, chosen_plan(random, r), chosen_plan(predicted, p), more)


def _spell_ratio(ratio: float, otherwise: str) -> str:
    """A budget at the ratio of a plan; the budget that was asked for where there is no plan."""
    if math.isnan(ratio):
        return otherwise
    digits = f"{math.floor(ratio * 10**DIGITS) / 10**DIGITS:.{DIGITS}f}".rstrip("0").rstrip(".")
    return f"ratio={digits}"


# ---------------------------------------------------------------- ablations


def best_of(losses: Sequence[float], trials: int) -> BestOf:
    """The best of so many random plans: of the first ones, and over every choice of so many among all.

    Args:
        losses: Of all plans, in the order in which they were drawn.
        trials: At most as many.
    """
    ordered, total = sorted(losses), math.comb(len(losses), trials)
    # The i-th best is the best of a choice if it is in it and the others are among those behind it.
    chances = [math.comb(len(losses) - 1 - i, trials - 1) / total for i in range(len(losses))]
    mean = math.fsum(p * loss for p, loss in zip(chances, ordered, strict=True))
    variance = math.fsum(p * (loss - mean) ** 2 for p, loss in zip(chances, ordered, strict=True))
    return BestOf(trials, min(losses[:trials]), mean, math.sqrt(variance))


def windows_taken(plan: Evaluation, base: Evaluation) -> tuple[Windows, ...]:
    """What ever more windows of two evaluations say, evenly spread: 4, 8, 16, … and all of them."""
    total = len(base.nats)
    counts = [n for n in (FEWEST << k for k in range(total.bit_length())) if n < total]
    taken: list[Windows] = []
    for count in (*counts, total):
        rows = [i * total // count for i in range(count)]
        a, b = _take(plan, rows), _take(base, rows)
        taken.append(Windows(count, b.loss, paired_difference(a, b)))
    return tuple(taken)


def _take(evaluation: Evaluation, rows: Sequence[int]) -> Evaluation:
    return msgspec.structs.replace(
        evaluation,
        nats=tuple(evaluation.nats[i] for i in rows),
        predicted=tuple(evaluation.predicted[i] for i in rows),
        sources=tuple(evaluation.sources[i] for i in rows),
    )

"""Advice: what a dozen schemes would cost on a model, from one profile pass and one forward and backward pass.

The pass prices every scheme at every site as it is, and gathers what rewrites are fitted from; from then on all is
arithmetic (`qarat.jobs.landscape`). A few of the recipes that keep the budget are measured on the selection tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice, zip_longest

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.jobs.engine_answers import SIMULATED
from qarat.jobs.estimates import PRICED_ON, ROUNDING, price_forwards
from qarat.jobs.folder import PROFILE, Run, Step, result_of
from qarat.jobs.landscape import KEPT, Considered, Drafted, consider, draft
from qarat.jobs.protecting import draft_plan, profile
from qarat.jobs.rewriting import CAUTION, fit_several, reaching
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.prices.changes import Pricing
from qarat.stages.prices.fisher import METRIC, score
from qarat.stages.prices.metric import Tally
from qarat.stages.prices.pricing import check_pricing, menu_of
from qarat.stages.quantize import quantize
from qarat.stages.rounding.inputs import Calibration
from qarat.stages.transforms import parse_transform
from qarat.stages.transforms.rewrite import columns_for
from qarat.values.budgets import parse_loss_budget
from qarat.values.engines import ENGINES
from qarat.values.parsing import input_scheme, parse_scheme
from qarat.values.records.advice import Advice, AdvisedScheme, LeftOut
from qarat.values.records.origin import Difference
from qarat.values.records.prices import Menu
from qarat.values.records.rewrites import Rewrites
from qarat.values.records.scores import paired_difference
from qarat.values.records.streams import ActivationStats
from qarat.values.requests.advise import AdviseRequest
from qarat.values.schemes import CacheScheme, Scheme, is_static

KIND = "advice"
ADVISE: Step[Advice] = Step("advise", (result_of(KIND),))
TABULATING = 2  # forwards that the table and the descent of one scheme take (`qarat.jobs.rewriting.FITTING_FORWARDS`)
NEAR = 1.05  # recipes whose bytes are within so much of the smallest are told apart by what they lose


class Advisor:
    """Gives advice on one model.

    Attributes:
        considered: Schemes that are looked at.
        left_out: The others.
        tied: Whether sites that an engine fuses share a scheme.
    """

    def __init__(
        self,
        model: Model,
        tokens: tuple[TokenSet, TokenSet, TokenSet],
        request: AdviseRequest,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> None:
        """Say what is looked at; nothing is computed.

        Args:
            model: In float.
            tokens: Calibration, selection and report, of which the last stays untouched.
            request: What to look at.
            seed: Of the labels drawn.
            progress: Called as the work goes on.

        Raises:
            UserError: Malformed or unknown words; a quantized model; no scheme that fits the model and that the engines
                run, with the reasons.
        """
        request.check()
        model.require_float("advise on")
        # Blocks are not kept: bringing them in is a small part of going through them.
        self.model, self.request, self.seed, self.progress = model.unkept(), request, seed, progress
        self.calibration, self.selection, _ = tokens
        self.inputs = Calibration(self.model, self.calibration)
        self.budget = parse_loss_budget(request.budget)
        fuses = [ENGINES[name].fuses for name in request.engine if name in ENGINES]
        self.tied = not request.engine or any(fuses)
        considered = [consider(model, name, low, request.engine) for name, low in request.named().items()]
        self.considered = [c for c in considered if isinstance(c, Considered)]
        self.left_out = tuple(c for c in considered if isinstance(c, LeftOut))
        if not self.considered:
            reasons = "\n  ".join(f"{left.name}: {left.why}" for left in self.left_out)
            raise UserError(f"no scheme is left to look at; give other `schemes`, or another `engine`:\n  {reasons}")

    def work(self, measured: int | None = None) -> dict[str, float]:
        """Tokens that each part sends through the whole model.

        Args:
            measured: Recipes; default as many as were asked for.
        """
        calibration, selection = (t.windows.numel() for t in (self.calibration, self.selection))
        number = min(self.request.measure, len(self.considered)) if measured is None else measured
        fitted = sum(c.rewritten for c in self.considered)
        forwards = price_forwards(len(self._priced())) + (1 + TABULATING * fitted if fitted else 0)
        work: dict[str, float] = {"profile": calibration, "damage": forwards * min(selection, PRICED_ON)}
        return work | ({"measure": selection + number * (selection + calibration + ROUNDING)} if number else {})

    def profile(self) -> ActivationStats:
        """The stats behind static scales and rewrites."""
        caches = any(isinstance(c.scheme, CacheScheme) and is_static(c.scheme) for c in self.considered)
        return profile(self.model, self.calibration, attention=caches, progress=self.progress)

    def advise(self, stats: ActivationStats) -> Advice:
        """The landscape, and what some of its recipes lose.

        Args:
            stats: From `profile`.
        """
        menu, rewrites = self._predict(stats)
        fitted = (rewrites.get(c.name) for c in self.considered)
        pairs = zip(self.considered, fitted, strict=True)
        drafted = [draft(self.model, c, menu, r, self.budget, tied=self.tied) for c, r in pairs]
        drafted.sort(key=lambda d: (d.advised.size, d.advised.cache, d.advised.predicted))
        picked = pick([d.advised for d in drafted], self.request.measure)
        measured = self._measure([d for d in drafted if d.advised.name in picked], stats) if picked else {}
        tokens, seen = self.selection, self.selection.at_most(PRICED_ON).windows.numel()
        forwards = sum(self.work(len(picked)).values()) / tokens.windows.numel()
        belongs_to = self.budget.spelling, self.budget.nats, CAUTION, self.request.engine
        origin = self.model.provenance(tokens.fingerprint, tokens.convention, self.seed)
        return Advice(origin, *belongs_to, tuple(d.advised for d in drafted), measured, self.left_out, seen, forwards)

    def _priced(self) -> list[Scheme]:
        """Every scheme, and weights alone where rewriting does not price them."""
        alone = [c.weights for c in self.considered if c.weights is not None]
        return list(dict.fromkeys([*(c.scheme for c in self.considered), *alone]))

    def _predict(self, stats: ActivationStats) -> tuple[Menu, dict[str, Rewrites]]:
        """Prices of every scheme as the model is, and rewrites where they can be fitted, by name; from one pass."""
        model, tokens = self.model, self.selection.at_most(PRICED_ON)
        pricing = Pricing(model, tokens, self._priced(), stats, self.inputs, (), self.seed, self.progress)
        check_pricing(METRIC, pricing)
        fitted = [c for c in self.considered if c.rewritten]
        if not fitted:
            return menu_of(METRIC, pricing, METRIC.windows(pricing)), {}
        tally = Tally(pricing, score)
        rewrites = fit_several(pricing, [reaching(c.low) for c in fitted], columns_for(model), tally.add)
        return menu_of(METRIC, pricing, tally.prices()), {c.name: r for c, r in zip(fitted, rewrites, strict=True)}

    def _measure(self, drafted: Sequence[Drafted], stats: ActivationStats) -> dict[str, Difference]:
        """What recipes lose over float on the selection tokens, by name."""
        float_loss = measure_perplexity(self.model, self.selection, label="float", progress=self.progress)
        lost: dict[str, Difference] = {}
        for advised, request, rewrites in drafted:
            model, seen, static = self.model, stats, is_static(parse_scheme(advised.scheme))
            if rewrites is not None:
                model = parse_transform(advised.transform).apply(model, rewrites)
                if static:
                    seen = profile(model, self.calibration, attention=False, progress=self.progress)
            kept = dict.fromkeys(advised.kept, type(parse_scheme(advised.scheme))())
            plan = draft_plan(model, request).with_schemes(kept, KEPT)
            low = quantize(model, plan, seen if static else None, self.inputs)
            loss = measure_perplexity(low, self.selection, label=advised.name, progress=self.progress)
            lost[advised.name] = paired_difference(loss, float_loss)
        return lost


def advise_in(run: Run, advisor: Advisor) -> Advice:
    """Advice as the steps of a folder: a killed one goes on behind its profile.

    Args:
        run: Begun; it is finished here.
        advisor: That gives it.
    """
    tokens, selection = advisor.calibration, advisor.selection
    origin = advisor.model.provenance(tokens.fingerprint, tokens.convention, advisor.seed)
    stats = PROFILE.make(run, msgspec.to_builtins(origin), advisor.profile)
    key = selection.fingerprint, selection.convention, msgspec.to_builtins(advisor.request)
    advice = ADVISE.make(run, key, lambda: advisor.advise(stats), [PROFILE])
    run.finish()
    return advice


def pick(schemes: Sequence[AdvisedScheme], most: int) -> frozenset[str]:
    """Names of the recipes to measure: the best of each kind of inputs, then the second best, and so on.

    Inputs are left in float, rounded as they come, or under static scales: it is their kind that decides where a scheme
    runs fast; caches are a kind of their own. The best are the smallest, and of those about as small the one that loses
    least. Where engines have kernels for any, the others wait for them.

    Args:
        schemes: With their recipes; those that leave nothing low do not count.
        most: So many.
    """
    low = [s for s in schemes if s.is_low]
    run = [s for s in low if any(a.runs not in ("", SIMULATED) for a in s.engines)]
    return frozenset(s.name for s in islice(chain(_by_turns(run), _by_turns([s for s in low if s not in run])), most))


def _by_turns(schemes: Sequence[AdvisedScheme]) -> Iterator[AdvisedScheme]:
    kinds: dict[object, list[AdvisedScheme]] = {}
    for advised in _ranked(schemes):
        inputs = input_scheme(advised.scheme)
        kinds.setdefault("caches" if advised.is_of_caches else inputs and inputs.static, []).append(advised)
    return (s for turn in zip_longest(*kinds.values()) for s in turn if s is not None)


def _ranked(schemes: Sequence[AdvisedScheme]) -> Iterator[AdvisedScheme]:
    """The smallest first; of those about as small, the one that is predicted to lose least."""
    rest = sorted(schemes, key=lambda s: s.spent)
    while rest:
        best = min((s for s in rest if s.spent <= NEAR * rest[0].spent), key=lambda s: s.predicted)
        rest.remove(best)
        yield best

"""What a search is asked to find out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.values.budgets import Budget, CostBudget, LossBudget, parse_budget
from qarat.values.parsing import parse_scheme, parse_scheme_in
from qarat.values.plans import Plan, assign
from qarat.values.requests.protect import ProtectRequest
from qarat.values.schemes import FLOAT, CacheScheme, LinearScheme, MatmulScheme, TensorScheme
from qarat.values.spellings import full_spelling, is_of_caches, parse_low, split_commas
from qarat.values.units import Option, with_caches

POINTS = {"matmul": (0.5, 0.75, 0.9, 0.95), "layer": (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)}
"""Ratios at which curves are measured where none are asked for: the second paper's, without those that small models
cannot tell apart."""
BITS = (12.0, 8.0, 6.0, 5.0)
"""The same where plans are ordered by bits per weight."""
GRANULARITIES = tuple(POINTS)


class SearchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be found out: how much can go low within which budgets.

    Schemes may be spelled as `qarat.values.spellings.full_spelling` takes them.

    Attributes:
        low: Scheme whose share is to be as large as possible; also mxint4, mxfp4, int4, int8-static, or a weight's
            format; float where caches alone are to be decided.
        high: What the other sites get: float, fp8, fp8-e5m2, or a scheme as for `low`.
        menu: More schemes as for `low`, commas between them or not; the curve then runs over bits per weight. Of those
            with c=… each cache of keys or values gets one or stays in float; the curve then runs over megabytes.
        granularity: Decide each projection, or whole blocks.
        basis: What Q_r counts; by macs, the attention products are decided too.
        budgets: What may be lost (ppl+5%, nats+0.05, acc(TASK)-1%) or spent (ratio=0.9; bits=4.5, bytes=2.1GB).
        points: Ratios at which the curve is measured as well; bits per weight with a `menu`, or a budget of bits or
            bytes; megabytes where caches are decided.
        strategy: Who proposes plans: predicted, mixquant, greedy, random or tpe.
        metric: What predictions come from; see `qarat damage --help`.
            (default: fisher, of mixquant weight-error)
        trials: Plans that random and tpe try at each point.
        rules: Override the scheme of some sites; may be given several times, the last match wins.
        runtime: Engine whose fused projections must share a scheme: any or vllm.
        price_windows: At most so many selection windows, that prices come from.
        rewrites: Do not scale and split channels first, for the low scheme, which is free at run time.
        context: Tokens whose keys and values count as bytes where the `menu` has schemes of caches, those of all
            sequences at once. (default: one sequence as long as the model takes)
    """

    low: str = "w=mxint4 a=mxint4"
    high: str = "float"
    menu: tuple[str, ...] = ()
    granularity: str = "matmul"
    basis: str = "parameters"
    budgets: tuple[str, ...] = ("ppl+5%",)
    points: tuple[float, ...] = ()
    strategy: str = "predicted"
    metric: str = ""
    trials: int = 50
    rules: tuple[str, ...] = ()
    runtime: str = "any"
    price_windows: int = 16
    rewrites: bool = True
    context: int = 0

    def check(self) -> None:
        """Check everything that can be checked without a model.

        Raises:
            UserError: Malformed or unknown words, numbers out of range, options that do not go together; an extra that
                the strategy needs is not installed.
        """
        for field in ("low", "high"):
            if is_of_caches(spelling := getattr(self, field)):
                raise UserError(f"`{field}` {spelling}: it is of projections; schemes of caches go into the `menu`")
        self.as_plan_request().check()
        for word, known, option in (
            (self.granularity, GRANULARITIES, "`granularity`"),
            (self.basis, ("parameters", "macs"), "`basis`"),
        ):
            if word not in known:
                raise UserError(f"{option} {word}: {nearest_names(word, list(known))}")
        options = self.options()
        for spellings in (self.schemes(), self.caches()):
            if twice := [s for s in spellings if spellings.count(s) > 1]:
                raise UserError(f"{twice[0]!r} stands twice among `low`, `menu` and `high`")
        if self.context < 0 or (self.context and not self.caches()):
            raise UserError(
                f"`context` {self.context}: it is the number of tokens whose keys and values are counted where the "
                "`menu` has schemes of caches (c=…)"
            )
        if not self.budgets and not self.points:
            raise UserError("give `budgets` or `points`: without either there is nothing to find out")
        if self.axis == "ratio":
            self._check_bits(options)
        if self.basis == "macs":
            self._check_macs(options)
        if any(not 0 < p <= {"ratio": 1, "bits": 32}.get(self.axis, math.inf) for p in self.points):
            raise UserError(
                "`points` are ratios above 0 and at most 1, or bits per weight where there is a `menu` or a budget of "
                "bits or bytes, or megabytes where the `menu` has schemes of caches"
            )
        if self.trials < 1 or self.price_windows < 1:
            raise UserError("`trials` and `price_windows`: give at least 1")

    def _check_bits(self, options: Sequence[Option]) -> None:
        """Q_r counts weight bits: the low scheme must have some, and the high one more, or both would count as low."""
        low, high = parse_low(self.low), options[-1].projection
        if not _has_more_bits(high.weight, low.weight):
            raise UserError(
                f"`high` {self.high} has no more weight bits than `low` {self.low}, so Q_r cannot tell them apart; "
                "give another `high`, such as float"
            )

    def _check_macs(self, options: Sequence[Option]) -> None:
        """By MACs attention products are decided too; whether they are low is told by the bits of the inputs."""
        if self.axis != "ratio":
            raise UserError(
                "`basis` macs decides the attention products too, which take no bits of storage; leave `menu` and "
                "budgets of bits or bytes out, or count `basis` parameters"
            )
        if any(o.product == MatmulScheme() for o in options[:-1]):
            raise UserError("`basis` macs decides the attention products too, so the low schemes need inputs (a=…)")
        if not _has_more_bits(options[-1].product.left, options[0].product.left):
            raise UserError(
                f"`high` {self.high} has no more input bits than `low` {self.low}, so by `basis` macs attention "
                "products of both would count as low; give another `high`, such as float"
            )

    @property
    def axis(self) -> str:
        """What plans are ordered by: Q_r between two schemes; bits per weight among more, or where a budget asks so.

        Where caches are decided too, megabytes of weights and caches.
        """
        if self.caches():
            return "megabytes"
        sized = any(isinstance(b, CostBudget) and b.kind != "ratio" for b in self.parsed_budgets())
        return "bits" if self.menu or sized else "ratio"

    def parsed_budgets(self) -> tuple[Budget, ...]:
        """The budgets as values.

        Raises:
            UserError: Malformed, or of a kind that a search cannot measure.
        """
        return tuple(map(parse_budget, self.budgets))

    def schemes(self) -> tuple[str, ...]:
        """Spellings of all schemes: the low one, those of the menu, the high one."""
        of_projections = (text for text in split_commas(self.menu) if not is_of_caches(text))
        low, *menu, high = map(full_spelling, (self.low, *of_projections, self.high))
        return (*([] if self.decides_caches_alone else [low]), *(text for text in menu if text != high), high)

    @property
    def decides_caches_alone(self) -> bool:
        """Whether projections stay in float, and only caches have schemes."""
        return self.low == self.high == FLOAT and bool(self.caches())

    def caches(self) -> tuple[str, ...]:
        """Spellings of what each cache may get, float the last; none where caches are not decided.

        Raises:
            SchemeError: A malformed spelling.
        """
        given = [str(parse_scheme_in("menu", text)) for text in split_commas(self.menu) if is_of_caches(text)]
        return (*given, FLOAT) if given else ()

    def ordered_schemes(self, base: Plan) -> tuple[str, ...]:
        """`schemes` as strategies take them, none cheaper than the one before; of equals the first given comes first.

        Low and high stay as they are where plans are ordered by Q_r; by bits, those of all projections tell.

        Args:
            base: Any plan of the model, for its sites.
        """

        def bits(spelling: str) -> int:
            return assign(base.model, base.float_bits, base.sites, spelling).weight_bits()

        return self.schemes() if self.axis == "ratio" else tuple(sorted(self.schemes(), key=bits))

    def ordered_options(self, base: Plan) -> tuple[Option, ...]:
        """What each unit may get: `ordered_schemes` and, in the same way, schemes of caches.

        Args:
            base: Any plan of the model, for its sites.
        """
        options = tuple(map(self.option, self.ordered_schemes(base)))
        *given, last = self.caches() or (FLOAT,)

        def bits(spelling: str) -> int:
            return assign(base.model, base.float_bits, base.sites, FLOAT, [("*_cache", spelling)]).cache_bits()

        return with_caches(options, [_cache(spelling) for spelling in (*sorted(given, key=bits), last)])

    def options(self) -> tuple[Option, ...]:
        """What each unit may get, in the order of `schemes`."""
        return tuple(map(self.option, self.schemes()))

    def option(self, spelling: str) -> Option:
        """What a unit gets under a scheme.

        Raises:
            UserError: No scheme of projections.
        """
        scheme = parse_scheme(spelling)
        if not isinstance(scheme, LinearScheme):
            raise UserError(f"{spelling!r}: projections have w=… and a=…, caches c=…")
        # An attention product has two operands and no weight: both are kept as inputs are.
        products = self.basis == "macs" and scheme.weight is not None
        return Option(scheme, MatmulScheme(scheme.input, scheme.input) if products else MatmulScheme())

    def as_plan_request(self) -> ProtectRequest:
        """What drafting a plan needs to know."""
        nats = min((b.nats for b in self.parsed_budgets() if isinstance(b, LossBudget)), default=0.0)
        return ProtectRequest(
            full_spelling(self.low),
            full_spelling(self.high),
            budget=f"nats+{nats:.12f}",
            rules=self.rules,
            runtime=self.runtime,
            rewrites=self.rewrites and not self.decides_caches_alone,
        )


def _cache(spelling: str) -> CacheScheme:
    scheme = parse_scheme(spelling, "cache")
    assert isinstance(scheme, CacheScheme)
    return scheme


def _has_more_bits(high: TensorScheme | None, low: TensorScheme | None) -> bool:
    """Whether one tensor is kept in more bits than another; None is float."""
    if high is None or low is None:
        return low is not None
    return high.number_format.bits > low.number_format.bits

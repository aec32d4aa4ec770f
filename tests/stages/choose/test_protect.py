"""Protection on a made-up model whose losses are known, so that every choice can be held against the truth."""

import math
import random
from collections.abc import Iterator, Mapping, Set
from itertools import combinations

import msgspec
import pytest

from qarat.stages.choose.protect import MARGIN, MORE, MOST, Ranking, protect_until, rank_by_damage
from qarat.stages.choose.trials import PlanMeter, TrialLog
from qarat.values.budgets import LossBudget
from qarat.values.parsing import parse_scheme
from qarat.values.plans import Plan, assign
from qarat.values.records.origin import Provenance
from qarat.values.records.prices import NATS, Protection
from qarat.values.records.scores import Evaluation
from qarat.values.schemes import LinearScheme
from qarat.values.sites import Site
from qarat.values.units import Unit, make_units

LOW = "w=int8/channel a=int8/tensor/static"
PROVENANCE = Provenance("m", "t", "windows-11-bos", {})
FLOAT_LOSS = 2.0
PREDICTED = 10


class Fake:
    """A model in which every low site costs what `costs` says and every pair of low sites `pairs` more, in nats.

    Args:
        costs: By short name such as ``0.down``; the order is the model's and the ranking's.
        pairs: Interactions, by two short names in one string: ``"0.down 1.down"``.
        residue: Share of a site's cost that protecting it in a format leaves; nothing is left in float.
        floor: Lost whatever is protected, as by a rule.
        sizes: Rows of each site's weight, all of 64 columns; four where there are none.
        prices: What is predicted of each site, where that is not its cost.
    """

    def __init__(
        self,
        costs: dict[str, float],
        pairs: dict[str, float] | None = None,
        residue: float = 0.0,
        *,
        floor: float = 0.0,
        sizes: Mapping[str, int] | None = None,
        prices: Mapping[str, float] | None = None,
    ) -> None:
        self.costs, self.residue, self.floor = costs, residue, floor
        self.sizes = sizes or dict.fromkeys(costs, 4)
        self.prices = prices or costs
        self.pairs = {frozenset(names.split()): nats for names, nats in (pairs or {}).items()}
        self.measured: list[Plan] = []
        self.sites = [
            Site(
                f"model.layers.{b}.mlp.{leaf}_proj",
                int(b),
                "projection",
                (f"model.layers.{b}.{leaf}_in",),
                (self.sizes[f"{b}.{leaf}"], 64),
            )
            for b, leaf in (name.split(".") for name in costs)
        ]
        self.sites.append(Site("model.layers.0.self_attn.qk", 0, "product", ("model.layers.0.q", "model.layers.0.k")))
        self.naive = assign("m", 16, self.sites, LOW)

    def loss(self, low: Set[str], formatted: Set[str] = frozenset()) -> float:
        """Nats over float with these sites low."""
        own = self.floor + sum(self.costs[name] * (1 if name in low else self.residue) for name in low | formatted)
        return own + sum(nats for pair, nats in self.pairs.items() if pair <= low)

    def measure(self, plan: Plan, label: str) -> Evaluation:
        """As `qarat.stages.measure.meter.Meter.measure`; windows differ from one another, but not in what is lost."""
        self.measured.append(plan)
        schemes = {short(a.site.name): a.scheme for a in plan.assignments if a.site.kind == "projection"}
        low = {name for name, scheme in schemes.items() if scheme == parse_scheme(LOW)}
        formatted = {name for name, scheme in schemes.items() if scheme != LinearScheme()} - low
        lost = 0.0 if plan.note == "float" else self.loss(low, formatted)
        nats = tuple(PREDICTED * (FLOAT_LOSS + w / 8 + lost) for w in range(-2, 3))
        return Evaluation(label, PROVENANCE, "", nats, (PREDICTED,) * 5, tuple("aabbc"))

    def meter(self) -> PlanMeter:
        """Losses of plans."""
        blank = Evaluation("", PROVENANCE, "", (), (PREDICTED,) * 5, tuple("aabbc"))
        return PlanMeter(
            lambda plans: ((i, self.measure(plan, plan.note)) for i, plan in enumerate(plans)),
            TrialLog(None, {}),
            blank,
        )

    def protect_until(
        self,
        budget: float,
        *,
        exactly: int | None = None,
        most: int | None = None,
        protect: str = "float",
        tied: bool = False,
        unit: str = NATS,
    ) -> tuple[Plan, Protection]:
        units = make_units(self.sites, tied=tied)
        allowed = LossBudget(f"nats+{budget}", budget)
        damages = {s.name: self.prices[short(s.name)] for s in self.sites if s.kind == "projection"}
        ranking = Ranking(units, "as they come", damages, exactly, unit)
        return protect_until(self.naive, ranking, parse_scheme(protect), allowed, self.meter(), most=most)


def short(name: str) -> str:
    return f"{name.split('.')[2]}.{name.rpartition('.')[2].removesuffix('_proj')}"


def protected(plan: Plan) -> list[str]:
    return [short(a.site.name) for a in plan.exceptions()]


def blocks(*costs: float) -> dict[str, float]:
    return {f"{i}.down": cost for i, cost in enumerate(costs)}


def approx(value: float) -> object:
    return pytest.approx(value, abs=1e-12)


def low(fake: Fake, plan: Plan) -> set[str]:
    return set(fake.costs) - set(protected(plan))


def bits(fake: Fake, names: Set[str]) -> int:
    """Of the plan that protects these."""
    full = {short(s.name): s.name for s in fake.sites}
    return fake.naive.with_schemes({full[name]: LinearScheme() for name in names}, "").weight_bits()


def subsets(names: Set[str]) -> Iterator[set[str]]:
    return (set(some) for k in range(len(names) + 1) for some in combinations(sorted(names), k))


def cheapest(fake: Fake, budget: float) -> int:
    """Bits of the cheapest plan of all that loses no more."""
    every = set(fake.costs)
    return min(bits(fake, some) for some in subsets(every) if fake.loss(every - some) <= budget + 1e-12)


def drawn(seed: int, sites: int = 9) -> tuple[dict[str, float], dict[str, int]]:
    """Costs over three decades, and sizes."""
    rng = random.Random(seed)
    costs = blocks(*(10 ** rng.uniform(-3.5, -0.5) for _ in range(sites)))
    return costs, {name: rng.choice([4, 4, 8, 12]) for name in costs}


SEEDS = range(12)
SHARES = [0.03, 0.2, 0.6]  # of what naive loses, as budgets


# ---------------------------------------------------------------- what it finds


def test_nothing_is_protected_where_naive_is_good_enough() -> None:
    fake = Fake(blocks(0.003, 0.002, 0.001))
    plan, record = fake.protect_until(0.01)
    assert protected(plan) == []
    assert plan.schemes == fake.naive.schemes
    assert len(fake.measured) == 2  # float and naive
    assert [t.label for t in record.trials] == ["nothing protected"]
    assert record.predicted == (approx(0.006),)
    assert record.kept == ()
    assert (
        record.verdict
        == "nothing needs protection: loss 0.0060 nats over float, within nats+0.01 (0.0100 nats); 1 plan measured"
    )


def test_the_cheapest_set_is_found_and_measured() -> None:
    fake = Fake(blocks(0.5, 0.2, 0.1, 0.05, 0.01))
    plan, record = fake.protect_until(0.2)
    assert protected(plan) == ["0.down", "1.down"]
    assert [t.label for t in record.trials] == ["nothing protected", "2 protected"]
    assert [t.damage.nats for t in record.trials] == [approx(0.86), approx(0.16)]
    assert record.predicted == (approx(0.86), approx(0.16))
    assert [short(site) for site in record.kept] == protected(plan)
    assert record.protected == {a.site.name for a in plan.exceptions()}
    assert record.verdict == "2 protected: loss 0.1600 nats over float, within nats+0.2 (0.2000 nats); 2 plans measured"
    assert plan.note == record.verdict


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("seed", SEEDS)
def test_where_losses_add_up_no_plan_is_cheaper_than_the_margin_allows(seed: int, share: float) -> None:
    costs, sizes = drawn(seed)
    fake = Fake(costs, sizes=sizes)
    budget = share * sum(costs.values())
    plan, _ = fake.protect_until(budget)
    assert fake.loss(low(fake, plan)) <= budget
    best = cheapest(fake, budget)
    assert best <= bits(fake, set(protected(plan))) <= cheapest(fake, MARGIN * budget)


def test_bits_decide_and_not_the_number_of_sites() -> None:
    """The dearest site is as large as all others together: protecting three small ones is cheaper."""
    fake = Fake(
        {"0.up": 0.30, "0.down": 0.12, "1.down": 0.11, "2.down": 0.10},
        sizes={"0.up": 16, "0.down": 4, "1.down": 4, "2.down": 4},
    )
    plan, _ = fake.protect_until(0.32)
    assert protected(plan) == ["0.down", "1.down", "2.down"]
    assert bits(fake, set(protected(plan))) == cheapest(fake, 0.32)


def test_of_sets_that_cost_the_same_the_best_is_taken() -> None:
    fake = Fake(blocks(0.2, 0.5, 0.3, 0.4))
    assert protected(fake.protect_until(1.1)[0]) == ["1.down"]  # leaving 0.9, where 1.0 and 1.1 would do as well


# ---------------------------------------------------------------- how much it measures


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("wrong", ["right", "third", "reversed", "shuffled"])
def test_whatever_the_prices_it_measures_a_handful_and_keeps_the_budget(seed: int, share: float, wrong: str) -> None:
    costs, sizes = drawn(seed)
    shuffled = random.Random(seed).sample(list(costs.values()), len(costs))
    backwards = dict(zip(sorted(costs, key=costs.__getitem__), sorted(costs.values(), reverse=True), strict=True))
    prices = {
        "right": costs,
        "third": {name: cost / 3 for name, cost in costs.items()},
        "reversed": backwards,
        "shuffled": dict(zip(costs, shuffled, strict=True)),
    }
    fake = Fake(costs, sizes=sizes, prices=prices[wrong])
    budget = share * sum(costs.values())
    plan, record = fake.protect_until(budget)
    assert len(record.trials) <= MOST + MORE
    assert len(fake.measured) <= 1 + len(record.trials)  # everything in float is what float is
    assert fake.loss(low(fake, plan)) <= budget
    within = [t for t in record.trials if t.damage.nats <= budget]
    sizes_of_plans = [bits(fake, {short(s) for s in t.sites}) for t in within]
    assert bits(fake, set(protected(plan))) == min(sizes_of_plans)


@pytest.mark.parametrize("factor", [1e-3, 1 / 3, 7.0, 1e4])
def test_the_scale_of_the_prices_does_not_matter(factor: float) -> None:
    """What is measured says what prices mean, so other units than nats do as well."""
    costs, sizes = drawn(1)
    right = Fake(costs, sizes=sizes).protect_until(0.1)
    fake = Fake(costs, sizes=sizes, prices={name: factor * cost for name, cost in costs.items()})
    plan, record = fake.protect_until(0.1)
    assert plan.schemes == right[0].schemes
    assert record.predicted == tuple(pytest.approx(factor * p) for p in right[1].predicted)


def test_prices_in_the_wrong_order_cost_bits() -> None:
    costs = (0.5, 0.2, 0.1, 0.05, 0.01)
    fake = Fake(blocks(*costs), prices=blocks(*reversed(costs)))
    plan, _ = fake.protect_until(0.2)
    assert fake.loss(low(fake, plan)) <= 0.2
    assert bits(fake, set(protected(plan))) > cheapest(fake, 0.2)


@pytest.mark.parametrize("joint", [0.02, -0.002])
def test_losses_that_do_not_add_up_are_met_by_measuring(joint: float) -> None:
    """Together two sites lose more, or less, than each alone."""
    costs = blocks(*(0.01 + 0.002 * i for i in range(12)))
    pairs = {f"{a} {b}": joint for a, b in combinations(costs, 2)}
    fake = Fake(costs, pairs)
    budget = 0.26 * fake.loss(set(costs))
    plan, record = fake.protect_until(budget)
    assert fake.loss(low(fake, plan)) <= budget
    assert 2 <= len(record.trials) <= MOST
    # One site more than was needed at the most: further sets with that many low would be beyond the budget.
    more_low = sorted(costs, key=costs.__getitem__)[: len(low(fake, plan)) + 2]
    assert fake.loss(set(more_low)) > budget


@pytest.mark.parametrize(("joint", "plans"), [(0.0, 3), (1e-4, MOST)])
def test_what_would_save_next_to_nothing_is_not_measured(joint: float, plans: int) -> None:
    """Of 100 like sites each is half a per cent of the plan, and a hundredth of what naive loses."""
    costs = blocks(*[0.01] * 100)
    fake = Fake(costs, {f"{a} {b}": joint for a, b in combinations(costs, 2)} if joint else {})
    budget = 0.6 * fake.loss(set(costs))
    plan, record = fake.protect_until(budget)
    assert len(record.trials) <= plans
    left, size = low(fake, plan), bits(fake, set(protected(plan)))
    fewest = next(k for k in range(101) if fake.loss(set(list(costs)[k:])) <= budget)
    assert fake.loss(left) <= budget
    assert size <= bits(fake, set(list(costs)[:fewest])) * 1.02


@pytest.mark.parametrize(("sites", "met"), [(9, True), (16, False)])
def test_the_last_resort_leaves_half_as_much(sites: int, met: bool) -> None:
    """Each plan on the way fails, since prices differ by powers of ten and losses do not; two more are allowed."""
    prices = blocks(*(10.0**-i for i in range(sites)))
    fake = Fake(dict.fromkeys(prices, 1.0), prices=prices)
    plan, record = fake.protect_until(0.5)
    assert len(record.trials) == MOST + MORE
    counts = [len(t.sites) for t in record.trials]
    assert counts == sorted(counts)
    assert len(protected(plan)) == counts[-1]
    assert (fake.loss(low(fake, plan)) <= 0.5) == met
    assert ("is not met" in record.verdict) != met


# ---------------------------------------------------------------- budgets that are out of reach


def test_an_unmet_budget_takes_the_best_and_says_so() -> None:
    """In e4m3 a tenth of each cost stays, so the budget is out of reach."""
    fake = Fake(blocks(0.6, 0.3, 0.05, 0.004, 0.003, 0.002), residue=0.1)
    plan, record = fake.protect_until(1e-4, protect="w=e4m3/tensor a=e4m3/tensor/static")
    losses = [t.damage.nats for t in record.trials]
    assert len(losses) <= MOST + MORE
    assert len(protected(plan)) == len(record.trials[losses.index(min(losses))].sites) == 6
    assert record.verdict == (
        f"nats+0.0001 (0.0001 nats) is not met: the best of {len(losses)} plans measured protects 6 and loses "
        f"{min(losses):.4f} nats over float; a finer low scheme may do, and `qarat advise` prices a dozen"
    )


def test_what_a_rule_loses_no_protection_gives_back() -> None:
    fake = Fake(blocks(0.5, 0.2), floor=0.3)
    fake.naive = assign("m", 16, fake.sites, LOW, [("*.qk", "l=int8/token r=int8/token")])
    plan, record = fake.protect_until(0.1)
    assert protected(plan) == ["0.down", "1.down"]
    assert "nats+0.1 (0.1000 nats) is not met" in record.verdict
    assert "loses 0.3000 nats" in record.verdict
    assert len(record.trials) == 2  # everything protected is soon reached, and there is nothing beyond it


def test_without_candidates_only_naive_is_measured() -> None:
    fake = Fake(blocks(0.5))
    ranking = Ranking((), "nothing", {})
    plan, record = protect_until(fake.naive, ranking, LinearScheme(), LossBudget("nats+0", 0.0), fake.meter())
    assert plan.schemes == fake.naive.schemes
    assert "protects nothing and loses 0.5000 nats" in record.verdict
    assert len(record.trials) == 1


def test_a_price_below_zero_buys_nothing_elsewhere() -> None:
    fake = Fake(blocks(0.3, 0.0, 0.2), prices=blocks(0.3, -5.0, 0.2))
    plan, record = fake.protect_until(0.1)
    assert protected(plan) == ["0.down", "2.down"]
    assert record.predicted == (approx(0.5), approx(0.0))


def test_only_the_first_of_the_ranking_are_allowed() -> None:
    fake = Fake(blocks(0.5, 0.4, 0.3, 0.2))
    plan, record = fake.protect_until(0.01, most=2)
    assert protected(plan) == ["0.down", "1.down"]
    assert record.predicted == (approx(1.4), approx(0.5))
    assert "is not met" in record.verdict
    assert record.verdict.endswith("or more protected than the 2 allowed")
    assert plan.note == record.verdict


def test_a_bound_that_is_not_in_the_way_is_not_spoken_of() -> None:
    fake = Fake(blocks(0.5, 0.4, 0.3, 0.2))
    assert fake.protect_until(0.6, most=2) == fake.protect_until(0.6)
    fake.floor = 1.0
    assert "allowed" not in fake.protect_until(0.01, most=4)[1].verdict
    assert len(protected(fake.protect_until(0.01, exactly=3, most=2)[0])) == 3


# ---------------------------------------------------------------- asked for so many


@pytest.mark.parametrize("count", range(4))
def test_exactly_so_many(count: int) -> None:
    fake = Fake(blocks(0.3, 1e-9, 0.2))
    plan, record = fake.protect_until(0.25, exactly=count)
    assert protected(plan) == list(fake.costs)[:count]
    assert [len(t.sites) for t in record.trials] == sorted({0, count})
    assert [short(site) for site in record.kept] == protected(plan)
    beyond = "beyond" if count == 0 else "within"
    assert f"{count} protected as asked for: loss " in record.verdict
    assert f"{beyond} nats+0.25 (0.2500 nats); {len(record.trials)} plan" in record.verdict


# ---------------------------------------------------------------- what it says


@pytest.mark.parametrize("exactly", [None, 2])
def test_each_protected_site_has_its_price_as_the_reason(exactly: int | None) -> None:
    fake = Fake(blocks(0.3, 0.2, 0.001), prices=blocks(0.12344, 0.2, 0.001))
    plan, _ = fake.protect_until(0.01, exactly=exactly)
    reasons = {short(a.site.name): a.reason for a in plan.exceptions()}
    assert reasons == {
        "0.down": "protected: low it is predicted to cost 0.1234 nats",
        "1.down": "protected: low it is predicted to cost 0.2000 nats",
    }


def test_prices_in_another_unit_are_not_called_nats() -> None:
    fake = Fake(blocks(0.3, 0.2, 0.001))
    plan, record = fake.protect_until(0.01, unit="squared error")
    assert plan.exceptions()[0].reason == "protected: low it is predicted to cost 0.3000 squared error"
    assert record.unit == "squared error"


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("budget", [0.0, 0.01, 0.1, 0.5, 3.0])
@pytest.mark.parametrize("costs", [(0.7,), (0.4, 0.3), (0.001, 0.3, 1e-5, 0.02, 0.5), (0.1,) * 9])
@pytest.mark.parametrize("protect", ["float", "w=e4m3/tensor a=e4m3/tensor/static"])
def test_each_plan_is_measured_once_and_the_same_again(budget: float, costs: tuple[float, ...], protect: str) -> None:
    fake = Fake(blocks(*costs))
    first = fake.protect_until(budget, protect=protect)
    measured = fake.measured
    assert not [(a.note, b.note) for a, b in combinations(measured, 2) if a.schemes == b.schemes]
    again = Fake(blocks(*costs))
    assert again.protect_until(budget, protect=protect) == first
    assert [p.schemes for p in again.measured] == [p.schemes for p in measured]


@pytest.mark.parametrize("budget", [0.0, 0.05, 0.4])
def test_what_is_recorded_is_what_the_fake_loses(budget: float) -> None:
    fake = Fake(blocks(0.4, 0.001, 0.3, 0.02, 0.1), pairs={"0.down 2.down": 0.05, "3.down 4.down": -0.01})
    plan, record = fake.protect_until(budget)
    for trial, predicted in zip(record.trials, record.predicted, strict=True):
        left = set(fake.costs) - {short(s) for s in trial.sites}
        assert trial.damage.nats == approx(fake.loss(left))
        assert predicted == approx(math.fsum(fake.costs[name] for name in left))
        assert trial.damage.standard_error == approx(0.0)  # the same loss in every window
        assert trial.damage.clusters == 3
    assert fake.loss(low(fake, plan)) <= budget + 1e-12
    assert record.budget_nats == budget
    assert record.provenance == PROVENANCE


def test_protection_that_takes_no_more_bits_is_not_free() -> None:
    """FP8 has the bits of INT8; protecting all would cost nothing, if parameters did not count then."""
    fake = Fake(blocks(0.5, 0.2, 0.1, 0.05, 0.01))
    plan, _ = fake.protect_until(0.2, protect="w=e4m3/channel a=e4m3/token")
    assert plan.weight_bits() == fake.naive.weight_bits()
    assert protected(plan) == ["0.down", "1.down"]


def test_as_many_predictions_as_trials() -> None:
    _, record = Fake(blocks(0.5, 0.2)).protect_until(0.3)
    with pytest.raises(ValueError, match="2 trials have 1 predictions"):
        msgspec.structs.replace(record, predicted=(0.1,))


def test_products_and_overrides_stay_as_they_are() -> None:
    fake = Fake(blocks(0.5, 0.2))
    fake.naive = assign("m", 16, fake.sites, LOW, [("*.qk", "l=int8/token r=int8/token")])
    plan, _ = fake.protect_until(0.3)
    assert plan["model.layers.0.self_attn.qk"] == fake.naive["model.layers.0.self_attn.qk"]
    float_plan = fake.measured[0]
    assert all(a.is_float for a in float_plan.assignments)


def test_progress_ends_at_its_total() -> None:
    fake = Fake(blocks(0.5, 0.2, 0.1, 0.001, 0.002))
    calls: list[tuple[str, int, int]] = []
    units = make_units(fake.sites, tied=False)
    budget = LossBudget("nats+0", 0.0)
    protect_until(
        fake.naive,
        Ranking(units, "", {unit.sites[0]: 0.1 for unit in units}),
        LinearScheme(),
        budget,
        fake.meter(),
        progress=lambda *call: calls.append(call),
    )
    assert calls[0][1] == 0
    assert all(done <= total for _, done, total in calls)
    assert calls[-1][1] == calls[-1][2] == len(fake.measured)


# ---------------------------------------------------------------- units


def tied_sites() -> list[Site]:
    sites = []
    for block in (0, 1):
        for leaf, tie in (
            ("q", "attn_in"),
            ("k", "attn_in"),
            ("v", "attn_in"),
            ("o", ""),
            ("gate", "mlp_in"),
            ("up", "mlp_in"),
        ):
            name = f"model.layers.{block}.self_attn.{leaf}_proj"
            sites.append(Site(name, block, "projection", (f"model.layers.{block}.{tie or 'o_in'}",), (2, 3), tie))
        sites.append(Site(f"model.layers.{block}.self_attn.qk", block, "product", ("q", "k")))
    return sites


def test_tied_sites_are_one_unit() -> None:
    assert [u.label for u in make_units(tied_sites(), tied=True)] == [
        "0.q+k+v",
        "0.o",
        "0.gate+up",
        "1.q+k+v",
        "1.o",
        "1.gate+up",
    ]
    assert [u.parameters for u in make_units(tied_sites(), tied=True)] == [18, 6, 12] * 2
    alone = make_units(tied_sites(), tied=False)
    assert [len(u.sites) for u in alone] == [1] * 12
    assert alone[0] == Unit(("model.layers.0.self_attn.q_proj",), 6)


def test_tied_units_are_protected_together() -> None:
    fake = Fake({"0.gate": 0.3, "0.up": 0.001, "1.gate": 0.0, "1.up": 0.2})
    fake.sites = [
        Site(s.name, s.block, s.kind, s.streams, s.shape, "mlp_in" if s.kind == "projection" else "")
        for s in fake.sites
    ]
    fake.naive = assign("m", 16, fake.sites, LOW)
    plan, record = fake.protect_until(0.25, tied=True)
    assert protected(plan) == ["0.gate", "0.up"]
    plan.check_ties()
    assert [t.label for t in record.trials] == ["nothing protected", "1 protected"]
    assert len(record.kept) == 2
    for measured in fake.measured:
        measured.check_ties()


def test_ranking_is_by_damage_per_parameter() -> None:
    small, large, free = Unit(("a",), 10), Unit(("b", "c"), 100), Unit(("d",), 1)
    damages = {"a": 1.0, "b": 4.0, "c": 5.0, "d": 0.0}
    assert rank_by_damage([free, large, small], damages) == (small, large, free)
    assert rank_by_damage([free, large, small], damages | {"c": 6.1}) == (large, small, free)

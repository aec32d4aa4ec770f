"""Protection on a made-up model whose losses are known, so that every choice can be held against the truth."""

from collections.abc import Set
from itertools import combinations

import pytest

from qarat.stages.choose.protect import MOST, NOTHING, PATIENCE, Ranking, protect_until, rank_by_damage
from qarat.stages.choose.trials import PlanMeter, TrialLog
from qarat.values.budgets import LossBudget
from qarat.values.parsing import parse_scheme
from qarat.values.plans import Plan, assign
from qarat.values.records.origin import Provenance
from qarat.values.records.prices import Protection
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
        costs: By short name such as ``0.down``; the order is the ranking's.
        pairs: Interactions, by two short names in one string: ``"0.down 1.down"``.
        residue: Share of a site's cost that protecting it in a format leaves; nothing is left in float.
    """

    def __init__(self, costs: dict[str, float], pairs: dict[str, float] | None = None, residue: float = 0.0) -> None:
        self.costs, self.residue = costs, residue
        self.pairs = {frozenset(names.split()): nats for names, nats in (pairs or {}).items()}
        self.measured: list[Plan] = []
        self.sites = [
            Site(f"model.layers.{b}.mlp.{leaf}_proj", int(b), "projection", (f"model.layers.{b}.{leaf}_in",), (4, 4))
            for b, leaf in (name.split(".") for name in costs)
        ]
        self.sites.append(Site("model.layers.0.self_attn.qk", 0, "product", ("model.layers.0.q", "model.layers.0.k")))
        self.naive = assign("m", 16, self.sites, LOW)

    def loss(self, low: Set[str], formatted: Set[str] = frozenset()) -> float:
        """Nats over float with these sites low."""
        own = sum(self.costs[name] * (1 if name in low else self.residue) for name in low | formatted)
        return own + sum(nats for pair, nats in self.pairs.items() if pair <= low)

    def measure(self, plan: Plan, label: str) -> Evaluation:
        """As `qarat.stages.measure.meter.Meter.measure`; windows differ from one another, but not in what is lost."""
        self.measured.append(plan)
        schemes = {short(a.site.name): a.scheme for a in plan.assignments if a.site.kind == "projection"}
        low = {name for name, scheme in schemes.items() if scheme == parse_scheme(LOW)}
        formatted = {name for name, scheme in schemes.items() if scheme != LinearScheme()} - low
        nats = tuple(PREDICTED * (FLOAT_LOSS + w / 8 + self.loss(low, formatted)) for w in range(-2, 3))
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
        self, budget: float, *, exactly: int | None = None, most: int = MOST, protect: str = "float", tied: bool = False
    ) -> tuple[Plan, Protection]:
        units = make_units(self.sites, tied=tied)
        allowed = LossBudget(f"nats+{budget}", budget)
        ranking = Ranking(units, "as they come", exactly)
        return protect_until(self.naive, ranking, parse_scheme(protect), allowed, self.meter(), most=most)


def short(name: str) -> str:
    return f"{name.split('.')[2]}.{name.rpartition('.')[2].removesuffix('_proj')}"


def protected(plan: Plan) -> list[str]:
    return [short(a.site.name) for a in plan.exceptions()]


def blocks(*costs: float) -> dict[str, float]:
    return {f"{i}.down": cost for i, cost in enumerate(costs)}


def approx(value: float) -> object:
    return pytest.approx(value, abs=1e-12)


# ---------------------------------------------------------------- when it stops


def test_it_stops_where_the_budget_is_met() -> None:
    fake = Fake(blocks(0.5, 0.2, 0.1, 0.05, 0.01))
    plan, record = fake.protect_until(0.2)
    assert protected(plan) == ["0.down", "1.down"]
    assert [t.label for t in record.trials] == ["k=0", "k=1", "k=2"]
    assert [t.damage.nats for t in record.trials] == [approx(0.86), approx(0.36), approx(0.16)]
    assert "2 protected" in record.verdict
    assert "within nats+0.2" in record.verdict
    assert plan.note == record.verdict


def test_the_budget_is_met_where_it_is_reached_exactly() -> None:
    fake = Fake(blocks(0.5, 0.25))
    assert protected(fake.protect_until(fake.loss({"1.down"}) + 1e-12)[0]) == ["0.down"]


def test_nothing_is_protected_where_naive_is_good_enough() -> None:
    fake = Fake(blocks(0.003, 0.002, 0.001))
    plan, record = fake.protect_until(0.01)
    assert protected(plan) == []
    assert plan.schemes == fake.naive.schemes
    assert len(record.trials) == 1
    assert record.recoveries == ()
    assert "nothing needs protection" in record.verdict


def test_it_gives_up_after_idle_additions() -> None:
    fake = Fake(blocks(1.0, *[1e-6] * (PATIENCE + 5), 0.5))
    plan, record = fake.protect_until(0.01)
    assert len(record.trials) == 1 + 1 + PATIENCE
    assert protected(plan) == ["0.down"]
    assert "is not met" in record.verdict


def test_a_useful_addition_in_between_keeps_it_going() -> None:
    costs = [1.0, *[1e-6] * (PATIENCE - 1), 0.5, *[1e-6] * (PATIENCE - 1), 0.4]
    fake = Fake(blocks(*costs))
    plan, record = fake.protect_until(0.01)
    assert len(record.trials) == len(costs) + 1
    useful = [f"{i}.down" for i, cost in enumerate(costs) if cost > 0.1]
    assert protected(plan) == useful  # those that buy nothing are released again


def test_it_tries_no_more_than_the_most() -> None:
    fake = Fake(blocks(*[1.0] * (MOST + 3)))
    plan, record = fake.protect_until(0.5)
    assert len(record.trials) == MOST + 1
    assert len(protected(plan)) == MOST


def test_an_unmet_budget_takes_the_fewest_as_good_as_the_best() -> None:
    # In e4m3 a tenth of each cost stays, so the budget is out of reach.
    fake = Fake(blocks(0.6, 0.3, 0.05, 0.004, 0.003, 0.002), residue=0.1)
    plan, record = fake.protect_until(1e-4, protect="w=e4m3/tensor a=e4m3/tensor/static")
    losses = [t.damage.nats for t in record.trials]
    tolerance = NOTHING * losses[0]
    assert protected(plan) == ["0.down", "1.down", "2.down"]
    assert losses[3] <= min(losses) + tolerance < losses[2]
    assert "is not met" in record.verdict
    assert f"the best of {len(losses)} measured plans loses {min(losses):.4f}" in record.verdict
    assert f"3 protected reach {losses[3]:.4f}" in record.verdict


# ---------------------------------------------------------------- what it releases


def test_a_site_that_buys_nothing_is_released() -> None:
    fake = Fake(blocks(0.002, 0.5, 0.2, 0.04))
    plan, record = fake.protect_until(0.05)
    assert protected(plan) == ["1.down", "2.down"]
    assert "0.down released" in record.verdict
    assert fake.loss({"0.down", "3.down"}) <= 0.05


def test_a_site_that_buys_little_stays_where_the_budget_needs_it() -> None:
    fake = Fake(blocks(0.002, 0.5, 0.2, 0.04))
    assert protected(fake.protect_until(0.041)[0]) == ["0.down", "1.down", "2.down"]


def test_release_never_leaves_the_budget() -> None:
    """Two sites, each of which could be spared, but not both."""
    fake = Fake(blocks(0.004, 0.004, 0.5), pairs={"0.down 1.down": 0.3})
    plan, _ = fake.protect_until(0.01)
    assert len(protected(plan)) == 2
    assert fake.loss(set(fake.costs) - set(protected(plan))) <= 0.01


@pytest.mark.parametrize("pairs", [{}, {"0.down 2.down": 0.2, "1.down 3.down": -0.05}])
def test_recoveries_are_the_marginal_losses_of_the_plan(pairs: dict[str, float]) -> None:
    fake = Fake(blocks(0.3, 0.2, 0.001, 0.4, 0.01, 0.02), pairs)
    plan, record = fake.protect_until(0.032)
    chosen = protected(plan)
    low = set(fake.costs) - set(chosen)
    assert len(chosen) >= 3
    assert [short(t.sites[0]) for t in record.recoveries] == chosen
    for trial in record.recoveries:
        name = short(trial.sites[0])
        assert trial.damage.nats == approx(fake.loss(low | {name}) - fake.loss(low))
        assert trial.label == f"without {name}"
    reasons = {short(a.site.name): a.reason for a in plan.exceptions()}
    for trial in record.recoveries:
        assert f"leaving it low adds {trial.damage.nats:.4f} nats" in reasons[short(trial.sites[0])]


def test_recoveries_are_of_the_plan_after_releases() -> None:
    fake = Fake(blocks(0.3, 0.001, 0.4), pairs={"0.down 1.down": 0.1})
    plan, record = fake.protect_until(0.01)
    assert protected(plan) == ["0.down", "2.down"]
    assert [t.damage.nats for t in record.recoveries] == [approx(0.3 + 0.1), approx(0.4)]


def test_alone_is_each_sites_own_damage() -> None:
    fake = Fake(blocks(0.5, 0.2, 0.1, 0.05, 0.01), pairs={"0.down 1.down": 0.4})
    _, record = fake.protect_until(0.3)
    assert {short(t.sites[0]): t.damage.nats for t in record.alone} == {
        name: approx(cost) for name, cost in list(fake.costs.items())[:4]
    }
    assert record.alone[0].label == "only 0.down low"


# ---------------------------------------------------------------- asked for so many


@pytest.mark.parametrize("count", range(4))
def test_exactly_so_many(count: int) -> None:
    fake = Fake(blocks(0.3, 1e-9, 0.2))
    plan, record = fake.protect_until(10.0, exactly=count)
    assert protected(plan) == list(fake.costs)[:count]
    assert len(record.trials) == count + 1
    assert len(record.recoveries) == count
    assert f"{count} protected as asked for" in record.verdict


def test_exactly_goes_beyond_the_most() -> None:
    fake = Fake(blocks(*[0.1] * (MOST + 2)))
    assert len(protected(fake.protect_until(10.0, exactly=MOST + 2)[0])) == MOST + 2


def test_no_more_are_tried_than_are_allowed() -> None:
    fake = Fake(blocks(0.5, 0.4, 0.3, 0.2))
    plan, record = fake.protect_until(0.01, most=2)
    assert protected(plan) == ["0.down", "1.down"]
    assert [t.label for t in record.trials] == ["k=0", "k=1", "k=2"]
    assert "is not met" in record.verdict
    assert record.verdict.endswith("or more than the 2 that were allowed")
    assert plan.note == record.verdict


def test_a_bound_that_is_not_in_the_way_is_not_spoken_of() -> None:
    fake = Fake(blocks(0.5, 0.4, 0.3, 0.2))
    assert fake.protect_until(0.5, most=2) == fake.protect_until(0.5)
    assert "allowed" not in fake.protect_until(0.01, most=4)[1].verdict
    assert len(protected(fake.protect_until(0.01, exactly=3, most=2)[0])) == 3


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("budget", [0.0, 0.01, 0.1, 0.5, 3.0])
@pytest.mark.parametrize("costs", [(0.7,), (0.4, 0.3), (0.001, 0.3, 1e-5, 0.02, 0.5), (0.1,) * 9])
@pytest.mark.parametrize("protect", ["float", "w=e4m3/tensor a=e4m3/tensor/static"])
def test_each_plan_is_measured_once(budget: float, costs: tuple[float, ...], protect: str) -> None:
    fake = Fake(blocks(*costs))
    fake.protect_until(budget, protect=protect)
    assert not [(a.note, b.note) for a, b in combinations(fake.measured, 2) if a.schemes == b.schemes]


@pytest.mark.parametrize("budget", [0.0, 0.05, 0.4])
def test_what_is_recorded_is_what_the_fake_loses(budget: float) -> None:
    fake = Fake(blocks(0.4, 0.001, 0.3, 0.02, 0.1), pairs={"0.down 2.down": 0.05, "3.down 4.down": -0.01})
    plan, record = fake.protect_until(budget)
    ranking = list(fake.costs)
    for k, trial in enumerate(record.trials):
        assert [short(s) for s in trial.sites] == ranking[:k]
        assert trial.damage.nats == approx(fake.loss(set(ranking[k:])))
        assert trial.damage.standard_error == approx(0.0)  # the same loss in every window
        assert trial.damage.clusters == 3
    left_low = set(ranking) - set(protected(plan))
    assert fake.loss(left_low) <= max(budget, record.trials[-1].damage.nats) + 1e-12
    assert record.budget_nats == budget
    assert record.provenance == PROVENANCE


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
        fake.naive, Ranking(units, ""), LinearScheme(), budget, fake.meter(), progress=lambda *call: calls.append(call)
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
    (recovery,) = record.recoveries
    assert recovery.label == "without 0.gate+up"
    assert len(recovery.sites) == 2
    assert recovery.damage.nats == approx(0.301)
    for measured in fake.measured[: 1 + len(record.trials)]:
        measured.check_ties()


def test_ranking_is_by_damage_per_parameter() -> None:
    small, large, free = Unit(("a",), 10), Unit(("b", "c"), 100), Unit(("d",), 1)
    damages = {"a": 1.0, "b": 4.0, "c": 5.0, "d": 0.0}
    assert rank_by_damage([free, large, small], damages) == (small, large, free)
    assert rank_by_damage([free, large, small], damages | {"c": 6.1}) == (large, small, free)

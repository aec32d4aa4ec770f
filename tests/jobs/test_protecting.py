"""Planning: the whole recipe on a tiny model with an artificial spike, observed, priced and measured for real.

The token sets are text that the model itself wrote: on any other, what is lost may well come out as a gain.
"""

from typing import Any, NamedTuple

import msgspec
import pytest
import torch

from qarat.ground.errors import UserError
from qarat.jobs.protecting import find_plan, naive_plan, profile
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.observe import observe
from qarat.stages.prices.pricing import price
from qarat.testing import plant_spike, tiny_checkpoint
from qarat.values.parsing import parse_scheme
from qarat.values.plans import Plan, PlanError
from qarat.values.records.files import content_hash
from qarat.values.records.prices import Menu
from qarat.values.records.streams import ActivationStats
from qarat.values.requests.protect import PROTECTIONS, ProtectRequest
from qarat.values.schemes import LOW, LinearScheme, MatmulScheme
from qarat.values.sites import short_name

SPIKE = "model.layers.1.mlp.down_proj"
FP8 = parse_scheme(PROTECTIONS["fp8"])
# Far above what is lost with the planted site protected (0.013), far below what is lost without (0.66).
BUDGET = "nats+0.05"


class Bench(NamedTuple):
    model: Model
    selection: TokenSet
    stats: ActivationStats
    menu: Menu

    def plan(self, **request: Any) -> Plan:
        return find_plan(self.model, self.selection, ProtectRequest(**request), self.stats, self.menu)[0]


def own_text(model: Model, name: str, windows: int) -> TokenSet:
    """Windows of 32 tokens drawn from the model itself, after BOS."""
    with torch.random.fork_rng():
        torch.manual_seed(windows)
        ids = torch.zeros(windows, 1, dtype=torch.long)
        drawn = model.module().generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=31, pad_token_id=0
        )
    sources = tuple(f"{name}-{i}" for i in range(windows))
    return TokenSet(name, "windows-32-bos", drawn, sources, sources, sources)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("planning") / "spiked", blocks=3)
    model = open_model(str(plant_spike(folder, 1, 5, 256.0)))
    selection = own_text(model, "selection", 32)
    stats = observe(model, own_text(model, "calibration", 8))
    return Bench(model, selection, stats, price(model, selection, [parse_scheme(LOW)], stats))


def protected(plan: Plan) -> list[str]:
    return [short_name(a.site.name) for a in plan.exceptions()]


def test_the_bench_is_where_it_should_be(bench: Bench) -> None:
    """The fixture's own promise: a spike that the stats show."""
    spiked = bench.stats.stream("model.layers.1.down_in")
    others = [s.maximum for s in bench.stats.streams.values() if s.kind == "down_in" and s is not spiked]
    assert spiked.maximum > 50 * max(others)
    assert spiked.peaks[0].channel == 5


# ---------------------------------------------------------------- by damage


def test_the_planted_site_ranks_first_and_is_chosen(bench: Bench) -> None:
    damages = bench.menu.damages(LOW)
    assert len(damages) == 21
    runner_up = max(nats for site, nats in damages.items() if site != SPIKE)
    assert damages[SPIKE] > 20 * runner_up
    plan, record = find_plan(bench.model, bench.selection, ProtectRequest(budget=BUDGET), bench.stats, bench.menu)
    assert protected(plan) == ["1.down"]
    assert plan[SPIKE] == LinearScheme()
    assert record.order == "Fisher damage"
    assert record.trials[0].damage.nats > 0.2 > record.budget_nats >= record.trials[1].damage.nats
    assert record.kept == (SPIKE,)
    assert [len(trial.sites) for trial in record.trials] == [0, 1]
    assert record.predicted == pytest.approx((sum(damages.values()), sum(damages.values()) - damages[SPIKE]))


def test_a_plan_names_what_it_rests_on(bench: Bench) -> None:
    plan = bench.plan(budget=BUDGET)
    assert plan.model == bench.model.fingerprint
    assert plan.stats == content_hash(bench.stats)
    assert plan.low == LOW
    assert plan.float_bits == 32
    assert plan.sites == bench.model.sites()
    plan.check(bench.model.fingerprint, bench.model.sites())
    assert {str(a.scheme) for a in plan.assignments if a.site.kind == "product"} == {"float"}
    reasons = {short_name(a.site.name): a.reason for a in plan.assignments}
    assert reasons["1.down"].startswith("protected: low it is predicted to cost 0.")
    assert reasons["0.down"] == "low scheme"


def test_nothing_is_protected_within_a_generous_budget(bench: Bench) -> None:
    assert protected(bench.plan(budget="nats+5")) == []


def test_the_same_request_gives_the_same_plan_and_record(bench: Bench) -> None:
    first, second = (
        find_plan(bench.model, bench.selection, ProtectRequest(budget=BUDGET), bench.stats, bench.menu)
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize(
    ("protect", "scheme"), [("fp8", FP8), ("fp8-e5m2", parse_scheme(PROTECTIONS["fp8-e5m2"])), ("a=int8/token", None)]
)
def test_what_protects_is_a_choice(protect: str, scheme: LinearScheme | None, bench: Bench) -> None:
    plan = bench.plan(protect=protect, sites=("1.down",))
    assert protected(plan) == ["1.down"]
    assert plan[SPIKE] == (scheme or parse_scheme(protect))


def test_fp8_is_enough_for_the_spike(bench: Bench) -> None:
    plan, record = find_plan(
        bench.model, bench.selection, ProtectRequest(budget=BUDGET, protect="fp8"), bench.stats, bench.menu
    )
    assert protected(plan) == ["1.down"]
    assert record.trials[1].damage.nats <= record.budget_nats


# ---------------------------------------------------------------- by a rule, by a list, by hand


def with_ratio(stats: ActivationStats, **ratios: float) -> ActivationStats:
    """The stats as if these streams had another r; a planted spike is a channel, and towers over no tokens."""
    streams = dict(stats.streams)
    for name, ratio in ratios.items():
        full = f"model.layers.{name.replace('__', '.')}"
        streams[full] = msgspec.structs.replace(streams[full], ratio=ratio)
    return msgspec.structs.replace(stats, streams=streams)


@pytest.mark.parametrize("flagged", [(), ("2__down_in",), ("0__attn_in", "2__down_in")])
def test_a_spike_rule_protects_exactly_the_sites_it_flags(flagged: tuple[str, ...], bench: Bench) -> None:
    stats = with_ratio(bench.stats, **dict.fromkeys(flagged, 100.0))
    menu = msgspec.structs.replace(bench.menu, stats=content_hash(stats))
    plan, record = find_plan(bench.model, bench.selection, ProtectRequest(by="ratio", budget="nats+9"), stats, menu)
    readers = {"2__down_in": ["2.down"], "0__attn_in": ["0.q", "0.k", "0.v"]}
    assert sorted(protected(plan)) == sorted(site for stream in flagged for site in readers[stream])
    assert "the spike rule ratio" in record.order
    assert [len(trial.sites) for trial in record.trials] == sorted({0, len(protected(plan))})


def test_the_snr_rule_finds_the_planted_site(bench: Bench) -> None:
    assert "1.down" in protected(bench.plan(by="snr"))


def test_a_list_is_protected_whatever_the_budget(bench: Bench) -> None:
    plan, record = find_plan(
        bench.model,
        bench.selection,
        ProtectRequest(sites=("2.down", "0.[qk]"), budget="nats+9", runtime="any"),
        bench.stats,
        bench.menu,
    )
    assert sorted(protected(plan)) == ["0.k", "0.q", "2.down"]
    assert len(record.kept) == 3
    assert [len(trial.sites) for trial in record.trials] == [0, 3]
    assert record.order == "the list 2.down, 0.[qk]"


def test_a_list_that_names_nothing_to_protect_is_refused(bench: Bench) -> None:
    for sites, rules in ((("9.down",), ()), (("*.qk",), ()), (("1.down",), ("1.down: w=int4/g32",))):
        with pytest.raises(PlanError, match=r"9\.down|\*\.qk|1\.down"):
            bench.plan(sites=sites, rules=rules)


def test_rules_are_part_of_every_plan_and_not_candidates(bench: Bench) -> None:
    rules = ("*.down_proj: w=int8/channel a=int8/token", "1.down: w=int8/tensor a=int8/token", "*.qk: r=int8/token")
    plan = bench.plan(rules=rules, budget="nats+0")
    assert plan[SPIKE] == parse_scheme("w=int8/tensor a=int8/token")
    assert plan["model.layers.0.mlp.down_proj"] == parse_scheme("w=int8/channel a=int8/token")
    qk = [a for a in plan.assignments if a.site.leaf == "qk"]
    assert {a.scheme for a in qk} == {parse_scheme("r=int8/token")}
    assert {type(a.scheme) for a in qk} == {MatmulScheme}
    reasons = {short_name(a.site.name): a.reason for a in plan.assignments}
    assert reasons["1.down"] == "matches 1.down"
    assert reasons["2.down"] == "matches *.down_proj"
    naive = naive_plan(bench.model, ProtectRequest(rules=rules), bench.stats)
    assert protected(naive) == ["0.down", "1.down", "2.down"]


# ---------------------------------------------------------------- engines that fuse


def test_vllm_protects_tied_sites_together(bench: Bench) -> None:
    plan = bench.plan(runtime="vllm", sites=("0.q", "2.up"))
    assert protected(plan) == ["0.q", "0.k", "0.v", "2.gate", "2.up"]
    plan.check_ties()
    assert protected(bench.plan(runtime="any", sites=("0.q", "2.up"))) == ["0.q", "2.up"]


def test_vllm_keeps_ties_in_a_search(bench: Bench) -> None:
    plan, record = find_plan(
        bench.model, bench.selection, ProtectRequest(runtime="vllm", budget="nats+0"), bench.stats, bench.menu
    )
    plan.check_ties()
    assert SPIKE in record.trials[1].sites
    assert len({s for t in record.trials for s in t.sites}) > len(record.trials) - 1  # a tie came in


def test_vllm_refuses_rules_that_break_a_tie(bench: Bench) -> None:
    with pytest.raises(PlanError, match=r"block 1: q_proj .*k_proj float"):
        bench.plan(runtime="vllm", rules=("1.k: float",))


# ---------------------------------------------------------------- what does not belong together


def test_strangers_are_refused(bench: Bench, tiny_model: Model) -> None:
    with pytest.raises(UserError, match="stats are of the model"):
        find_plan(tiny_model, bench.selection, ProtectRequest(), bench.stats, bench.menu)
    provenance = msgspec.structs.replace(bench.menu.provenance, model="f" * 64)
    with pytest.raises(UserError, match="prices are of the model ffffffffffff"):
        find_plan(
            bench.model,
            bench.selection,
            ProtectRequest(),
            bench.stats,
            msgspec.structs.replace(bench.menu, provenance=provenance),
        )


def test_a_menu_needs_prices_of_the_low_scheme(bench: Bench) -> None:
    with pytest.raises(PlanError, match=r"no price of w=int4/g32 .*q_proj and 20 more"):
        bench.plan(low="w=int4/g32")


def test_streams_behind_static_scales_are_needed(bench: Bench) -> None:
    streams = {k: v for k, v in bench.stats.streams.items() if not k.endswith("down_in")}
    with pytest.raises(UserError) as error:
        naive_plan(bench.model, ProtectRequest(), msgspec.structs.replace(bench.stats, streams=streams))
    for block in range(3):
        assert f"model.layers.{block}.down_in" in str(error.value)
    dynamic = ProtectRequest(low="w=int8/channel a=int8/token")
    naive_plan(bench.model, dynamic, msgspec.structs.replace(bench.stats, streams=streams))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"low": "w=int9/channel"}, "int9"),
        ({"low": "l=int8/token"}, "projections"),
        ({"protect": "fp9"}, "fp9"),
        ({"protect": "r=int8/token"}, "projections"),
        ({"budget": "1%"}, r"ppl\+1%"),
        ({"by": "damge"}, "did you mean damage"),
        ({"by": "superweight"}, "super-weight"),
        ({"runtime": "vlm"}, "vllm"),
        ({"rules": ("1.down=float",)}, "is no rule"),
        ({"rules": ("1.down: float", "1.up: w=int9/channel")}, "int9"),
    ],
)
def test_a_malformed_request_is_refused_before_a_model_is_opened(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ProtectRequest(**fields).check()


@pytest.mark.parametrize(
    "request_",
    [
        ProtectRequest(),
        ProtectRequest(protect="fp8", by="snr", runtime="vllm"),
        ProtectRequest(low="w=mxint4", protect="w=int8/channel", budget="nats+0.1", rules=("*.q_proj : float",)),
    ],
)
def test_well_formed_requests_pass(request_: ProtectRequest) -> None:
    request_.check()
    assert ProtectRequest(rules=("a.b :  w=int8/channel a=int8/token ",)).overrides() == (
        ("a.b", "w=int8/channel a=int8/token"),
    )


# ---------------------------------------------------------------- a prefix


def test_a_plan_has_the_prefix_that_its_stats_leave_out(bench: Bench) -> None:
    stats = profile(bench.model, bench.selection, 1)
    assert content_hash(stats) == content_hash(observe(bench.model, bench.selection, prefix=1))
    menu = price(bench.model, bench.selection, [parse_scheme(LOW)], stats, prefix=stats.prefix)
    for prefix in (1, "auto"):
        request = ProtectRequest(prefix=prefix, budget=BUDGET)
        plan, record = find_plan(bench.model, bench.selection, request, stats, menu)
        assert plan.prefix == naive_plan(bench.model, request, stats).prefix == (0,)
        assert plan.stats == content_hash(stats)
        assert protected(plan) == ["1.down"]  # this spike is a channel's, which no prefix takes away
        assert record.trials[0].damage.nats > 0.2 > record.budget_nats >= record.trials[1].damage.nats


def test_prices_and_stats_of_another_prefix_are_refused(bench: Bench) -> None:
    stats = observe(bench.model, bench.selection, prefix=1)
    with pytest.raises(UserError, match="`prefix` 0: these stats leave out 1 tokens"):
        naive_plan(bench.model, ProtectRequest(), stats)
    with pytest.raises(UserError, match="`prefix` 2: these stats leave out 0 tokens"):
        naive_plan(bench.model, ProtectRequest(prefix=2), bench.stats)
    with pytest.raises(UserError, match=r"prices are with the prefix \[\], the plan has \[0\]"):
        find_plan(bench.model, bench.selection, ProtectRequest(prefix=1), stats, bench.menu)
    with pytest.raises(UserError, match="`prefix` -1"):
        ProtectRequest(prefix=-1).check()


@pytest.mark.parametrize(
    ("spiking", "shared", "prefix"), [(0, 3, ()), (1, 3, (0,)), (2, 3, (0, 7)), (2, 1, (0,)), (2, 0, ())]
)
def test_auto_leaves_out_what_spikes_and_is_the_same_everywhere(
    spiking: int, shared: int, prefix: tuple[int, ...], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream keeps few peaks, so the stats show one more spiking position with every pass."""
    passes: list[int] = []

    def front(stats: ActivationStats) -> int:
        passes.append(len(stats.prefix))
        return min(len(stats.prefix) + 1, spiking)

    monkeypatch.setattr("qarat.jobs.protecting.spiking_front", front)
    windows = bench.selection.windows.clone()
    windows[:, 1:3] = 7
    if shared < 3:
        windows[0, shared] = 5
    tokens = msgspec.structs.replace(bench.selection, windows=windows)
    assert profile(bench.model, tokens, "auto", attention=False).prefix == prefix
    assert passes == list(range(len(prefix) + 1))

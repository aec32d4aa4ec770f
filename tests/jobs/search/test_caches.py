"""Schemes of caches in a menu: each cache is a unit, priced and allocated like a projection, in bytes at a context."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qarat.ground.errors import UserError
from qarat.jobs.checks import check_search_request
from qarat.jobs.search.budgets import plan_file
from qarat.jobs.search.job import search_plans
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.choose.space import make_space
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.quantize import quantize
from qarat.values.plans import Plan, assign
from qarat.values.records.files import decode_record
from qarat.values.records.scores import paired_difference
from qarat.values.records.search import SearchResult
from qarat.values.requests.search import SearchRequest
from qarat.values.units import make_units

Qarat = Callable[..., Any]
Tokens = tuple[TokenSet, TokenSet, TokenSet]
EIGHT, FOUR = "c=int8/token", "c=int4/token"
FLOATS = "float"


def base_of(model: Model) -> Plan:
    return assign(model.fingerprint, model.source_bits, model.sites(), "w=int4/g8")


def stored(plan: Plan, tokens: int) -> int:
    """Bits of weights and of so many tokens' keys and values."""
    return plan.weight_bits() + tokens * plan.cache_bits()


@pytest.mark.parametrize("menu", [(EIGHT,), (FOUR, EIGHT, "c=int3/token"), ("int8/channel", EIGHT)])
@pytest.mark.parametrize("granularity", ["matmul", "layer"])
def test_what_a_choice_weighs_is_what_its_plan_weighs(
    opened: tuple[Model, Tokens], menu: tuple[str, ...], granularity: str
) -> None:
    model, _ = opened
    base, request = base_of(model), SearchRequest("int4/g8", menu=menu, granularity=granularity)
    layers = granularity == "layer"
    space = make_space(base, request.ordered_options(base), layers=layers, axis=request.axis, context=50)
    caches = [unit for unit in space.units if unit.sites[0].endswith("_cache")]
    assert len(caches) == (1 if layers else 2) * model.blocks
    draw = np.random.default_rng(0)
    for _ in range(20):
        choice = tuple(draw.integers(0, len(space.options), len(space.units)).tolist())
        plan = space.plan(choice, "a test")
        assert 8e6 * space.megabytes(choice) == pytest.approx(stored(plan, 50), rel=1e-12)
        assert space.position(choice) == -space.megabytes(choice)
    assert all(a.is_float for a in space.plan(space.highest, "").assignments)
    widths = [stored(space.plan((i,) * len(space.units), ""), 50) for i in range(len(space.options))]
    assert widths == sorted(widths)
    assert space.plan((0,) * len(space.units), "").cache_bits() == min(
        assign("m", model.source_bits, model.sites(), "float", [("*_cache", c)]).cache_bits() for c in request.caches()
    )


def test_an_engine_with_one_kind_of_cache_makes_one_unit_of_all(opened: tuple[Model, Tokens]) -> None:
    model, _ = opened
    (unit,) = [u for u in make_units(model.sites(), tied=True, caches=True) if u.label == "*.k_cache+v_cache"]
    assert len(unit.sites) == 2 * model.blocks


def test_a_menu_of_caches_alone_decides_caches(opened: tuple[Model, Tokens], tmp_path: Path) -> None:
    """In bytes that only caches all low reach, with the weights left in float by a rule."""
    model, tokens = opened
    low = assign(model.fingerprint, model.source_bits, model.sites(), "float", [("*_cache", EIGHT)])
    budget = f"bytes={stored(low, 100) / 8:.0f}"
    request = SearchRequest(menu=(EIGHT,), budgets=(budget,), low=FLOATS, context=100, rewrites=False)
    result = search_plans(model, tokens, request, tmp_path / "s")
    plan = decode_record(tmp_path / "s" / plan_file(budget), Plan)
    assert {str(plan[s.name]) for s in plan.sites if s.kind == "cache"} == {EIGHT}
    assert all(plan[s.name].is_float for s in plan.sites if s.kind != "cache")
    assert (result.axis, result.context, result.caches) == ("megabytes", 100, (EIGHT, "float"))
    (reached,) = result.reached
    trial = result.trials[reached.trial]
    assert trial.megabytes == pytest.approx(stored(plan, 100) / 8e6, rel=1e-12)
    lost = measure_perplexity(quantize(model, plan), tokens[1], label="again")
    assert trial.damage == paired_difference(lost, result.float_loss)


def test_weights_and_caches_share_one_budget_of_bytes(opened: tuple[Model, Tokens], tmp_path: Path) -> None:
    """What is chosen keeps it as written, and loses no more than any one scheme of each kind that does."""
    model, tokens = opened
    base = base_of(model)
    most, least = (stored(plan, 200) for plan in (base.in_float(), base.with_schemes({}, "")))
    budgets = tuple(f"bytes={(least + share * (most - least)) / 8:.0f}" for share in (0.3, 0.7))
    request = SearchRequest("int4/g8", menu=("int8/channel", FOUR, EIGHT), budgets=budgets, context=200)
    result = search_plans(model, tokens, request, tmp_path / "s")
    uniform = [trial for trial in result.trials if trial.label.endswith("everywhere")]
    assert len(uniform) == 3 * 3 - 1  # every pair, but float with float
    for reached in result.reached:
        trial = result.trials[reached.trial]
        limit = int(reached.budget.removeprefix("bytes="))
        assert stored(decode_record(tmp_path / "s" / plan_file(reached.budget), Plan), 200) <= 8 * limit
        within = [t for t in uniform if t.megabytes <= limit / 1e6]
        assert all(trial.damage.nats <= t.damage.nats for t in within)


def test_a_loss_budget_takes_caches_as_far_down_as_it_lets_them(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "s"
    words = ["--menu", FOUR, EIGHT, "--low", "float", "--no-rewrites", "--budget", "nats+9", "nats+0"]
    answer = qarat("search", tiny_llama, *small, "-o", out, *words)
    assert answer.code == 0, answer.err
    result = decode_record(out / "search.json", SearchResult)
    assert f"keys and values of {result.context} tokens" in answer.out
    assert result.context == open_model(str(tiny_llama)).length
    everything = decode_record(out / plan_file("nats+9"), Plan)
    assert {str(everything[s.name]) for s in everything.sites if s.kind == "cache"} == {FOUR}
    assert "MB of weights and caches" in (out / "report.html").read_text()


def test_the_command_it_ends_with_quantizes_where_no_rewrite_pays(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--low", "int8/channel", "--menu", EIGHT, "--budget", "nats+9", "-o", "s"]
    answer = qarat("search", tiny_llama, *small, *words)
    (line,) = [line for line in answer.out.splitlines() if "qarat quantize" in line]
    assert "--transform rewrite/none" in line
    again = qarat(*shlex.split(line)[1:])
    assert again.code == 0, again.err


@pytest.mark.parametrize("strategy", ["random", "greedy"])
def test_strategies_that_do_not_predict_decide_caches_too(
    opened: tuple[Model, Tokens], tmp_path: Path, strategy: str
) -> None:
    model, tokens = opened
    request = SearchRequest(menu=(EIGHT, FOUR), budgets=("nats+9",), low=FLOATS, strategy=strategy, trials=2)
    result = search_plans(model, tokens, request, tmp_path / "s")
    assert result.reached[0].trial >= 0
    assert any(0 < option < 2 for trial in result.trials for option in trial.choice)


@pytest.mark.parametrize(
    ("request_of", "why"),
    [
        ({"low": EIGHT}, "`low` c=int8/token: .* go into the `menu`"),
        ({"high": EIGHT}, "`high` c=int8/token: .* go into the `menu`"),
        ({"menu": ("l=int8/token r=int8/token",)}, "projections have w=… and a=…"),
        ({"menu": ("w=int4/g8 c=int8/token",)}, "give one kind"),
        ({"menu": ("c=int8/channel",)}, "does not fit the cache"),
        ({"menu": (EIGHT, EIGHT)}, "stands twice"),
        ({"menu": (EIGHT, "c=float")}, "stands twice"),
        ({"context": 100}, "`context` 100: .* `menu` has schemes of caches"),
        ({"menu": (EIGHT,), "context": -1}, "`context` -1"),
        ({"menu": (EIGHT,), "strategy": "mixquant"}, "weight-error looks at weights alone"),
        ({"menu": (EIGHT,), "metric": "weight-error"}, "weight-error looks at weights alone"),
        ({"menu": (EIGHT,), "basis": "macs", "low": "mxint4"}, "leave `menu`"),
    ],
)
def test_what_a_search_cannot_do_with_caches_is_said(request_of: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        check_search_request(SearchRequest(**request_of))


@pytest.mark.parametrize("budget", ["bits=6", "ratio=0.5"])
def test_budgets_of_weights_alone_are_refused(opened: tuple[Model, Tokens], tmp_path: Path, budget: str) -> None:
    model, tokens = opened
    with pytest.raises(UserError, match=r"ordered by megabytes; ask for bytes=…, of weights and caches together"):
        search_plans(model, tokens, SearchRequest(menu=(EIGHT,), budgets=(budget,)), tmp_path / "s")

"""Roundings that look at calibration tokens, in menus: searched, kept, named in the plan, wherever that runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qarat.ground.errors import UserError
from qarat.jobs.advising import Advisor
from qarat.jobs.bench import Bench, Member
from qarat.jobs.checks import check_searches
from qarat.jobs.folder import Run
from qarat.jobs.ratio_study import RatioJob
from qarat.jobs.runners import open_runner
from qarat.jobs.search.budgets import plan_file
from qarat.jobs.search.job import SearchJob, search_plans
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.quantize import quantize
from qarat.stages.rounding import ROUNDINGS
from qarat.values.plans import Plan
from qarat.values.records.files import decode_record
from qarat.values.records.scores import paired_difference
from qarat.values.requests.advise import AdviseRequest
from qarat.values.requests.search import SearchRequest
from qarat.values.requests.studies import RatioRequest

Qarat = Callable[..., Any]
Tokens = tuple[TokenSet, TokenSet, TokenSet]
FISHER, GPTQ = "w=int4/g8/round-fisher", "w=int3/g8/round-gptq"
BUDGET = "bits=6"


def counted(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A list to which every rounding by calibration tokens adds the scheme and the site."""
    rounded: list[object] = []
    for name in ("gptq", "fisher"):
        module = ROUNDINGS.load(name)

        def count(weight: Any, scheme: Any, context: Any, inner: Any = module.round_weight) -> Any:
            rounded.append((scheme, context.site.name))
            return inner(weight, scheme, context)

        monkeypatch.setattr(module, "round_weight", count)
    return rounded


def request_of(**more: Any) -> SearchRequest:
    return SearchRequest(GPTQ, menu=(FISHER,), budgets=(BUDGET,), points=(5.0,), rewrites=False, **more)


def test_a_search_measures_what_its_plans_are_quantized_to(opened: tuple[Model, Tokens], tmp_path: Path) -> None:
    model, tokens = opened
    result = search_plans(model, tokens, request_of(), tmp_path / "s")
    plan = decode_record(tmp_path / "s" / plan_file(BUDGET), Plan)
    assert plan.calibration == tokens[0].fingerprint
    assert {str(scheme) for scheme in plan.schemes.values()} & {FISHER, GPTQ}
    (reached,) = result.reached
    small = quantize(model, plan, calibration=tokens[0])
    lost = paired_difference(measure_perplexity(small, tokens[1], label="again"), result.float_loss)
    assert lost.nats == result.trials[reached.trial].damage.nats


def test_workers_round_with_tokens_of_their_own(opened: tuple[Model, Tokens], tmp_path: Path) -> None:
    model, tokens = opened
    here = search_plans(model, tokens, request_of(), tmp_path / "here")
    with open_runner(2) as runner:
        run = Run(tmp_path / "there", "search")
        with run.work():
            job = SearchJob(Member(str(model.path), model, tokens), request_of(), Bench(runner))
            there = job.execute(run)
    assert [t.damage.nats for t in there.trials] == pytest.approx([t.damage.nats for t in here.trials], abs=1e-6)
    assert [t.choice for t in there.trials] == [t.choice for t in here.trials]


@pytest.mark.parametrize("strategy", ["predicted", "random"])
def test_each_weight_is_rounded_once_under_each_scheme(
    opened: tuple[Model, Tokens], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """Priced, measured in many plans with no room to keep weights in memory, and measured again on the report."""
    model, tokens = opened
    model.memory = 1
    rounded = counted(monkeypatch)
    search_plans(model, tokens, request_of(strategy=strategy, trials=4), tmp_path / "s")
    assert len(rounded) == len(set(rounded)) > 7


def test_other_calibration_tokens_are_refused_with_both(opened: tuple[Model, Tokens], tmp_path: Path) -> None:
    model, tokens = opened
    search_plans(model, tokens, request_of(), tmp_path / "s")
    plan = decode_record(tmp_path / "s" / plan_file(BUDGET), Plan)
    with pytest.raises(UserError, match=f"looked at the calibration tokens {plan.calibration[:8]}, these are .*again"):
        quantize(model, plan, calibration=tokens[2])


def test_the_command_that_a_search_ends_with_quantizes(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "s"
    words = ["--low", GPTQ, "--menu", FISHER, "--budget", BUDGET, "--no-page", "--no-rewrites"]
    answer = qarat("search", tiny_llama, *small, "-o", out, *words)
    assert answer.code == 0, answer.err
    plan = ["--plan", out / plan_file(BUDGET)]
    given = qarat("quantize", tiny_llama, *small, *plan, "-o", tmp_path / "q")
    assert given.code == 0, given.err
    other = qarat("quantize", tiny_llama, *small, *plan, "-o", tmp_path / "r", "--seed", 9)
    assert other.code == 1
    assert "give the text, length, samples and seed behind it" in other.err


@pytest.mark.parametrize("low", [GPTQ, "w=int4/g8"])
def test_too_few_calibration_tokens_are_refused_before_any_work(
    opened: tuple[Model, Tokens], tmp_path: Path, low: str
) -> None:
    """Be the rounding among the options, or that of a rule."""
    model, (calibration, selection, report) = opened
    few = calibration.subset(1)
    request = SearchRequest(low, budgets=("ratio=0.5",), rules=(f"0.down: {GPTQ}",), rewrites=False)
    with pytest.raises(UserError, match="which 32 calibration tokens cannot tell apart"):
        search_plans(model, (few, selection, report), request, tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_the_searches_of_a_study_share_what_is_rounded(
    opened: tuple[Model, Tokens], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = opened
    rounded = counted(monkeypatch)
    asked = RatioRequest("w=int4/g8/round-gptq", (8,), (0.5,), (0.5,), ("ppl+20%",), trials=2, best_of=(2,))
    check_searches(asked)
    run = Run(tmp_path / "r", "ratio-study")
    with open_runner() as runner, run.work():
        study = RatioJob(Member(str(model.path), model, tokens), asked, Bench(runner)).execute(run)
    assert [arm.low for arm in study.arms] == ["w=int4/g8/round-gptq"] * 2
    assert len(rounded) == len(set(rounded)) == 14


def test_advice_has_roundings_among_its_schemes(opened: tuple[Model, Tokens], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = opened
    rounded = counted(monkeypatch)
    advisor = Advisor(model, tokens, AdviseRequest(schemes=("w=int4/g8", FISHER), budget="nats+9", measure=2))
    advice = advisor.advise(advisor.profile())
    assert {s.scheme for s in advice.schemes} == {"w=int4/g8", FISHER}
    (nearest,), (fisher,) = ([s for s in advice.schemes if s.scheme == low] for low in ("w=int4/g8", FISHER))
    assert nearest.size == fisher.size
    assert nearest.engines == fisher.engines
    assert set(advice.measured) == {nearest.name, fisher.name}
    assert len(rounded) == len(set(rounded)) == 14

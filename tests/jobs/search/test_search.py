"""The search verb and its job: same bytes however often it is stopped, wherever it is measured, whatever is kept."""

import ast
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import qarat as qarat_package
from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, Runtime, no_progress
from qarat.jobs.bench import Bench, Member
from qarat.jobs.checks import check_search_request
from qarat.jobs.folder import Run
from qarat.jobs.runners import open_runner
from qarat.jobs.runners.base import ThisProcess
from qarat.jobs.search.budgets import check_tasks, plan_file, reach_accuracy
from qarat.jobs.search.job import SearchJob, search_plans
from qarat.jobs.transforming import apply_again
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.model.tokens import TokenSet
from qarat.stages.choose import trials
from qarat.surfaces.commands.common import pricing_work
from qarat.values.budgets import AccuracyBudget, parse_budget
from qarat.values.fingerprints import spellings_of
from qarat.values.plans import Plan
from qarat.values.records.files import content_hash, decode_record
from qarat.values.records.origin import Difference, Provenance
from qarat.values.records.scores import Evaluation, TaskScore, ZeroShot
from qarat.values.records.search import SearchResult, SearchTrial, pareto
from qarat.values.requests.search import POINTS, SearchRequest

Qarat = Callable[..., Any]
INT8 = "w=int8/channel a=int8/tensor/static"


def searched(qarat: Qarat, model: Path, small: list[str], out: Path, *words: object) -> SearchResult:
    answer = qarat("search", model, *small, "-o", out, *words)
    assert answer.code == 0, answer.err
    assert "written" in answer.out
    return decode_record(out / "search.json", SearchResult)


def test_budgets_of_every_kind_from_one_search(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path
) -> None:
    budgets = ("ppl+20%", "nats+0.000001", "ratio=0.5")
    result = searched(qarat, tiny_llama, small, tmp_path / "s", "--budget", *budgets)
    assert [r.budget for r in result.reached] == list(budgets)
    for reached in result.reached:
        plan = decode_record(tmp_path / "s" / plan_file(reached.budget), Plan)
        if reached.trial >= 0:
            assert plan.ratio() == pytest.approx(result.trials[reached.trial].ratio)
            assert len(reached.report) == len(result.float_report.nats)
        else:
            assert plan.ratio() == 0
        assert plan.note == reached.verdict
    assert result.trials[result.reached[2].trial].ratio >= 0.5
    assert [t.ratio for t in pareto(result.trials, "ratio")] == sorted(t.ratio for t in pareto(result.trials, "ratio"))
    assert result.cost.pricing > 0
    assert result.correction.pairs == len([t for t in result.trials if t.predicted > 0 and t.damage.nats > 0])


def test_the_same_from_python(
    qarat: Qarat, tiny_llama: Path, tiny_text: Path, small: list[str], tmp_path: Path
) -> None:
    searched(qarat, tiny_llama, small, tmp_path / "s", "--budget", "ratio=0.6")
    model = open_model(str(tiny_llama))
    tokens = load_token_sets(model, calibration=str(tiny_text), samples=4, report_samples=6, length=32)
    search_plans(model, tokens, SearchRequest(budgets=("ratio=0.6",)), tmp_path / "p")
    for name in ("search.json", plan_file("ratio=0.6")):
        assert (tmp_path / "s" / name).read_bytes() == (tmp_path / "p" / name).read_bytes()
    with pytest.raises(UserError, match="exists already"):
        search_plans(model, tokens, SearchRequest(), tmp_path / "p")
    with pytest.raises(UserError, match="tpe"):
        search_plans(model, tokens, SearchRequest(strategy="tpo"), tmp_path / "q")
    assert not list(tmp_path.glob("q*"))


@pytest.mark.parametrize("rewritten", [True, False])
def test_the_plan_of_a_budget_loses_what_the_search_says(
    qarat: Qarat,
    tiny_llama: Path,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    rewritten: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--low", INT8, "--budget", "ratio=0.6", *([] if rewritten else ["--no-rewrites"])]
    answer = qarat("search", tiny_llama, *small, "-o", "s", *words)
    result = decode_record(tmp_path / "s" / "search.json", SearchResult)
    assert spellings_of(result.provenance.model) == (("rewrite/64",) if rewritten else ())
    (line,) = [line for line in answer.out.splitlines() if "qarat quantize" in line]
    assert qarat(*shlex.split(line)[1:]).code == 0
    assert qarat("evaluate", "quantized", *small, "-o", "loss.json").code == 0
    measured = decode_record(Path("loss.json"), Evaluation)
    assert measured.nats == pytest.approx(result.reached[0].report, rel=1e-6)


def test_a_rewritten_model_is_searched_by_workers_too(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path
) -> None:
    words = ["--low", INT8, "--budget", "ratio=0.6", "--threads", "2"]
    one = searched(qarat, tiny_llama, small, tmp_path / "one", *words)
    two = searched(qarat, tiny_llama, small, tmp_path / "two", *words, "--workers", "2")
    assert two.reached == one.reached
    assert spellings_of(two.provenance.model) == ("rewrite/64",)


def test_formats_that_no_steps_fit_are_searched_as_they_are_and_that_is_said(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path
) -> None:
    answer = qarat("search", tiny_llama, *small, "-o", tmp_path / "s", "--low", "mxint4", "--budget", "ratio=0.6")
    assert "nothing is rewritten" in answer.err
    assert not spellings_of(decode_record(tmp_path / "s" / "search.json", SearchResult).provenance.model)


@pytest.mark.parametrize("strategy", ["predicted", "random"])
def test_no_plan_is_worse_than_one_scheme_in_as_many_bits(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path, strategy: str
) -> None:
    schemes = {"w=int4/channel": 5.0, "w=int6/channel": 7.0, "w=int8/channel": 9.0}
    words = ["--low", "int4/channel", "--menu", "int6/channel, int8/channel", "--strategy", strategy, "--trials", "2"]
    budgets = [f"bits={bits}" for bits in schemes.values()]
    result = searched(qarat, tiny_llama, small, tmp_path / "s", *words, "--budget", *budgets)
    uniform = {trial.label: trial for trial in result.trials if trial.label.endswith("everywhere")}
    assert list(uniform) == [f"{scheme} everywhere" for scheme in schemes]
    for budget, scheme in zip(budgets, schemes, strict=True):
        alike = uniform[f"{scheme} everywhere"]
        assert len(set(alike.choice)) == 1
        assert alike.bits <= schemes[scheme]
        assert result.trials[result.budget(budget).trial].damage.nats <= alike.damage.nats


def test_layers_macs_and_menus(qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path) -> None:
    layers = searched(qarat, tiny_llama, small, tmp_path / "a", "--granularity", "layer", "--points", 0.5)
    assert all(label.count("+") == 6 for label in layers.units)
    macs = searched(qarat, tiny_llama, small, tmp_path / "b", "--basis", "macs", "--points", 0.5)
    assert any(label.endswith(".qk") for label in macs.units)
    menu = ["--menu", "w=int8/channel", "--budget", "bits=8", "bytes=20kB"]
    several = searched(qarat, tiny_llama, small, tmp_path / "c", *menu)
    assert several.axis == "bits"
    assert several.trials[several.reached[0].trial].bits <= 8
    two = searched(qarat, tiny_llama, small, tmp_path / "d", "--budget", "bits=8")
    assert two.axis == "bits"
    assert two.trials[two.reached[0].trial].bits <= 8
    assert two.correction.pairs == 0  # one plan is nothing to fit it to


@pytest.mark.parametrize("words", [["--strategy", "random", "--trials", "6"], ["--strategy", "predicted"]])
def test_what_is_kept_and_who_measures_changes_nothing(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path, words: list[str]
) -> None:
    words = [*words, "--budget", "ratio=0.5", "ppl+5%"]
    one = searched(qarat, tiny_llama, small, tmp_path / "one", *words)
    kept = searched(qarat, tiny_llama, small, tmp_path / "kept", *words, "--keep", "0")
    assert kept.trials == one.trials
    assert kept.reached == one.reached
    assert kept.cost.measuring >= one.cost.measuring


def test_prices_that_are_not_nats_are_not_added_up(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path
) -> None:
    words = ["--metric", "weight-error", "--points", "0.3", "0.5", "0.7", "0.9", "--budget", "ppl+20%"]
    result = searched(qarat, tiny_llama, small, tmp_path / "s", *words)
    assert (result.metric, result.cost.pricing, result.correction.pairs) == ("weight-error", 0, 0)


def test_mixquant_goes_by_weights_and_needs_no_token(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path
) -> None:
    words = ["--strategy", "mixquant", "--low", "int4/channel", "--menu", "int6/channel, int8/channel"]
    result = searched(qarat, tiny_llama, small, tmp_path / "s", *words, "--budget", "bits=8", "nats+0.05")
    assert (result.metric, result.cost.pricing) == ("weight-error", 0)
    chosen = [t for t in result.trials if t.label.startswith("QEM")]
    assert chosen
    assert all(t.predicted >= 0 for t in chosen)
    assert any(t.bits <= 8 for t in chosen)


def test_two_workers_find_the_same(qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path) -> None:
    words = ["--strategy", "random", "--trials", "4", "--budget", "ratio=0.5"]
    one = searched(qarat, tiny_llama, small, tmp_path / "one", *words)
    two = searched(qarat, tiny_llama, small, tmp_path / "two", *words, "--workers", "2")
    assert [t.choice for t in two.trials] == [t.choice for t in one.trials]
    losses = [[t.damage.nats for t in result.trials] for result in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)


def test_a_killed_search_goes_on(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--strategy", "random", "--trials", "5", "--budget", "ratio=0.5", "ratio=0.75"]
    whole = searched(qarat, tiny_llama, small, tmp_path / "whole", *words)

    add, count = trials.TrialLog.add, 0

    def die(self: trials.TrialLog, answer: trials.Answer) -> None:
        nonlocal count
        count += 1
        if count == 7:
            raise KeyboardInterrupt
        add(self, answer)

    monkeypatch.setattr(trials.TrialLog, "add", die)
    assert qarat("search", tiny_llama, *small, "-o", tmp_path / "cut", *words).code == 130
    log = tmp_path / "cut.partial" / "trials.jsonl"
    assert len(log.read_text().splitlines()) == 1 + 6
    shown = qarat("show", tmp_path / "cut")
    assert (shown.code, shown.out) == (0, "")
    assert "not finished: 6 plans measured so far" in shown.err
    assert f"continues with the same command: qarat search {tiny_llama}" in shown.err
    monkeypatch.setattr(trials.TrialLog, "add", add)
    after = searched(qarat, tiny_llama, small, tmp_path / "cut", *words)
    assert after.trials == whole.trials
    assert after.reached == whole.reached
    assert after.cost.measuring >= whole.cost.measuring  # nothing that was spent is forgotten


def test_a_log_of_other_tokens_is_refused(qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path) -> None:
    out = tmp_path / "s"
    partial = tmp_path / "s.partial"
    partial.mkdir()
    (partial / "manifest.json").write_text('{"kind": "search"}')
    (partial / "trials.jsonl").write_text(json.dumps({"qarat": "trials/1", "provenance": {}, "base": "x"}) + "\n")
    answer = qarat("search", tiny_llama, *small, "-o", out)
    assert answer.code == 1
    assert "log of another search" in answer.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget", "ppl-5%"], "is no budget; write"),
        (["--budget", "bits=5", "ratio=0.5"], "search for it alone"),
        (["--strategy", "predicated"], "predicted"),
        (["--metric", "fischer"], "fisher"),
        (["--low", "float"], "stands twice"),
        (["--low", "w=int4/channel", "--basis", "macs"], "need inputs"),
        (["--points", "1.5"], "at most 1"),
        (["--trials", "0"], "at least 1"),
        (["--low", INT8, "--high", "fp8"], "cannot tell them apart"),
        (["--low", "a=int8/token"], "keeps no weight low"),
        (["--basis", "macs", "--menu", "w=int8/channel a=int8/token"], "take no bits of storage"),
        (["--basis", "macs", "--budget", "bits=8"], "take no bits of storage"),
        (["--basis", "macs", "--low", "w=int4/channel a=int8/token", "--high", "fp8"], "no more input bits"),
        (["--basis", "macs", "--metric", "weight-error"], "no price of attention products"),
        (["--budget", "acc(code_continuation)-1%"], "cannot choose plans"),
        (["--workers", "0"], "at least 1"),
        (["--set", "nothing: float"], "matches no site"),
        (["--set", "*: float"], "decides every site"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path, words: list[str], said: str
) -> None:
    answer = qarat("search", tiny_llama, *small, "-o", tmp_path / "s", *words)
    assert answer.code in (1, 2)
    assert said in answer.err
    assert not list(tmp_path.iterdir())


def make_job(
    model: Path, text: Path, request: SearchRequest, progress: Progress = no_progress, **more: Any
) -> tuple[SearchJob, tuple[TokenSet, TokenSet, TokenSet]]:
    opened = open_model(str(model), Runtime(threads=1))
    tokens = load_token_sets(opened, calibration=str(text), samples=4, report_samples=6, length=32)
    check_search_request(request)
    return SearchJob(
        Member(str(model), opened, tokens), request, Bench(ThisProcess(), progress=progress, **more)
    ), tokens


@pytest.mark.parametrize(
    ("request_", "points"),
    [
        (SearchRequest(budgets=("ratio=0.6", "ppl+5%")), (0.6,)),
        (SearchRequest(budgets=("ratio=0.6", "ppl+5%"), strategy="random"), (*POINTS["matmul"], 0.6)),
        (SearchRequest(budgets=("ratio=0.9", "acc(x)-1%")), (*POINTS["matmul"], 1.0)),
        (SearchRequest(budgets=("ratio=0.6",), strategy="random"), (0.6,)),
        (SearchRequest(budgets=("ratio=0.6", "acc(x)-1%", "ppl+5%"), points=(0.3,)), (0.3, 0.6)),
        (SearchRequest(budgets=("ppl+5%", "bits=7"), strategy="random"), (-12.0, -8.0, -6.0, -5.0, -7.0)),
        (SearchRequest(), ()),
    ],
)
def test_budgets_of_cost_take_no_points_away(
    tiny_llama: Path,
    tiny_text: Path,
    monkeypatch: pytest.MonkeyPatch,
    request_: SearchRequest,
    points: tuple[float, ...],
) -> None:
    monkeypatch.setattr("qarat.jobs.search.job.check_tasks", lambda budgets: None)
    assert make_job(tiny_llama, tiny_text, request_)[0].points == pytest.approx(points, rel=1e-9)


def test_schemes_may_come_in_any_order(qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path) -> None:
    words = ["--low", "w=int8/channel", "--menu", "w=int4/g128", "--budget", "bits=8"]
    for strategy in ("predicted", "random"):
        out = tmp_path / strategy
        result = searched(qarat, tiny_llama, small, out, *words, "--strategy", strategy, "--trials", "3")
        assert result.menu == ("w=int4/g128", "w=int8/channel", "float")
        assert result.reached[0].trial >= 0
        assert decode_record(out / plan_file("bits=8"), Plan).bits_per_weight() <= 8


def test_schemes_are_ordered_by_the_bits_they_take_in_the_model(tiny_llama: Path, tiny_text: Path) -> None:
    request = SearchRequest("mxint4", menu=("int4/g128, int8/channel, fp8, float",), budgets=("bits=6",))
    job, _ = make_job(tiny_llama, tiny_text, request)
    schemes = [str(option.projection) for option in job.space.options]
    assert sorted(schemes) == sorted(request.schemes())
    totals = job.space.costs("bits")[0].sum(0).tolist()
    assert totals == sorted(totals)
    assert schemes[-1] == "float"


def test_short_names_formats_alone_and_commas() -> None:
    request = SearchRequest("mxint4", menu=("int4/g128, int8/channel,", "fp8", "{-1,0,1}/channel, float"))
    check_search_request(request)
    fp8 = "w=e4m3/tensor a=e4m3/tensor/static"
    middle = ("w=int4/g128", "w=int8/channel", fp8, "w={-1,0,1}/channel")
    assert request.schemes() == ("w=mxint4 a=mxint4", *middle, "float")
    assert SearchRequest("int8-static").schemes()[0] == "w=int8/tensor a=int8/tensor/static"
    with pytest.raises(UserError, match="stands twice"):
        check_search_request(SearchRequest("mxint4", menu=("w=mxint4 a=mxint4",)))
    with pytest.raises(UserError, match="did you mean int4"):
        check_search_request(SearchRequest("imt4/g32"))


def test_the_example_in_the_documentation_is_a_request() -> None:
    page = (Path(__file__).parents[3] / "docs" / "searching.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    (asked,) = [
        node
        for node in ast.walk(ast.parse(example))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "qarat.SearchRequest"
    ]
    request: SearchRequest = eval(ast.unparse(asked), {"qarat": qarat_package})
    check_search_request(request)
    assert request.axis == "bits"


def test_products_are_low_by_the_bits_of_low_inputs(tiny_llama: Path, tiny_text: Path) -> None:
    job, _ = make_job(tiny_llama, tiny_text, SearchRequest("w=int4/channel a=int8/token", basis="macs"))
    assert job.space.ratio((0,) * len(job.space.units)) == 1.0


def test_token_sets_must_have_no_text_in_common(tiny_llama: Path, tiny_text: Path, tmp_path: Path) -> None:
    job, (one, _, _) = make_job(tiny_llama, tiny_text, SearchRequest())
    with pytest.raises(UserError, match="share"):
        search_plans(job.model, (one, one, one), SearchRequest(), tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_a_changed_model_is_searched_in_this_process_alone(tiny_llama: Path, tiny_text: Path, tmp_path: Path) -> None:
    job, tokens = make_job(tiny_llama, tiny_text, SearchRequest())
    turned = apply_again(job.model, ("hadamard",), [None])
    with pytest.raises(UserError, match=r"changed here by hadamard.*workers=1"):
        search_plans(turned, tokens, SearchRequest(), tmp_path / "s", workers=2)
    SearchJob(Member("", turned, tokens), SearchRequest(), job.setting)
    assert not list(tmp_path.iterdir())


def test_while_workers_measure_their_memory_is_not_held_here(tiny_llama: Path, tiny_text: Path) -> None:
    job, tokens = make_job(tiny_llama, tiny_text, SearchRequest())
    before = [block.state_dict() for _, block in job.model.walk()]
    job.setting.measurer(job.member, tokens[1], None)
    assert len(job.model._kept) == job.model.blocks
    with open_runner(2) as runner:
        Bench(runner).measurer(job.member, tokens[1], None)
    assert not job.model._kept
    for (_, block), state in zip(job.model.walk(), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in block.state_dict().items())


def test_without_optuna_tpe_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "qarat.stages.choose.strategies.tpe", raising=False)
    with pytest.raises(UserError, match="needs Optuna"):
        check_search_request(SearchRequest(strategy="tpe"))


def test_a_task_that_the_harness_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = SimpleNamespace(TaskManager=lambda: SimpleNamespace(all_tasks=["arc_easy", "piqa"]))
    monkeypatch.setattr("qarat.stages.measure.tasks.harness.import_harness", lambda name: manager)
    check_tasks([parse_budget("ppl+5%"), parse_budget("acc(piqa)-1%")])
    with pytest.raises(UserError, match="no task 'ark_easy'; did you mean arc_easy"):
        check_tasks([parse_budget("acc(ark_easy)-1%")])


def test_a_dry_run_counts_the_windows_and_the_metric(tiny_llama: Path, tiny_text: Path) -> None:
    def work(metric: str, windows: int) -> float:
        job, _ = make_job(tiny_llama, tiny_text, SearchRequest(metric=metric, price_windows=windows))
        return pricing_work(metric, job.model, job.price_tokens, job.priced_schemes).tokens

    assert work("fisher", 2) == 2 * work("fisher", 1) == 2 * 32 * (3 + 1)
    assert work("weight-error", 1) == 0
    assert work("kl", 1) > work("fisher", 1)


@pytest.mark.parametrize("low", ["mxint4", "int8-static"])  # the second is rewritten, wider than the checkpoint
def test_a_dry_run_writes_nothing(low: str, qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path) -> None:
    answer = qarat("search", tiny_llama, *small, "--low", low, "-o", tmp_path / "s", "--dry-run")
    assert answer.code == 0
    assert "search" in answer.out
    assert not list(tmp_path.iterdir())


def test_a_result_reads_back_equal(qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path) -> None:
    result = searched(qarat, tiny_llama, small, tmp_path / "s")
    again = decode_record(tmp_path / "s" / "search.json", SearchResult)
    assert content_hash(result) == content_hash(again)
    shown = qarat("show", tmp_path / "s" / "search.json")
    assert shown.code == 0
    assert qarat("show", tmp_path / "s").out == shown.out


def test_a_request_is_checked_without_a_model() -> None:
    check_search_request(SearchRequest())
    with pytest.raises(UserError, match="`granularity`"):
        check_search_request(SearchRequest(granularity="site"))


def trial(label: str, ratio: float) -> SearchTrial:
    return SearchTrial(label, (0,), ratio, 4.0, 0.0, Difference(0.1, 0.01, 3))


def scored(hits: int) -> ZeroShot:
    items = tuple(float(i < hits) for i in range(100))
    score = TaskScore("arc_easy", "1", "acc", hits / 100, 0.05, items)
    return ZeroShot("x", Provenance("m", "t", "lm-eval", {}), "", (score,))


def test_a_budget_of_accuracy_takes_the_cheapest_plan_that_keeps_it() -> None:
    hits = {"a": 60, "b": 59, "c": 57, "d": 40}
    curve = [(i, trial(name, 0.2 * (i + 1))) for i, name in enumerate(hits)]
    budget = AccuracyBudget("acc(arc_easy)-2%", "arc_easy", 0.02)
    reached = reach_accuracy(budget, curve, scored(60), lambda t: scored(hits[t.label]))
    assert (reached.trial, reached.verdict.startswith("b: accuracy 0.590, float 0.600")) == (1, True)
    nothing = reach_accuracy(budget, curve[3:], scored(60), lambda t: scored(hits[t.label]))
    assert nothing.trial == -1
    with pytest.raises(UserError, match="no metric acc"):
        reach_accuracy(AccuracyBudget("acc(x)-2%", "x", 0.02), curve, scored(60), lambda t: scored(1))


def test_a_score_and_a_loss_on_the_report_are_measured_once(
    tiny_llama: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qarat.jobs.search.job.check_tasks", lambda budgets: None)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1")
    asked: list[str] = []

    def measure(model: Model, tasks: list[str], *, label: str, progress: Progress) -> ZeroShot:
        asked.append(label)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return scored(60 if label == "float" else 59)

    monkeypatch.setattr("qarat.jobs.search.job.measure_tasks", measure)
    stages: list[str] = []
    budgets = ("acc(arc_easy)-2%", "acc(arc_easy)-5%", "ratio=0.9")
    job, _ = make_job(
        tiny_llama, tiny_text, SearchRequest(budgets=budgets), lambda stage, done, total: stages.append(stage)
    )
    run = Run(tmp_path / "s", "search")
    with pytest.raises(KeyboardInterrupt), run.work():
        job.execute(run)
    add, reported = trials.TrialLog.add, 0

    def die(self: trials.TrialLog, answer: trials.Answer) -> None:
        nonlocal reported
        add(self, answer)
        reported += stages[-1] == "report"
        if reported == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(trials.TrialLog, "add", die)
    with pytest.raises(KeyboardInterrupt), run.work():
        job.execute(run)
    scores = len(asked)
    (log,) = run.folder.glob("report-*.jsonl")
    assert len(log.read_text().splitlines()) == 1 + 1
    with run.work():
        result = job.execute(run)
    assert len(asked) == scores  # of earlier calls, all of them
    assert asked.count("float") == 1
    assert sorted(asked[:2] + asked[3:]) == sorted(set(asked))
    assert [result.trials[r.trial].ratio for r in result.reached[:2]] == [1.0, 1.0]
    assert all(r.report for r in result.reached)
    assert reported == 1 + len({r.trial for r in result.reached})  # float, and each plan once


def test_overrides_are_pinned_also_at_the_low_scheme(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path
) -> None:
    low = "w=mxint4 a=mxint4"
    result = searched(qarat, tiny_llama, small, tmp_path / "s", "--set", f"0.down: {low}", "--budget", "ratio=0.5")
    assert "0.down" not in result.units
    assert decode_record(tmp_path / "s" / plan_file("ratio=0.5"), Plan).ratio() >= 0.5

"""Advice on a trained model with a spike: predictions as the single steps give them, what is measured, who runs it."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import qarat
from qarat.ground.errors import UserError
from qarat.jobs.advising import Advisor, pick
from qarat.jobs.engine_answers import answers
from qarat.jobs.estimates import PRICED_ON, quantized_bytes
from qarat.jobs.landscape import misfit
from qarat.jobs.protecting import draft_plan, profile
from qarat.jobs.rewriting import CAUTION, fewest_columns, fit_rewrites, reaching
from qarat.jobs.transforming import outline
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.model.tokens import TokenSet
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.prices.pricing import price
from qarat.stages.quantize import quantize
from qarat.stages.transforms import parse_transform
from qarat.stages.transforms.rewrite import columns_for
from qarat.surfaces.tables.advice import verb_of, words_of
from qarat.testing import tiny_checkpoint
from qarat.values.parsing import parse_scheme
from qarat.values.plans import assign
from qarat.values.records.advice import Advice, AdvisedScheme, EngineAnswer
from qarat.values.records.files import decode_record, encode_record
from qarat.values.records.scores import paired_difference
from qarat.values.records.streams import ActivationStats
from qarat.values.requests.advise import LANDSCAPE, AdviseRequest
from qarat.values.requests.protect import ProtectRequest
from qarat.values.schemes import LOW, CacheScheme, LinearScheme

Sets = tuple[TokenSet, TokenSet, TokenSet]
FP8, INT4, MX = (LANDSCAPE[name] for name in ("FP8 static", "W4A16 g32", "MXFP8"))


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model("py-64")


@pytest.fixture(scope="module")
def sets(model: Model) -> Sets:
    return load_token_sets(model, samples=4, report_samples=4)


@pytest.fixture(scope="module")
def stats(model: Model, sets: Sets) -> ActivationStats:
    return profile(model, sets[0], attention=False)


@pytest.fixture(scope="module")
def advice(model: Model, sets: Sets, stats: ActivationStats) -> Advice:
    schemes = (LOW, FP8, INT4, MX, "w=int4/g128")
    return Advisor(model, sets, AdviseRequest(schemes=schemes, measure=1)).advise(stats)


def named(advice: Advice, name: str) -> AdvisedScheme:
    return next(s for s in advice.schemes if s.name == name)


@pytest.mark.parametrize("low", [LOW, FP8, INT4, MX])
def test_naive_is_what_the_scheme_is_priced_at(
    low: str, model: Model, sets: Sets, stats: ActivationStats, advice: Advice
) -> None:
    menu = price(model, sets[1].at_most(PRICED_ON), [parse_scheme(low)], stats)
    scheme = str(parse_scheme(low))
    assert next(s for s in advice.schemes if s.scheme == scheme).naive == pytest.approx(
        sum(menu.damages(scheme).values()), rel=1e-12
    )


def test_a_recipe_is_what_rewrites_of_that_scheme_alone_predict(
    model: Model, sets: Sets, stats: ActivationStats, advice: Advice
) -> None:
    rewrites = fit_rewrites(model, sets[1], stats, reaching(LOW), columns=columns_for(model))
    columns, advised = fewest_columns(rewrites, advice.budget_nats), named(advice, "W8A8 static")
    assert advised.transform == f"rewrite/{columns}"
    assert advised.low == pytest.approx(rewrites.damage(columns), rel=1e-12)
    damages = rewrites.choose(columns)
    left = [damages[s.stream].damage for s in rewrites.streams if s.sites[0] not in advised.kept]
    assert advised.predicted == pytest.approx(sum(left), rel=1e-12)
    assert advised.predicted <= advice.budget_nats / CAUTION


def test_rewrites_that_hardly_help_are_no_part_of_a_recipe(
    model: Model, sets: Sets, stats: ActivationStats, advice: Advice
) -> None:
    rewrites = fit_rewrites(model, sets[1], stats, LANDSCAPE["W4A16 g32"], columns=columns_for(model))
    assert rewrites.damage(rewrites.columns[-1]) > rewrites.naive / CAUTION
    advised = named(advice, "W4A16 g32")
    assert not advised.transform
    assert advised.low == advised.naive


def test_weights_that_rewriting_does_not_price_are_added(
    model: Model, sets: Sets, stats: ActivationStats, advice: Advice
) -> None:
    rewrites = fit_rewrites(model, sets[1], stats, reaching(FP8), columns=columns_for(model))
    columns, tokens = fewest_columns(rewrites, advice.budget_nats), sets[1].at_most(PRICED_ON)
    scheme = parse_scheme(FP8)
    assert isinstance(scheme, LinearScheme)
    alone = price(model, tokens, [LinearScheme(scheme.weight)], stats)
    whole = rewrites.damage(columns) + sum(e.damage for e in alone.entries)
    assert named(advice, "FP8 static").low == pytest.approx(whole, rel=1e-12)
    assert sum(e.damage for e in alone.entries) > 0.1 * rewrites.damage(columns)


def test_what_is_not_rewritten_has_its_recipe_from_its_prices(model: Model, advice: Advice) -> None:
    advised = named(advice, "MXFP8")
    assert (advised.transform, advised.low) == ("", pytest.approx(advised.naive))
    plan = draft_plan(model, ProtectRequest(low=advised.scheme))
    plan = plan.with_schemes(dict.fromkeys(advised.kept, LinearScheme()), "")
    plan.check_ties()
    assert advised.bits == plan.bits_per_weight()
    assert advised.size == quantized_bytes(model, plan)


def test_what_does_not_fit_is_left_out_with_the_reason(advice: Advice) -> None:
    (left,) = advice.left_out
    assert (left.name, left.why) == ("W4A16 g128", "rows of 64, 160 are no whole number of groups of 128")


def test_what_is_measured_is_the_recipe_on_the_selection_tokens(
    model: Model, sets: Sets, stats: ActivationStats, advice: Advice
) -> None:
    ((name, lost),) = advice.measured.items()
    advised = named(advice, name)
    assert name == "W8A8 static"
    rewrites = fit_rewrites(model, sets[1], stats, reaching(LOW), columns=columns_for(model))
    rewritten = parse_transform(advised.transform).apply(model, rewrites)
    seen = profile(rewritten, sets[0], attention=False)
    request = ProtectRequest(low=reaching(LOW), transforms=(advised.transform,))
    plan = draft_plan(rewritten, request).with_schemes(dict.fromkeys(advised.kept, LinearScheme()), "")
    assert plan.bits_per_weight() == advised.bits
    low = measure_perplexity(quantize(rewritten, plan, seen), sets[1], label="low")
    assert lost == paired_difference(low, measure_perplexity(model, sets[1], label="float"))


def test_advice_comes_back_from_its_file(advice: Advice, tmp_path: Path) -> None:
    (tmp_path / "advice.json").write_bytes(encode_record(advice))
    assert decode_record(tmp_path / "advice.json", Advice) == advice
    assert "budget: ppl+1%" in repr(advice)


# ---------------------------------------------------------------- engines


def test_an_engine_keeps_what_it_runs(model: Model, sets: Sets) -> None:
    advisor = Advisor(model, sets, AdviseRequest(engine=("vllm",)))
    # 12 fit its widths; of these it has no kernel for six bits, and an NVFP4 input is in no folder.
    assert {left.name for left in advisor.left_out} == {"W6A6 static", "NVFP4", "W4A16 g128", "W4A8 g128"}
    assert all(a.engine == "vllm" and a.runs for c in advisor.considered for a in c.engines)
    assert advisor.tied
    onnx = Advisor(model, sets, AdviseRequest(engine=("onnxruntime",)))
    assert [c.name for c in onnx.considered] == ["W8A8 static", "W8A16"]
    assert not onnx.tied


@pytest.mark.parametrize(
    ("low", "engine", "runs", "where"),
    [
        (LOW, "vllm", "int8", "GPUs of compute capability 7.5 to below 10; x86 CPUs too"),
        (LOW, "transformers", "simulated", "anywhere, in float"),
        (LOW, "onnxruntime", "int8", "CPUs"),
        (LOW, "openvino", "int8", "CPUs"),
        (
            FP8,
            "vllm",
            "fp8 with static inputs",
            "GPUs of compute capability 8.9 on; on older ones weights alone in low precision",
        ),
        (LANDSCAPE["W6A6 static"], "vllm", "", "no kernel"),
        (LANDSCAPE["MXFP4"], "sglang", "", "not known"),
        (INT4, "llama.cpp", "Q4_0, the nearest type", "CPUs"),
        (LOW, "llama.cpp", "", "it rounds inputs its own way"),
    ],
)
def test_what_engines_run(low: str, engine: str, runs: str, where: str, model: Model) -> None:
    scheme = parse_scheme(low)
    assert isinstance(scheme, LinearScheme)
    (answer,) = answers(model, scheme, [engine])
    assert (answer.runs, answer.where) == (runs, where)


def test_groups_must_divide_the_wider_model_too(tmp_path: Path) -> None:
    """64 inner channels are two groups of 32; the 8 that copies would add are none."""
    model = open_model(str(tiny_checkpoint(tmp_path / "model", intermediate=64)))
    scheme = parse_scheme("w=int4/g32")
    assert isinstance(scheme, LinearScheme)
    assert misfit(scheme, model.sites()) == ""
    wider = outline(model, ProtectRequest(low="w=int4/g32", transforms=("rewrite/8",)))
    assert misfit(scheme, wider.sites()) == "rows of 72 are no whole number of groups of 32"


# ---------------------------------------------------------------- what is measured, and what is refused


def recipe(
    name: str, scheme: str, size: int, predicted: float, runs: str = "int8", share: float = 0.0
) -> AdvisedScheme:
    engine = EngineAnswer("vllm", "", runs, "")
    return AdvisedScheme(name, scheme, 1.0, "", 1.0, predicted, (), share, 8.0, size, (engine,), {})


def test_the_smallest_of_each_kind_of_inputs_is_measured_first() -> None:
    static = recipe("static", LOW, 102, 0.002)
    cruder = recipe("cruder", FP8, 100, 0.006)  # hardly smaller, and loses more
    token = recipe("token", "w=int8/channel a=int8/token", 101, 0.001)
    weights = recipe("weights", "w=int4/g32", 60, 0.006)
    nobody = recipe("nobody", "w=int3/g32", 40, 0.006, runs="")
    everything = recipe("everything", "w=int2/g32", 300, 0.0, share=1.0)
    every = [nobody, weights, cruder, token, static, everything]
    chosen = [pick(every, most) for most in range(7)]
    grown = [set(after - before) for before, after in itertools.pairwise(chosen)]
    assert grown == [{"weights"}, {"token"}, {"static"}, {"cruder"}, {"nobody"}, set()]


def test_where_nothing_keeps_the_budget_the_nearest_is_named(advice: Advice) -> None:
    all_kept = tuple(msgspec.structs.replace(s, share=1.0) for s in advice.schemes)
    none = msgspec.structs.replace(advice, schemes=all_kept, measured={})
    assert none.meeting == ()
    assert none.nearest.name == "W8A8 static"
    assert none.would_take == CAUTION * named(advice, "W8A8 static").low


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (AdviseRequest(engine=("vlm",)), "unknown engine 'vlm'; did you mean vllm"),
        (AdviseRequest(budget="1%"), "'1%' is no budget"),
        (AdviseRequest(schemes=("w=itn8",)), "`schemes`: "),
        (AdviseRequest(schemes=("a=int8/token",)), "keeps no weight low"),
        (AdviseRequest(measure=-1), "`measure` -1"),
        (AdviseRequest(schemes=(MX,), engine=("onnxruntime",)), "MXFP8: onnxruntime: it takes int8 weights"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_work(
    request_: AdviseRequest, says: str, model: Model, sets: Sets
) -> None:
    with pytest.raises(UserError) as error:
        Advisor(model, sets, request_)
    assert says in str(error.value)


def test_from_python(model: Model, sets: Sets) -> None:
    few = load_token_sets(model, samples=1, report_samples=1)
    found = qarat.advise(model, few, qarat.AdviseRequest(schemes=("w=int8/channel",), measure=0))
    assert [s.name for s in found.schemes] == ["W8A16"]
    assert found.measured == {}
    assert found.schemes[0].request == {"low": "w=int8/channel", "budget": "ppl+1%"}


def test_tiles_that_an_engine_cannot_merge_are_said(tmp_path: Path) -> None:
    model = open_model(str(tiny_checkpoint(tmp_path / "model", hidden=64, intermediate=48, heads=4, kv_heads=1)))
    for tiles, merged in (("32x16", False), ("16x16", True)):
        scheme = parse_scheme(f"w=e4m3/{tiles} a=e4m3/g16")
        assert isinstance(scheme, LinearScheme)
        simulated, served = answers(model, scheme, ["transformers", "vllm"])
        assert simulated.runs
        assert bool(served.runs) == merged
        assert merged or served.where == "tiles end within projections that it merges"


# ---------------------------------------------------------------- caches


CACHES = ("c=int8/token", "c=int4/token", "c=e4m3/tensor/static")


@pytest.fixture(scope="module")
def caches(model: Model, sets: Sets) -> tuple[Advice, ActivationStats]:
    advisor = Advisor(model, sets, AdviseRequest(schemes=(*CACHES, INT4), budget="nats+0.02", engine=(), measure=2))
    stats = advisor.profile()
    return advisor.advise(stats), stats


def test_caches_have_rows_of_their_own(model: Model, sets: Sets, caches: tuple[Advice, ActivationStats]) -> None:
    advice, stats = caches
    menu = price(model, sets[1].at_most(PRICED_ON), [parse_scheme(c) for c in CACHES], stats)
    for spelling in CACHES:
        advised = named(advice, spelling)
        assert advised.naive == pytest.approx(sum(menu.damages(spelling).values()), rel=1e-9)
        assert advised.predicted <= 0.02 / CAUTION
        plan = assign(model.fingerprint, model.source_bits, model.sites(), "float", [("*_cache", spelling)])
        kept = {name: CacheScheme() for name in advised.kept}
        assert advised.cache == plan.with_schemes(kept, "").cache_bits() // 8
        assert advised.size == quantized_bytes(model, plan.in_float())
    assert 0 < named(advice, "c=int4/token").share < 1
    assert not named(advice, "c=int8/token").kept


def test_an_engine_has_one_kind_of_cache(model: Model, sets: Sets) -> None:
    """All stay in float, or none."""
    request = AdviseRequest(schemes=CACHES[2:], budget="nats+0.0002", measure=0)
    advisor = Advisor(model, sets, request)
    (advised,) = advisor.advise(advisor.profile()).schemes
    assert len(advised.kept) == 2 * model.blocks
    assert advised.request["runtime"] == "vllm"


def test_caches_are_measured_as_they_are_advised(
    model: Model, sets: Sets, caches: tuple[Advice, ActivationStats]
) -> None:
    advice, stats = caches
    (spelling,) = set(advice.measured) & set(CACHES)
    plan = assign(model.fingerprint, model.source_bits, model.sites(), "float", [("*_cache", spelling)])
    assert not named(advice, spelling).kept
    low = measure_perplexity(quantize(model, plan, stats), sets[1], label="low")
    assert advice.measured[spelling] == paired_difference(low, measure_perplexity(model, sets[1], label="float"))


def test_who_runs_a_cache(caches: tuple[Advice, ActivationStats]) -> None:
    runs = {c: {a.engine: a.runs for a in named(caches[0], c).engines} for c in CACHES}
    assert runs["c=e4m3/tensor/static"]["vllm"] == "float8 cache"
    assert not runs["c=e4m3/tensor/static"]["llama.cpp"]
    assert not any(runs["c=int8/token"].values())


def test_without_an_engine_that_fuses_some_caches_stay_in_float(model: Model, sets: Sets) -> None:
    request = AdviseRequest(
        schemes=("c=int8/tensor/static",), engine=("transformers",), budget="nats+0.0002", measure=0
    )
    advisor = Advisor(model, sets, request)
    (advised,) = advisor.advise(advisor.profile()).schemes
    assert 0 < len(advised.kept) < 2 * model.blocks
    assert advised.share == len(advised.kept) / (2 * model.blocks)


def test_the_command_of_a_cache_searches(
    caches: tuple[Advice, ActivationStats], tmp_path: Path, qarat: Callable[..., Any]
) -> None:
    advised = named(caches[0], "c=int8/token")
    assert verb_of(advised) == "search"
    few = ["--samples", 2, "--report-samples", 2]
    answer = qarat("search", "py-64", *words_of(advised), *few, "-o", tmp_path / "s")
    assert answer.code == 0, answer.err


@pytest.mark.parametrize(
    ("scheme", "why"), [("c=float", "leaves caches in float"), ("c=int8/channel", "does not fit the cache")]
)
def test_what_no_advice_is_about(scheme: str, why: str) -> None:
    with pytest.raises(UserError, match=f"`schemes`: .*{why}"):
        AdviseRequest(schemes=(scheme,)).check()

"""`qarat study ratio` and `qarat sweep`: whole, resumed, with a failed point, and into a law."""

import json
import math
import shlex
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import msgspec
import pytest

from qarat.jobs.family_sweep import budget_table, loss_table
from qarat.jobs.ratio_study import best_of, windows_taken
from qarat.jobs.search.job import SearchJob
from qarat.stages.choose import trials
from qarat.stages.laws.tables import read_table
from qarat.testing import tiny_checkpoint
from qarat.values.records.files import decode_record, encode_record
from qarat.values.records.origin import Provenance
from qarat.values.records.ratios import FamilyPoint, FamilySweep, RatioPlan, RatioReach, RatioStudy
from qarat.values.records.scores import Evaluation, paired_difference
from qarat.values.records.search import NOTHING, SearchCost, SearchResult
from qarat.values.sites import Site
from qarat.values.spellings import format_words, granularity_word, low_schemes, mean_block, with_block

Qarat = Callable[..., Any]
STUDY = [
    *("--blocks", "16", "--ratios", "0.5", "0.8", "--layer-ratios", "0.5", "--budgets", "ppl+20%", "nats+0.000001"),
    *("--trials", "5", "--best-of", "2", "5", "--best-of-ratio", "0.8"),
]
SWEEP = ["--formats", "mxint4", "int8-static", "--blocks", "16", "row", "--ratios", "0.5", "1", "--budgets", "ppl+20%"]


def test_a_block_size_changes_weight_and_input_alike() -> None:
    assert with_block("w=mxint4 a=mxint4", "16") == "w=mxint4/g16 a=mxint4/g16"
    assert with_block("w=int4/g128", "row") == "w=int4/channel"
    assert with_block("w=int4/g8 a=int8/token", "tensor") == "w=int4/tensor a=int8/tensor/dynamic"


def test_formats_and_blocks_make_each_scheme_once_and_static_scales_keep_theirs() -> None:
    schemes = low_schemes(("mxint4", "w=mxint4 a=mxint4", "int8-static"), ("32", "tensor"))
    assert schemes == (
        "w=mxint4 a=mxint4",
        "w=sint4/tensor/scale-e8m0/mx-floor a=sint4/tensor/dynamic/scale-e8m0/mx-floor",
        "w=int8/tensor a=int8/tensor/static",
    )


@pytest.mark.parametrize(
    ("low", "words", "granularity", "block"),
    [
        ("w=mxint4/g8 a=mxint4/g8", "mxint4 weights and inputs", "group", 8),
        ("w=mxint4/g16 a=mxint4/g16", "mxint4 weights and inputs", "group", 128 / 12),  # of rows of 8 one block is all
        ("w=int4/g7 a=int8/token", "int4 weights and int8 inputs", "group", 128 / (4 * 3 + 8 * 2)),
        ("w=int4/4x8", "int4 weights", "group", 32),
        ("w=sint4/channel/scale-e8m0/mx-floor a=mxfp4", "mxint4 weights and mxfp4 inputs", "channel", 128 / 12),
        ("w=int8/tensor a=int8/tensor/static", "int8 weights and static inputs", "tensor", 64),
        ("w=int4/g8/mse", "int4/mse weights", "group", 8),
        ("w=int4/g8/asymmetric", "int4/asymmetric weights", "group", 8),
        ("w=int4/g8 a=int8/token/p99.9", "int4 weights and int8/p99.9 inputs", "group", 8),
        ("w=mxint4/g8/mx-even", "sint4/scale-e8m0/mx-even weights", "group", 8),
    ],
)
def test_a_scheme_in_the_words_of_a_table(low: str, words: str, granularity: str, block: float) -> None:
    sites = [Site("a", 0, "projection", ("s",), (4, 16)), Site("b", 0, "projection", ("s",), (8, 8))]
    sites.append(Site("c.qk", 0, "product", ("s", "t")))
    assert (format_words(low), granularity_word(low), mean_block(low, sites)) == (words, granularity, block)


def test_the_best_of_so_many_is_the_mean_over_every_choice_of_them() -> None:
    losses = [0.4, 0.1, 0.7, 0.1, 0.3, 0.9]
    for n in range(1, len(losses) + 1):
        bests = [min(choice) for choice in combinations(losses, n)]
        found = best_of(losses, n)
        assert found.best == min(losses[:n])
        assert found.expected == pytest.approx(fmean(bests))
        assert found.spread == pytest.approx(pstdev(bests), abs=1e-12)


def test_windows_are_spread_evenly_and_end_with_all_of_them() -> None:
    base = Evaluation(
        "f", Provenance("m", "t", "w", {}), "", tuple(map(float, range(10))), (2,) * 10, tuple("abcdefghij")
    )
    plan = Evaluation("p", base.provenance, "", tuple(n * 1.5 for n in base.nats), (2,) * 10, base.sources)
    found = windows_taken(plan, base)
    assert [w.windows for w in found] == [4, 8, 10]
    assert found[0].loss == (0 + 2 + 5 + 7) / 8
    assert found[0].more.nats == pytest.approx(found[0].loss / 2)
    assert found[-1].more == paired_difference(plan, base)


# ---------------------------------------------------------------- study


def test_a_study_compares_random_with_predicted_search(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path
) -> None:
    code, out, err = qarat("study", "ratio", tiny_llama, *small, *STUDY, "-o", tmp_path / "s")
    assert code == 0, err
    study = decode_record(tmp_path / "s" / "ratio-study.json", RatioStudy)
    assert [(arm.granularity, arm.block, arm.units) for arm in study.arms] == [("matmul", 16, 14), ("layer", 16, 2)]
    for arm in study.arms:
        for point in arm.points:
            assert point.random.ratio >= point.ratio - 1e-9
            assert point.predicted.ratio >= point.random.ratio - 1e-9
            assert point.more.nats == pytest.approx(point.predicted.report.nats - point.random.report.nats)
        assert arm.random_cost.pricing == 0 < arm.predicted_cost.pricing
        assert [reach.budget for reach in arm.predicted_reach] == ["ppl+20%", "nats+0.000001"]
    random = decode_record(tmp_path / "s/searches/matmul-g16-random" / "search.json", SearchResult)
    assert len(random.trials) == 2 * 5
    # The ablation draws the same plans as the search at that ratio.
    same = [t.damage.nats for t in random.trials if t.label.endswith("at 0.8")]
    assert [x.best for x in study.best_of] == [pytest.approx(min(same[:n])) for n in (2, 5)]
    assert [w.windows for w in study.windows] == [4, 6]
    assert "block 16: matmul-wise reaches further than layer-wise at" in " ".join(out.split())
    assert qarat("show", tmp_path / "s" / "ratio-study.json").out.strip() == out[: out.index("written:")].strip()
    assert json.loads(qarat("show", tmp_path / "s" / "ratio-study.json", "--json").out)["qarat"] == "ratio-study/1"


def test_a_killed_study_goes_on_and_ends_with_the_same_bytes(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["study", "ratio", tiny_llama, *small, *STUDY]
    assert qarat(*words, "-o", tmp_path / "whole").code == 0
    add, answers = trials.TrialLog.add, []

    def killed(self: Any, answer: Any) -> None:
        add(self, answer)
        answers.append(answer)
        if len(answers) in (4, 20):  # in the first search, and in a later one
            raise KeyboardInterrupt

    monkeypatch.setattr(trials.TrialLog, "add", killed)
    assert qarat(*words, "-o", tmp_path / "cut").code == 130
    log = tmp_path / "cut.partial/searches/matmul-g16-random.partial/trials.jsonl"
    assert len(log.read_text().splitlines()) == 1 + 4
    assert [qarat(*words, "-o", tmp_path / "cut").code for _ in range(2)] == [130, 0]
    cut, whole = (decode_record(tmp_path / out / "ratio-study.json", RatioStudy) for out in ("cut", "whole"))
    for after, before in zip(cut.arms, whole.arms, strict=True):
        assert after.random_cost.measuring >= before.random_cost.measuring  # with cold caches after a kill
    assert _without_costs(cut) == _without_costs(whole)
    assert '"step": "matmul-g16-random", "reused": true' in (tmp_path / "cut" / "log.jsonl").read_text()


def _without_costs(study: RatioStudy) -> bytes:
    nothing = SearchCost(0, 0)
    arms = [msgspec.structs.replace(a, random_cost=nothing, predicted_cost=nothing) for a in study.arms]
    return encode_record(msgspec.structs.replace(study, arms=tuple(arms)))


def test_a_study_may_leave_parts_out_and_be_tried_dry(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path
) -> None:
    words = ["study", "ratio", tiny_llama, *small, *STUDY, "-o", tmp_path / "s"]
    assert qarat(*words, "--dry-run").code == 0
    assert not list(tmp_path.iterdir())
    assert qarat(*words, "--ratios", "--best-of").code == 0
    study = decode_record(tmp_path / "s" / "ratio-study.json", RatioStudy)
    assert [arm.granularity for arm in study.arms] == ["layer"]
    assert (study.best_of, study.windows) == ((), ())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ratios", "--layer-ratios"], "needs a block size"),
        (["--ratios", "1.5"], "1.5: a ratio is above 0 and at most 1"),
        (["--blocks", "0"], "--blocks: give numbers of at least 1"),
        (["--budgets", "bits=4"], "not one of loss"),
        (["--low", "w=int8/tensor a=int8/tensor/static"], "static scales keep their granularity"),
        (["--low", "float"], "keeps no weight low"),
        (["--metric", "fishr"], "fisher"),
        (["--trials", "0"], "--trials"),
    ],
)
def test_a_study_that_cannot_be_is_refused_at_once(words: list[str], says: str, qarat: Qarat, tmp_path: Path) -> None:
    code, _, err = qarat("study", "ratio", "py-128", "-o", tmp_path / "s", *words)
    assert code != 0
    assert says in err


# ---------------------------------------------------------------- sweep


@pytest.fixture
def family(tmp_path: Path) -> list[Path]:
    folders = [tiny_checkpoint(tmp_path / "tiny-a", hidden=32), tiny_checkpoint(tmp_path / "tiny-b", hidden=64, seed=1)]
    (folders[1] / "training.json").write_text('{"tokens": 5000000}')
    return folders


def test_a_sweep_writes_tables_that_laws_read(
    qarat: Qarat, family: list[Path], small: list[str], tmp_path: Path
) -> None:
    code, out, err = qarat("sweep", *family, *small, *SWEEP, "-o", tmp_path / "s")
    assert code == 0, err
    assert qarat("show", tmp_path / "s").out == qarat("show", tmp_path / "s" / "family-sweep.json").out != ""
    page = qarat("report", tmp_path / "s")
    assert page.code == 1
    assert "is of many searches, of which there is no page" in page.err
    sweep = decode_record(tmp_path / "s" / "family-sweep.json", FamilySweep)
    assert (sweep.family, len(sweep.points)) == ("tiny", 2 * 3)
    rows = read_table(tmp_path / "s" / "sweep.csv").rows
    assert {row.format for row in rows} == {"mxint4 weights and inputs", "int8 weights and static inputs"}
    assert {row.model: row.tokens for row in rows} == {"tiny-a": None, "tiny-b": 5e6}
    assert len(rows) == sum(len(set(point.plans)) for point in sweep.points) >= 2 * 3
    first = decode_record(tmp_path / "s/searches/tiny-a/w-mxint4-g16-a-mxint4-g16/search.json", SearchResult)
    reached = first.on_report(first.reached[0])
    assert (rows[0].value, rows[0].standard_error) == (reached.nats, reached.standard_error)
    assert (rows[0].block, rows[0].ratio) == (16, first.trials[first.reached[0].trial].ratio)
    shapes = [(32, 32), (16, 32), (16, 32), (32, 32), (64, 32), (64, 32), (32, 64)]  # q, k, v, o, gate, up, down
    assert rows[0].size == 2 * sum(rows * cols for rows, cols in shapes)
    for row in read_table(tmp_path / "s" / "budgets.csv").rows:
        assert (row.metric, round(row.value, 9)) == ("perplexity-increase", 20)
    following = shlex.split(out.splitlines()[-1].removeprefix("try next: qarat "))
    assert following[-1] == "format=mxint4 weights and inputs"
    # The model is random, so that it loses nothing that could be told from zero; but its table is one for laws.
    fitted = qarat(*following, "--form", "bits-only", "--draws", "0", "-o", tmp_path / "law.json")
    assert "within 3 standard errors of zero" in fitted.err or fitted.code == 0, fitted.err


def one_point(*reached: RatioReach) -> FamilySweep:
    plans = (RatioPlan(0.5, 10.0, NOTHING, NOTHING),)
    point = FamilyPoint("m", 1e6, math.nan, "int4 weights", "w=int4/g8", "group", 8, "text", (0.5,), plans, reached)
    return FamilySweep("f", "matmul-wise", "parameters", (point,))


def test_a_budget_that_everything_low_meets_is_no_measurement() -> None:
    plans = {
        "nats+0.1": RatioPlan(0.9),
        "ppl+20%": RatioPlan(1 - 1e-12),
        "ppl+30%": RatioPlan(1.0),
        "ppl+1%": RatioPlan(),
    }
    table = budget_table(one_point(*(RatioReach(budget, plan, math.nan, 1.0) for budget, plan in plans.items())))
    assert [row.ratio for row in table.rows] == [0.9]
    (defect,) = table.defects
    assert defect.startswith("m, int4 weights, block 8: everything low meets ppl+20%, ppl+30%,")


def test_a_table_says_what_its_ratio_is_a_share_of() -> None:
    sweep = one_point()
    assert "of which Q_r is a share" in loss_table(sweep).how
    by_macs = loss_table(msgspec.structs.replace(sweep, basis="macs"))
    assert "of which Q_r is a share" not in by_macs.how
    assert "Q_r is a share of the multiplications" in by_macs.how


@pytest.mark.parametrize("card", ["[]", '{"tokens": null}', '{"tokens": "many"}', '{"tokens": 5}', "{"])
def test_a_damaged_training_card_is_said_before_any_work(
    card: str, qarat: Qarat, family: list[Path], small: list[str], tmp_path: Path
) -> None:
    (family[1] / "training.json").write_text(card)
    code, _, err = qarat("sweep", *family, *small, *SWEEP, "-o", tmp_path / "s", "--dry-run")
    assert code == 1
    assert "training.json must hold" in err
    assert "Traceback" not in err


def test_a_model_that_is_gone_stops_no_other_and_what_was_measured_is_written(
    qarat: Qarat, family: list[Path], small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = SearchJob.execute

    def gone(self: SearchJob, run: Any) -> SearchResult:
        if family[1].exists():
            family[1].rename(tmp_path / "elsewhere")
        return execute(self, run)

    monkeypatch.setattr(SearchJob, "execute", gone)
    words = ["sweep", *family, *small, "--formats", "mxint4", "--blocks", "16", "--ratios", "1", "--budgets", "nats+0"]
    code, _, err = qarat(*words, "-o", tmp_path / "s")
    assert code == 1
    assert "1 of 2 points failed" in err
    assert {row.model for row in read_table(tmp_path / "s.partial" / "sweep.csv").rows} == {"tiny-a"}


def test_one_more_ratio_takes_prices_and_measured_plans_over(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    price, add = SearchJob._price, trials.TrialLog.add
    done: list[str] = []
    monkeypatch.setattr(SearchJob, "_price", lambda self, stats: (done.append("priced"), price(self, stats))[1])
    monkeypatch.setattr(trials.TrialLog, "add", lambda self, answer: (done.append(answer.key), add(self, answer)))
    words = ["sweep", tiny_llama, *small, "--formats", "int4", "--blocks", "8", "--budgets", "ppl+20%", "--family", "x"]

    def sweep(out: str, *more: str) -> list[str]:
        done.clear()
        answer = qarat(*words, "-o", tmp_path / out, *more)
        assert answer.code == 0, answer.err
        return list(done)

    first = sweep("s", "--ratios", "0.4")
    fresh = sweep("whole", "--ratios", "0.4", "0.8")
    more = sweep("s", "--ratios", "0.4", "0.8", "--overwrite")
    assert "priced" in first
    assert "priced" not in more
    whole, grown = (decode_record(tmp_path / out / "family-sweep.json", FamilySweep) for out in ("whole", "s"))
    assert grown == whole
    assert len(more) < len(fresh)
    # Other tokens: nothing of what is there may be taken.
    assert "priced" in sweep("s", "--ratios", "0.4", "--overwrite", "--length", "16")


def test_a_failed_point_stops_nothing_else_and_is_tried_again(
    qarat: Qarat, family: list[Path], small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["sweep", *family, *small, *SWEEP, "-o", tmp_path / "s"]
    execute = SearchJob.execute

    def broken(self: SearchJob, run: Any) -> SearchResult:
        if self.member.name.endswith("tiny-a") and "static" in self.request.low:
            raise RuntimeError("out of luck")
        return execute(self, run)

    monkeypatch.setattr(SearchJob, "execute", broken)
    code, out, err = qarat(*words)
    assert code == 1
    assert "1 of 6 points failed" in err
    assert "tiny-a, w=int8/tensor a=int8/tensor/static: RuntimeError: out of luck" in err
    assert "failed" in out
    partial = tmp_path / "s.partial"
    measured = read_table(partial / "sweep.csv").rows
    assert len({(row.model, row.format, row.block) for row in measured}) == 5
    assert "Traceback" in (partial / "log.jsonl").read_text()
    monkeypatch.setattr(SearchJob, "execute", execute)
    assert qarat(*words).code == 0
    after = read_table(tmp_path / "s" / "sweep.csv").rows
    assert len({(row.model, row.format, row.block) for row in after}) == 6
    assert set(measured) < set(after)
    assert (tmp_path / "s" / "log.jsonl").read_text().count('"reused": true') == 5


def test_what_is_wrong_with_any_model_is_said_at_once(
    qarat: Qarat, family: list[Path], small: list[str], tmp_path: Path
) -> None:
    words = ["sweep", family[0], tmp_path / "none", "no-such-model", *small, *SWEEP, "--family", "x"]
    code, _, err = qarat(*words, "-o", tmp_path / "s")
    assert code == 1
    assert f"no such folder: {tmp_path / 'none'}" in err
    assert "no such folder: no-such-model" in err
    assert "two models of one name" in qarat("sweep", family[0], family[0], *small, *SWEEP).err
    other = tiny_checkpoint(tmp_path / "other")
    assert "--family" in qarat("sweep", family[0], other, *small, *SWEEP).err
    assert "is no block size" in qarat("sweep", family[0], *small, "--blocks", "-3").err
    assert "'fine' is no block size" in qarat("sweep", family[0], *small, "--blocks", "fine").err


def test_a_sweep_can_be_tried_dry(qarat: Qarat, family: list[Path], small: list[str], tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    answer = qarat("sweep", *family, *small, *SWEEP, "-o", tmp_path / "s", "--dry-run")
    assert answer.code == 0, answer.err
    assert "3 searches" in answer.out
    assert set(tmp_path.iterdir()) == before

"""Comparisons of records: paired differences, verdicts, and what may not be compared."""

import math
import random
import statistics
from pathlib import Path

import pytest
from msgspec.structs import replace

from qarat.ground.errors import UserError
from qarat.values.records.comparison import compare, score_difference
from qarat.values.records.files import decode_record, encode_record
from qarat.values.records.origin import Provenance
from qarat.values.records.scores import Divergence, Evaluation, TaskScore, ZeroShot, paired_difference

ORIGIN = Provenance("m" * 64, "t" * 64, "windows-256-bos", {"qarat": "0.1.0"})
OTHER = replace(ORIGIN, model="n" * 64)
SOURCES = tuple(f"file {i // 2}" for i in range(40))


def evaluation(label: str, shift: float = 0.0, noise: float = 0.0, origin: Provenance = ORIGIN) -> Evaluation:
    draw, vary = random.Random(1), random.Random(label)
    nats = tuple(255 * (2 + 0.3 * draw.random() + shift + noise * vary.gauss(0, 1)) for _ in SOURCES)
    return Evaluation(label, origin, "p" if label != "float" else "", nats, (255,) * 40, SOURCES)


def scores(label: str, right: list[int], origin: Provenance = ORIGIN) -> ZeroShot:
    items = tuple(map(float, right))
    mean = statistics.mean(items)
    return ZeroShot(label, origin, "", (TaskScore("quiz", "1.0", "acc", mean, 0.1, items),))


def divergence(label: str, scale: float) -> Divergence:
    draw = random.Random(2)
    nats = tuple(255 * scale * draw.random() for _ in SOURCES)
    agreeing = tuple(255 - int(scale * 100 * draw.random()) for _ in SOURCES)
    return Divergence(label, ORIGIN, "p", nats, agreeing, (255,) * 40, SOURCES, 0.5, (), ())


def test_losses_are_paired_by_window():
    base, worse, same = evaluation("float"), evaluation("naive", 0.02, 0.01), evaluation("plan", 0.0, 0.01)
    found = compare([base, worse, same])
    assert (found.kind, found.unit, [c.label for c in found.compared]) == ("loss", "token", ["float", "naive", "plan"])
    first, second = found.contrasts
    expected = paired_difference(worse, base)
    assert (first.difference, first.standard_error, first.interval) == (
        expected.nats,
        expected.standard_error,
        expected.interval,
    )
    assert (first.value, first.base_value, first.base) == (worse.loss, base.loss, "float")
    assert (first.verdict, second.verdict) == ("higher", "equal within error")
    assert first.above + first.below == first.pairs == 40
    assert compare([worse, base]).contrasts[0].verdict == "lower"
    assert "one model, mmmmmmmmmmmm" in found.what


def test_what_is_the_same_is_identical():
    found = compare([evaluation("float"), replace(evaluation("float"), label="again")])
    assert found.contrasts[0].verdict == "identical"
    assert found.contrasts[0].interval == (0, 0)


def test_a_single_source_gives_no_verdict():
    a, b = (replace(evaluation(x, noise=0.1), sources=("one",) * 40) for x in ("a", "b"))
    (contrast,) = compare([a, b]).contrasts
    assert math.isnan(contrast.standard_error)
    assert contrast.verdict == "error unknown"


def test_scores_are_paired_by_question_as_mcnemar_pairs_them():
    a, b = [1, 1, 1, 0, 0, 1, 1, 0] * 5, [1, 1, 1, 0, 1, 0, 0, 0] * 5
    (contrast,) = compare([scores("float", a), scores("plan", b)]).contrasts
    gained, lost, n = 5, 10, 40
    assert (contrast.above, contrast.below, contrast.pairs) == (gained, lost, n)
    assert contrast.difference == pytest.approx((gained - lost) / n)
    # McNemar's: the variance of the difference, from the discordant questions alone.
    variance = (gained + lost - (gained - lost) ** 2 / n) / n / (n - 1)
    assert contrast.standard_error == pytest.approx(math.sqrt(variance))
    assert contrast.verdict == "equal within error"
    assert contrast.measure == "quiz acc"


def test_a_score_without_items_has_no_error():
    plain = TaskScore("group", "", "acc", 0.5, 0.1, ())
    assert score_difference(replace(plain, value=0.75), plain)[0] == 0.25
    assert math.isnan(score_difference(plain, plain)[1])


def test_divergences_side_by_side():
    found = compare([divergence("plan", 0.01), divergence("naive", 0.1)])
    kl, same = found.contrasts
    assert (kl.measure, same.measure) == ("KL from float", "same likeliest token")
    assert kl.value == pytest.approx(divergence("naive", 0.1).mean[0])
    assert (kl.verdict, same.verdict) == ("higher", "lower")
    assert kl.difference == pytest.approx(kl.value - kl.base_value)


def test_other_models_on_the_same_tokens_are_compared_and_it_says_so():
    found = compare([evaluation("small"), evaluation("large", -0.3, origin=OTHER)])
    assert found.models == (ORIGIN.model, OTHER.model)
    assert found.what == "different models, mmmmmmmmmmmm, nnnnnnnnnnnn: not only how they are stored"
    assert found.contrasts[0].verdict == "lower"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": "u" * 64}, "tokens: tttt.* against uuuu"),
        ({"convention": "wikitext2-256"}, "convention: windows-256-bos against wikitext2-256"),
        ({"dtype": "bfloat16"}, "dtype: float32 against bfloat16"),
    ],
)
def test_strangers_are_refused_by_what_differs(change: dict[str, str], said: str):
    with pytest.raises(UserError, match=f"a and b do not belong together: .*{said}"):
        compare([evaluation("a"), evaluation("b", origin=replace(OTHER, **change))])


def test_what_cannot_be_compared():
    with pytest.raises(UserError, match="at least two"):
        compare([evaluation("a")])
    with pytest.raises(UserError, match="several records are called a"):
        compare([evaluation("a"), evaluation("a")])
    with pytest.raises(UserError, match="a is of loss, b is of accuracy"):
        compare([evaluation("a"), scores("b", [1, 0])])
    with pytest.raises(UserError, match="same windows or sources"):
        compare([evaluation("a"), replace(evaluation("b"), sources=("x",) * 40)])
    other = replace(scores("b", [1, 0]), scores=(replace(scores("b", [1, 0]).scores[0], metric="f1"),))
    with pytest.raises(UserError, match="same scores: quiz acc, quiz f1"):
        compare([scores("a", [1, 0]), other])


def test_the_record_survives_its_file(tmp_path: Path):
    found = compare([evaluation("float"), evaluation("naive", 0.02, 0.01)])
    path = tmp_path / "comparison.json"
    path.write_bytes(encode_record(found))
    assert decode_record(path) == found

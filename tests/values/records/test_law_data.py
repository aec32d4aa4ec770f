"""Measurements: loss increases from every metric, units that cannot be, numbers as people write them."""

import math
from typing import Any

import msgspec
import pytest

from qarat.ground.errors import UserError
from qarat.values.records.law_data import Measurement, find_problems, loss_increase, parse_count, spell_value

POINT = Measurement(
    source="Fig. 1",
    family="Qwen-1.5",
    model="Qwen1.5-7B",
    size=7e9,
    tokens=None,
    format="mxint4",
    planning="matmul-wise",
    granularity="group",
    ratio_basis="parameters",
    ratio=0.9,
    block=32,
    bits=5.4,
    metric="perplexity",
    value=11.0,
    base_value=10.0,
    higher_is_better=False,
    standard_error=0.11,
    evaluation="SlimPajama",
)


def point(**fields: Any) -> Measurement:
    return msgspec.structs.replace(POINT, **fields)


@pytest.mark.parametrize(
    ("metric", "value", "base", "error"),
    [
        ("perplexity", 11.0, 10.0, 0.11),
        ("perplexity-increase", 10.0, None, 1.1),
        ("loss", math.log(11), math.log(10), 0.01),
        ("loss-increase", math.log(1.1), None, 0.01),
    ],
)
def test_every_loss_metric_comes_to_the_same_nats(metric: str, value: float, base: float, error: float) -> None:
    given = point(metric=metric, value=value, base_value=base, standard_error=error)
    assert find_problems(given) == []
    nats, standard_error = loss_increase(given)
    assert nats == pytest.approx(math.log(1.1), rel=1e-12)
    assert standard_error == pytest.approx(0.01, rel=1e-12)


def test_what_is_no_loss_has_no_loss_increase() -> None:
    with pytest.raises(UserError, match="accuracy is no loss"):
        loss_increase(point(metric="accuracy", value=0.6, base_value=0.7, higher_is_better=True))
    with pytest.raises(UserError, match="needs a base_value"):
        loss_increase(point(base_value=None))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"size": 7.0}, "7e9 or 7B, not billions"),
        ({"size": math.inf}, "between 1000 and infinity"),
        ({"tokens": 300.0}, "2e12 or 2T"),
        ({"ratio": 95.0}, "give a share, not per cent"),
        ({"ratio": -0.1}, "give a share"),
        ({"ratio": math.nan}, "give a share"),
        ({"block": 0.0}, "values that share a scale"),
        ({"bits": 0.0}, "bits a weight"),
        ({"bits": 64.0}, "bits a weight"),
        ({"standard_error": -0.1}, "unit of value"),
        ({"model": ""}, "model is empty"),
        ({"higher_is_better": True}, "a higher perplexity is worse"),
        ({"value": 0.9}, "no perplexity"),
        ({"base_value": 0.9}, "base_value 0.9 is no perplexity"),
        ({"value": math.nan}, "not finite"),
        ({"metric": "loss", "value": -1.0}, "no loss"),
        ({"metric": "perplexity-increase", "value": -100.0, "base_value": None}, "-100 or less"),
        ({"metric": "perplexity-increase", "value": 5.0}, "must be empty"),
        ({"metric": "accuracy", "value": 61.0, "base_value": 0.7}, "share between 0 and 1"),
    ],
)
def test_what_cannot_be_is_named(fields: dict[str, Any], says: str) -> None:
    problems = find_problems(point(**fields))
    assert len(problems) == 1
    assert says in problems[0]


def test_all_that_is_wrong_is_named_at_once() -> None:
    assert find_problems(POINT) == []
    assert len(find_problems(point(size=7.0, ratio=95.0, value=0.5))) == 3


@pytest.mark.parametrize(
    ("text", "value"), [("7B", 7e9), ("350m", 350e6), ("1.3e9", 1.3e9), ("2T", 2e12), ("10k", 1e4), (".5 B", 5e8)]
)
def test_counts_are_read_as_people_write_them(text: str, value: float) -> None:
    assert parse_count(text) == value


@pytest.mark.parametrize("text", ["", "B", "7 GB", "-7B", "0", "nan", "inf", "1e999", "7,000"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="for example 7B"):
        parse_count(text)


@pytest.mark.parametrize(
    ("value", "spelled"),
    [(7e9, "7B"), (1.8e9, "1.8B"), (350e6, "350M"), (999.9e6, "1B"), (4.8e15, "4,800T"), (12, "12")],
)
def test_counts_are_written_the_same_way(value: float, spelled: str) -> None:
    assert spell_value("size", value) == spelled


def test_a_loss_is_written_in_both_units() -> None:
    assert spell_value("loss", math.log(1.05)) == "0.04879 nats (ppl+5%)"
    assert spell_value("ratio", 0.97512) == "0.9751"

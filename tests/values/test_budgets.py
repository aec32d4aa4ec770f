"""Budgets: every spelling says what it says, and nonsense is answered with the spellings there are."""

import math

import pytest

from qarat.ground.errors import UserError
from qarat.values.budgets import AccuracyBudget, CostBudget, LossBudget, parse_budget, parse_loss_budget, parse_size


@pytest.mark.parametrize(
    ("text", "nats"),
    [
        ("ppl+1%", math.log1p(0.01)),
        ("ppl+0%", 0.0),
        ("ppl+2.5%", math.log1p(0.025)),
        ("nats+0.05", 0.05),
        ("nats+0", 0.0),
    ],
)
def test_losses(text: str, nats: float) -> None:
    assert parse_budget(text) == parse_loss_budget(text) == LossBudget(text, nats)


@pytest.mark.parametrize(
    ("text", "kind", "amount", "limit"),
    [
        ("bits=4.5", "bits", 4.5, 45_000),
        ("bits=16", "bits", 16, 160_000),
        ("bytes=2.1GB", "bytes", 2.1e9, 8 * 2_100_000_000),
        ("bytes=512MiB", "bytes", 2**29, 2**32),
        ("bytes=1000", "bytes", 1000, 8000),
        ("ratio=0.9", "ratio", 0.9, 1000),
        ("ratio=90%", "ratio", 0.9, 1000),
        ("ratio=97.5%", "ratio", 0.975, 250),
        ("ratio=0.99995", "ratio", 0.99995, 0),
        ("ratio=0", "ratio", 0, 10_000),
        ("ratio=1", "ratio", 1, 0),
    ],
)
def test_costs_and_what_they_allow_of_ten_thousand_parameters(text: str, kind: str, amount: float, limit: int) -> None:
    budget = parse_budget(text)
    assert isinstance(budget, CostBudget)
    assert (budget.spelling, budget.kind, budget.amount) == (text, kind, amount)
    assert budget.limit(10_000) == limit


def test_a_ratio_is_the_one_that_was_written() -> None:
    """Every share of a hundred leaves just the rest; in float64 several would be one parameter short."""
    budgets = [parse_budget(f"ratio=0.{share:02}") for share in range(100)]
    assert [b.limit(100) for b in budgets if isinstance(b, CostBudget)] == [100 - share for share in range(100)]
    assert any(math.floor((1 - share / 100) * 100) != 100 - share for share in range(100))


def test_accuracies() -> None:
    assert parse_budget("acc(arc_easy)-1%") == AccuracyBudget("acc(arc_easy)-1%", "arc_easy", 0.01)
    assert parse_budget("acc(mmlu:stem)-0.5%") == AccuracyBudget("acc(mmlu:stem)-0.5%", "mmlu:stem", 0.005)


@pytest.mark.parametrize(
    "text",
    [
        *("", "1%", "ppl+1", "ppl-1%", "ppl+-1%", "nats-0.1", "nats+5%", "nats+inf", "nats+nan", "nats+1e-2"),
        *(" nats+0.1", "bits", "bits=", "bits=-4", "bits=four", "bits+4", "bits=4.5bits", "byte=2GB", "bytes"),
        *("ratio=110%", "ratio=1.1", "ratio=.9", "ratio=-0.5", "acc-1%", "acc()-1%", "acc(a b)-1%", "acc(arc)+1%"),
        *("acc(arc)-1", "acc(arc)-101%", "acc((arc))-1%"),
    ],
)
def test_nonsense_is_answered_with_every_spelling(text: str) -> None:
    with pytest.raises(UserError, match="is no budget; write ") as caught:
        parse_budget(text)
    for spelling in ("ppl+1%", "nats+0.05", "bits=4.5", "bytes=2.1GB", "ratio=0.9", "acc(TASK)-1%"):
        assert spelling in str(caught.value)


@pytest.mark.parametrize("text", ["bytes=", "bytes=-2GB", "bytes=2.1 apples", "bytes=inf"])
def test_bytes_are_read_as_sizes(text: str) -> None:
    with pytest.raises(UserError, match=r"`budget`: .* is no size; write for example 8GB"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["bits=4.5", "bytes=2.1GB", "ratio=0.9", "acc(arc_easy)-1%"])
def test_other_kinds_are_refused_where_only_a_loss_will_do(text: str) -> None:
    with pytest.raises(UserError, match=r"is a budget, but not one of loss.*ppl\+1%.*nats\+0\.05") as caught:
        parse_loss_budget(text)
    assert text in str(caught.value)
    assert "bits=4.5 (" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("512", 512),
        ("512B", 512),
        ("8GB", 8 * 10**9),
        ("8 gb", 8 * 10**9),
        ("512MiB", 512 * 2**20),
        ("1.5kib", 1536),
        ("0.5kB", 500),
        ("1e3", 1000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size("memory", text) == size


@pytest.mark.parametrize("text", ["", "GB", "8 apples", "8TBs", "-8GB", "nan", "inf", "1e999", "8,5GB", "G8B"])
def test_malformed_sizes_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"`memory`: .* is no size; write for example 8GB"):
        parse_size("memory", text)

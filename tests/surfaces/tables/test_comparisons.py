"""Divergence and comparisons as tables."""

from __future__ import annotations

import math
from io import StringIO

import pytest
from msgspec.structs import replace
from rich.console import Console

from qarat.ground.errors import UserError
from qarat.surfaces.terminal import render
from qarat.values.records.comparison import compare
from qarat.values.records.origin import Provenance
from qarat.values.records.scores import Divergence, DivergentToken, Evaluation, PositionBin, TaskScore, ZeroShot

ORIGIN = Provenance("0123456789abcdef" * 4, "t" * 64, "windows-256-bos", {})
WORST = DivergentToken(
    1.52, 3, 17, "a.py", "x = 1\n        [bold]y", "\n", "\n    ", 0.4, "\x1b[31m", 0.2
)  # fmt: skip
DIVERGENCE = Divergence(
    "plan", ORIGIN, "p", (2.0, 4.0), (90, 80), (100, 100), ("a.py", "b.py"), 0.19, (WORST,),
    (PositionBin(1, 1, 2, 0.004, 1.0), PositionBin(2, 3, 198, 0.031, 0.85)),
)  # fmt: skip


def show(*records: object) -> str:
    console = Console(file=StringIO(), width=100, no_color=True)
    console.print(render(*records))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= 100 for line in text.splitlines()), text
    assert "\x1b" not in text
    return text


def evaluation(label: str, *nats: float) -> Evaluation:
    return Evaluation(label, ORIGIN, "", nats, (100,) * len(nats), tuple(f"{i}.py" for i in range(len(nats))))


def test_divergence():
    text = show(DIVERGENCE)
    assert "KL from float 0.0300 nats per token (95 %: 0.0104 to 0.0496)" in text
    assert "99 % of tokens below 0.190" in text
    assert "same likeliest token on 85.00 % of tokens (95 %: 75.20 to 94.80)" in text
    assert "2 windows of 2 sources, 200 predicted tokens, windows-256-bos" in text
    assert "2 to 3" in text
    assert "…x = 1⏎␣8 [bold]y" in text
    assert "⏎␣4  (40 %)" in text
    assert r"\x1b[31m (20 %)" in text


def test_losses():
    text = show(
        compare(
            [evaluation("float", 200, 210, 220), evaluation("plan", 202, 212.5, 221), evaluation("same", 201, 209, 220)]
        )
    )
    plan = next(line for line in text.splitlines() if line.startswith("plan"))
    assert "+0.0183" in plan
    assert plan.rstrip().endswith("higher")
    assert next(line for line in text.splitlines() if line.startswith("same")).rstrip().endswith("equal within error")
    assert "Δ perplexity" in text
    assert "one model, 0123456789ab, stored in different ways" in text
    assert "3 windows" in text


def test_words_have_no_change_of_perplexity():
    """A difference per word is not the logarithm of a token's perplexity."""
    a, b = (replace(evaluation(x, 200, 210), unit="word") for x in "ab")
    text = show(compare([a, b]))
    assert "Δ perplexity" not in text
    assert "nats per word" in text
    assert "identical" in text
    assert "nats per word" in show(a)


def test_local_scores_are_never_to_be_set_beside_published_ones():
    def scores(label: str, task: str) -> ZeroShot:
        return ZeroShot(label, ORIGIN, "", (TaskScore(task, "1.0", "acc", 0.5, math.nan, ()),))

    for record in (scores("float", "piqa_local"), compare([scores("a", "piqa_local"), scores("b", "piqa_local")])):
        assert "never set these scores beside" in " ".join(show(record).split())
    both = show(compare([scores("a", "piqa"), scores("b", "piqa")]))
    assert "never set" not in both
    assert "error unknown" in both


@pytest.mark.parametrize("kind", ["KL from float", "same likeliest token"])
def test_divergences_side_by_side(kind: str):
    other = replace(DIVERGENCE, label="naive", nats=(20.0, 44.0), agreeing=(50, 60))
    lines = show(compare([DIVERGENCE, other])).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(kind))
    assert "plan" in lines[at]
    assert "naive" in lines[at + 1]


def test_divergences_stand_side_by_side() -> None:
    """How often the likeliest token stays, which no luck decides, and where the last of them departs most."""
    text = show(DIVERGENCE, replace(DIVERGENCE, label="other"))
    rows = [line.split("  ") for line in text.splitlines() if line.startswith(("plan", "other"))]
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == [
        [label, "85.00", "75.20 to 94.80", "0.0300", "0.0104 to 0.0496", "0.190"] for label in ("plan", "other")
    ]
    assert "where other departs most:" in text
    other = replace(DIVERGENCE.provenance, tokens="z" * 64)
    with pytest.raises(UserError, match="do not belong together"):
        show(DIVERGENCE, replace(DIVERGENCE, provenance=other))

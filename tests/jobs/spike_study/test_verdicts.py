"""What the arms say together, on losses made up so that the answers are known."""

import math

import msgspec
import pytest

from qarat.jobs.spike_study.comparisons import ablated, duels, in_front, inside, outcome_of, steadied
from qarat.jobs.spike_study.verdicts import command, recommend, verdict_lines
from qarat.values.records.origin import Difference, Provenance
from qarat.values.records.scores import Evaluation
from qarat.values.records.spike_study import MAIN, RuleSays, SpikeArm, SpikeStudy

INT8, INT6 = "w=int8/channel a=int8/tensor/static", "w=int6/channel a=int6/tensor/static"
SITE = "model.layers.1.mlp.down_proj"
ORIGIN = Provenance("m" * 64, "t" * 64, "windows-11-bos", {})
BASE = [20.0, 21.0, 19.0, 20.5, 19.5, 20.2]
SHAPE = [0.02, -0.03, 0.01, -0.01, 0.03, -0.02]  # scatter of a window's loss, which sums to nothing


def arm(label: str, nats: float, *, group: str = "method", setting: str = INT8, **fields: object) -> SpikeArm:
    """Loses ``nats`` a token over float, with some scatter from window to window."""
    windows = tuple(b + 10 * nats + s for b, s in zip(BASE, SHAPE, strict=True))
    values = {"scheme": setting, "protected": (), "protection": "float", "transforms": (), "prefix": 0}
    values |= {"tokens": MAIN, "share": 0.0, "bits": 8.1, "nats": windows} | fields
    return SpikeArm(group=group, label=label, setting=setting, **values)  # type: ignore[arg-type]


def study(*arms: SpikeArm, sites: tuple[str, ...] = (SITE,)) -> SpikeStudy:
    base = Evaluation("float", ORIGIN, "", tuple(BASE), (10,) * 6, tuple("abcdef"))
    rules = (RuleSays("ratio", ("model.layers.1.down_in",) if sites else (), 3.0, "r > 64"),)
    return SpikeStudy(
        ORIGIN, "py", "s" * 64, "ppl+1%", math.log(1.01), INT8, INT6, sites, "1 protected", rules, {MAIN: base}, arms
    )


def full() -> SpikeStudy:
    protected = {"protected": (SITE,), "share": 0.01}
    return study(
        arm("naive", 0.05, group="naive"),
        arm("protected", 0.005, group="protection", **protected),
        arm("protected in E4M3", 0.006, group="protection", **protected),
        arm("random of the same kind 1: 0.down", 0.04, group="control"),
        arm("random sites 1: 0.q", 0.0051, group="control"),
        arm("hadamard", 0.02, transforms=("hadamard",)),
        arm("hadamard + protected", 0.004, transforms=("hadamard",), **protected),
        arm("clip-mse", 0.001, scheme=f"{INT8}/mse"),
        arm("prefix", 0.005, prefix=1),
    )


def test_protection_against_its_controls() -> None:
    outcome = outcome_of(full(), INT8)
    assert outcome is not None
    assert outcome.restored == pytest.approx(0.9)
    assert outcome.within == "yes"
    assert (outcome.controls, outcome.beaten) == (2, 1)  # the second lies inside the interval
    assert outcome.closest is not None
    assert outcome.closest.label.startswith("random sites")
    assert outcome.fp8 is not None
    assert outcome.fp8.nats == pytest.approx(0.001)
    assert outcome.fp8_within == "yes"
    assert outcome_of(full(), INT6) is None


def test_duels_know_who_wins() -> None:
    winners = {d.arm.label: d.winner for d in duels(full(), INT8)}
    assert winners == {"hadamard": "protection", "clip-mse": "method", "prefix": "equal within error"}
    hadamard = next(d for d in duels(full(), INT8) if d.arm.label == "hadamard")
    assert hadamard.together is not None
    assert hadamard.together.nats == pytest.approx(0.004)
    assert hadamard.over.nats == pytest.approx(0.015)


def test_the_whole_interval_has_to_be_inside() -> None:
    assert inside(Difference(0.005, 0.002, 6), 0.01) == "yes"
    assert inside(Difference(0.005, 0.003, 6), 0.01) == "estimate only"
    assert inside(Difference(0.005, math.nan, 1), 0.01) == "estimate only"
    assert inside(Difference(0.011, 0.003, 6), 0.01) == "no"
    assert inside(Difference(-0.001, 0.001, 6), 0.01) == "yes"
    assert inside(Difference(-0.001, 0.001, 6), 0.002, -0.002) == "estimate only"
    assert inside(Difference(-0.003, 0.001, 6), 0.002, -0.002) == "no"


def test_an_estimate_alone_is_not_said_to_be_within() -> None:
    alone = full()
    base = alone.floats[MAIN]
    single = Evaluation(base.label, base.provenance, "", base.nats, base.predicted, ("a",) * 6)
    first, _, fp8, _ = verdict_lines(msgspec.structs.replace(alone, floats={MAIN: single}))
    assert first.endswith(", perhaps within ppl+1%: the estimate is, its interval is not")
    assert fp8.endswith(", perhaps within ±0.2 %: the estimate is, its interval is not")


def test_the_verdict_in_words() -> None:
    first, controls, fp8, methods = verdict_lines(full())
    assert "1.down in float" in first
    assert "90 % of the loss restored, within ppl+1%" in first
    assert "1 of 2 are worse" in controls
    assert "within ±0.2 %" in fp8
    assert methods.endswith(
        "protection beats hadamard; equal within error are prefix; protection is beaten by clip-mse"
    )


def test_the_most_sensitive_part_is_named() -> None:
    parts = {"attention": 0.004, "MLP": 0.03, "q_proj": 0.001, "down_proj": 0.028}
    arms = (arm(f"{part} alone low", lost, group="ablation", share=0.6) for part, lost in parts.items())
    whole = study(arm("naive", 0.05, group="naive"), *arms)
    first, *_ = ablated(whole, INT8)
    assert (first.part, first.low, first.share) == ("attention", pytest.approx(0.4), pytest.approx(0.08))
    (line,) = (line for line in verdict_lines(whole) if line.startswith("Alone low"))
    assert line.index("MLP +0.0300") < line.index("attention +0.0040") < line.index("down_proj +0.0280")
    assert line.endswith("the most of any kind; MLP is dearer, beyond the 95 % interval")


def test_where_nothing_is_protected_it_says_why() -> None:
    line = verdict_lines(study(arm("naive", 0.002, group="naive"), sites=()))[0]
    assert line.startswith("There is nothing to protect: none of 1 spike rules flags a stream, and naive loses +0.0020")


def test_sites_that_are_dear_without_a_spike_are_said_to_be_none() -> None:
    found = study(
        arm("naive", 0.02, group="naive"),
        arm("by damage, k=1", 0.012, group="order", protected=(SITE,)),
        arm("protected", 0.005, group="protection", protected=(SITE,)),
    )
    quiet = msgspec.structs.replace(found, rules=(RuleSays("ratio", (), 3.0, "r > 64"),))
    line = verdict_lines(quiet)[0]
    assert line.startswith("There is no spike to protect: none of 1 spike rules flags a stream. Naive loses +0.0200")
    assert "the dearest alone gives back 40 %" in line


@pytest.mark.parametrize("lost", [0.0, -0.02])
def test_where_naive_loses_nothing_no_share_of_it_is_given_back(lost: float) -> None:
    naive = msgspec.structs.replace(arm("naive", 0, group="naive"), nats=tuple(b + 10 * lost for b in BASE))
    found = study(naive, arm("by damage, k=1", -0.03, group="order", protected=(SITE,)))
    quiet = msgspec.structs.replace(found, rules=(RuleSays("ratio", (), 3.0, "r > 64"),))
    assert "gives back" not in verdict_lines(quiet)[0]


def test_the_cheapest_remedy_within_the_budget_is_recommended() -> None:
    arms = [
        arm("naive", 0.4, group="naive", setting=INT6),
        arm("naive", 0.004, group="naive", setting="w=int6/channel a=int6/token"),
        arm("clip-mse", 0.006, setting=INT6, scheme=f"{INT6}/mse"),
        arm("by snr, k=1", 0.001, setting=INT6, group="order"),
        arm("random sites 1: 0.q", 0.0001, setting=INT6, group="control"),
    ]
    tried = study(*arms)
    assert [s.loss.nats for s in steadied(tried)] == pytest.approx([0.004, 0.006, 0.4])
    # Static scales cost nothing to run.
    assert "take INT6 (weights per channel, inputs per tensor, static, mse) with clip-mse" in recommend(tried)
    assert f"low scheme '{INT6}/mse', nothing protected" in recommend(tried)
    worse = study(arms[0], arm("clip-mse", 0.1, setting=INT6, scheme=f"{INT6}/mse"))
    assert "nothing that was tried keeps ppl+1%" in recommend(worse)
    assert "Take 8 bits" in recommend(worse)


def test_the_command_makes_the_arm() -> None:
    words = command(full(), arm("x", 0, protected=(SITE,), transforms=("smooth/0.5",), prefix=1))
    assert words == f"qarat run py --low '{INT8}' --sites 1.down --transform smooth/0.5 --prefix 1"


def test_one_source_gives_no_winner() -> None:
    alone = full()
    base = alone.floats[MAIN]
    single = Evaluation(base.label, base.provenance, "", base.nats, base.predicted, ("a",) * 6)
    found = msgspec.structs.replace(alone, floats={MAIN: single})
    assert {d.winner for d in duels(found, INT8)} == {"no error known"}


def test_arms_of_other_tokens_are_not_compared() -> None:
    with pytest.raises(ValueError, match="other tokens"):
        full().over(arm("a", 0), arm("b", 0, tokens="BOS never"))


def test_a_prefix_in_other_windows_is_told_beside_naive_there() -> None:
    there = {"group": "bos", "tokens": "BOS each"}
    arms = [
        arm("naive", 0.05, group="naive"),
        arm("BOS each: naive", 0.04, **there),
        arm("BOS each: protected", 0.02, protected=(SITE,), **there),
        arm("BOS each with prefix: naive", 0.01, prefix=1, **there),
        arm("BOS each with prefix: protected", 0.0, prefix=1, protected=(SITE,), **there),
    ]
    asked = study(*arms)
    asked = msgspec.structs.replace(asked, floats=asked.floats | {"BOS each": asked.floats[MAIN]})
    (line,) = [line for line in verdict_lines(asked) if "BOS" in line]
    assert line.startswith("  BOS each: naive loses +0.0400 nats (")
    assert "); the first tokens in float +0.0100 nats (" in line
    assert "), the protected sites +0.0200 nats (" in line
    assert in_front(study(*arms[:3]), INT8) is None

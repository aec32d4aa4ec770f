"""Spikes: the rules on hand-made stats, and the signal-to-noise ratio against quantizing real tensors."""

import math
from collections.abc import Iterable

import msgspec
import pytest
import torch

from qarat.ground.errors import UserError
from qarat.maths.tensors import fake_quantize
from qarat.stages.spikes import (
    GAP_FACTOR,
    GAP_FLOOR,
    MASSIVE_LIMIT,
    RATIO_LIMIT,
    RULES,
    SNR_LIMIT,
    SUPER_LIMIT,
    diagnose,
    find_spikes,
    sites_of,
    snr,
    spiking_front,
)
from qarat.values.parsing import parse_tensor_scheme
from qarat.values.records.origin import Provenance
from qarat.values.records.streams import ActivationStats, Peak, StreamStats
from qarat.values.schemes import TensorScheme
from qarat.values.sites import Site

INT8 = parse_tensor_scheme("int8/tensor/static", "a")


def stream(name: str, maximum: float = 4.0, **fields: float) -> StreamStats:
    """``1.down_in`` with tokens of unit energy, r = 4 and nothing unusual, unless told otherwise."""
    block, _, kind = name.partition(".")
    plain = {"ratio": 4.0, "typical_maximum": 3.0, "median_energy": 1.0, "element_median": 0.67} | fields
    peak = Peak(-maximum, 0, 0, 0, "<s>", 3)
    return StreamStats(
        f"model.layers.{name}", int(block), kind, 8, 16, maximum=maximum, peaks=(peak,), arrays={}, **plain
    )


def stats_of(*streams: StreamStats) -> ActivationStats:
    provenance = Provenance("m", "t", "windows-8-bos", {})
    return ActivationStats(provenance, 2, 8, 2, torch.zeros(1), {s.name: s for s in streams})


def names(full: Iterable[str]) -> list[str]:
    return [name.removeprefix("model.layers.") for name in full]


def gaussian_tokens(maximum: float, *, tokens: int = 192, width: int = 768, sigma: float = 1.0) -> torch.Tensor:
    """Tokens of a normal distribution, of which one has an element of that size."""
    x = sigma * torch.randn(tokens, width, generator=torch.Generator().manual_seed(0)).clamp(-3.5, 3.5)
    x[5, 11] = -maximum
    return x


def stream_of(x: torch.Tensor) -> StreamStats:
    """As `qarat.stages.observe.observe` would see it."""
    maxima = x.abs().amax(1)
    typical = float(maxima.median())
    return stream(
        "0.down_in",
        float(maxima.max()),
        typical_maximum=typical,
        median_energy=float(x.square().mean(1).median()),
        ratio=float(maxima.max()) / typical,
    )


def measured_snr(x: torch.Tensor, scheme: TensorScheme) -> float:
    """What the median token keeps when the tokens are really quantized, in decibel."""
    noise = (fake_quantize(x, msgspec.structs.replace(scheme, static=False)) - x).square().mean(1).median()
    return 10 * math.log10(float(x.square().mean(1).median() / noise))


# ---------------------------------------------------------------- signal to noise


@pytest.mark.parametrize("step", [0.04, 0.2, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("sigma", [0.01, 1.0])
@pytest.mark.parametrize(
    "spelling", ["int8/tensor/static", "int8/tensor/dynamic", "e4m3/tensor/static", "e2m3/tensor/static"]
)
def test_snr_is_what_quantizing_measures(step: float, sigma: float, spelling: str) -> None:
    """A spike that forces a smallest step of so many standard deviations on all other tokens."""
    scheme = parse_tensor_scheme(spelling, "a")
    fmt = scheme.number_format
    x = gaussian_tokens(sigma * max(3.5, step * fmt.largest / fmt.values[fmt.zero + 1]), sigma=sigma)
    assert snr(stream_of(x), scheme) == pytest.approx(measured_snr(x, scheme), abs=1.0)


@pytest.mark.parametrize("maximum", [400.0, 1e4])
def test_snr_of_starved_tokens_is_flagged_however_far_it_goes(maximum: float) -> None:
    """Where every element rounds to zero the true ratio is 0 dB; the estimate keeps falling, and ranks."""
    x = gaussian_tokens(maximum)
    assert measured_snr(x, INT8) < 3
    assert snr(stream_of(x), INT8) <= measured_snr(x, INT8) + 1
    assert snr(stream_of(x), INT8) < SNR_LIMIT


@pytest.mark.parametrize("spelling", ["int8/token", "int4/token", "e4m3/token"])
def test_a_scale_per_token_spares_the_median_token(spelling: str) -> None:
    scheme = parse_tensor_scheme(spelling, "a")
    calm, spiked = gaussian_tokens(3.0), gaussian_tokens(1e4)
    assert snr(stream_of(spiked), scheme) == pytest.approx(snr(stream_of(calm), scheme), abs=0.05)
    assert snr(stream_of(spiked), scheme) == pytest.approx(measured_snr(spiked, scheme), abs=1.0)


def test_snr_does_not_depend_on_the_unit() -> None:
    x = gaussian_tokens(50.0)
    for spelling in ("int8/tensor/static", "e4m3/tensor/static", "int8/token"):
        scheme = parse_tensor_scheme(spelling, "a")
        assert snr(stream_of(x * 1024), scheme) == pytest.approx(snr(stream_of(x), scheme), abs=1e-9)


def test_one_bit_is_six_decibel() -> None:
    x = stream_of(gaussian_tokens(30.0))
    seven, eight = (snr(x, parse_tensor_scheme(f"int{bits}/tensor/static", "a")) for bits in (7, 8))
    assert eight - seven == pytest.approx(20 * math.log10(127 / 63), abs=1e-9)


def test_a_stream_of_zeros_loses_nothing() -> None:
    zeros = stream("0.down_in", 0.0, ratio=1.0, typical_maximum=0.0, median_energy=0.0, element_median=0.0)
    assert snr(zeros, INT8) == math.inf
    for rule in RULES:
        verdict = find_spikes(stats_of(zeros, stream("0.down_out", 0.0), stream("0.block_out", 0.0)), rule, INT8)
        assert verdict.flagged == ()
        assert not verdict.margin <= 1  # far from it, or nothing to compare
    spiked = find_spikes(stats_of(zeros, stream("1.down_in", 150.0)), "snr", INT8)
    assert names(spiked.flagged) == ["1.down_in"]
    assert spiked.margin == math.inf


def test_ordinary_tokens_of_zeros_lose_nothing() -> None:
    assert snr(stream("0.down_in", 9.0, median_energy=0.0, typical_maximum=0.0), INT8) == math.inf


# ---------------------------------------------------------------- rules

CALM = stream("0.down_in"), stream("0.attn_in", 3.5), stream("0.down_out"), stream("0.block_out")


def test_snr_flags_what_falls_below_the_limit_and_says_how_clearly() -> None:
    worst, bad, fine = stream("1.down_in", 300.0), stream("2.down_in", 150.0), stream("3.down_in", 30.0)
    stats = stats_of(*CALM, bad, fine, worst)
    verdict = find_spikes(stats, "snr", INT8)
    assert names(verdict.flagged) == ["1.down_in", "2.down_in"]
    assert verdict.margin == snr(fine, INT8) - snr(bad, INT8)
    assert "12 dB" in verdict.statement
    # Twice the range costs 6 dB; what e4m3 makes of the same streams is no spike at all.
    assert snr(bad, INT8) - snr(worst, INT8) == pytest.approx(20 * math.log10(2))
    assert find_spikes(stats, "snr", parse_tensor_scheme("e4m3/tensor/static", "a")).flagged == ()


def test_snr_says_none_with_what_is_left_to_the_limit() -> None:
    verdict = find_spikes(stats_of(*CALM), "snr", INT8)
    assert verdict.flagged == ()
    assert verdict.margin == min(snr(s, INT8) for s in CALM[:2]) - SNR_LIMIT
    assert verdict.margin > 0


def test_snr_has_nothing_to_say_where_inputs_stay_in_float() -> None:
    verdict = find_spikes(stats_of(*CALM, stream("1.down_in", 200.0)), "snr", None)
    assert verdict.flagged == ()
    assert math.isnan(verdict.margin)
    assert "inputs stay in float" in verdict.statement


def test_ratio_flags_above_64_medians() -> None:
    stats = stats_of(
        *CALM, stream("1.down_in", ratio=65.0), stream("2.down_in", ratio=64.0), stream("3.o_in", ratio=90.0)
    )
    verdict = find_spikes(stats, "ratio", INT8)
    assert names(verdict.flagged) == ["3.o_in", "1.down_in"]
    assert verdict.margin == 65 / 64
    assert find_spikes(stats, "ratio", None) == verdict  # it does not look at the scheme


def test_ratio_looks_at_inputs_of_projections_only() -> None:
    verdict = find_spikes(
        stats_of(*CALM, stream("1.block_out", ratio=500.0), stream("1.q", ratio=500.0)), "ratio", INT8
    )
    assert verdict.flagged == ()
    assert verdict.margin == RATIO_LIMIT / 4.0


@pytest.mark.parametrize(
    ("maximum", "median", "flagged"),
    [(150.0, 0.1, True), (150.0, 0.2, False), (99.0, 0.01, False), (101.0, 0.1009, True), (150.0, 0.0, True)],
)
def test_massive_needs_both_conditions(maximum: float, median: float, flagged: bool) -> None:
    stats = stats_of(*CALM, stream("1.block_out", maximum, element_median=median), stream("1.down_in", 1e6))
    verdict = find_spikes(stats, "massive", INT8)
    assert names(verdict.flagged) == (["1.block_out"] if flagged else [])
    assert verdict.margin > 1


def test_massive_says_none_by_the_condition_that_is_further_away() -> None:
    verdict = find_spikes(stats_of(stream("0.block_out", 50.0, element_median=0.2)), "massive", INT8)
    assert verdict.flagged == ()
    assert verdict.margin == pytest.approx(1000 * 0.2 / 50)
    assert find_spikes(stats_of(stream("0.block_out", 50.0, element_median=1e-6)), "massive", INT8).margin == 2.0
    assert MASSIVE_LIMIT == 100


@pytest.mark.parametrize(
    ("into", "out", "flagged"), [(60.0, 70.0, True), (60.0, 50.0, False), (50.0, 600.0, False), (51.0, 51.0, True)]
)
def test_super_weights_need_input_and_output_of_one_block(into: float, out: float, flagged: bool) -> None:
    stats = stats_of(*CALM, stream("1.down_in", into), stream("1.down_out", out), stream("2.down_out", 1e3))
    verdict = find_spikes(stats, "super-weight", INT8)
    assert names(verdict.flagged) == (["1.down_in"] if flagged else [])
    limit = min(into, out)
    assert verdict.margin == (limit / 4 if flagged else SUPER_LIMIT / limit)


def test_gap_flags_what_stands_above_the_largest_gap() -> None:
    streams = [stream(f"{i}.down_in", ratio=r) for i, r in enumerate([3.0, 40.0, 3.5, 30.0, 5.0, 6.0])]
    verdict = find_spikes(stats_of(*streams), "gap", INT8)
    assert names(verdict.flagged) == ["1.down_in", "3.down_in"]
    assert verdict.margin == 30.0 / 6.0


def test_gap_says_none_below_the_floor() -> None:
    streams = [stream(f"{i}.down_in", ratio=r) for i, r in enumerate([1.0, 7.9, 2.0])]
    verdict = find_spikes(stats_of(*streams), "gap", INT8)
    assert verdict.flagged == ()
    assert verdict.margin == GAP_FLOOR / 7.9


def test_gap_says_none_where_ratios_fall_off_evenly() -> None:
    streams = [stream(f"{i}.down_in", ratio=r) for i, r in enumerate([27.0, 18.0, 12.0, 8.0, 5.0])]
    verdict = find_spikes(stats_of(*streams), "gap", INT8)
    assert verdict.flagged == ()
    assert verdict.margin == pytest.approx(GAP_FACTOR / 1.5)
    assert verdict.margin > 1


def test_nothing_observed_or_everything_flagged_leaves_no_margin() -> None:
    for rule in RULES:
        nothing = find_spikes(stats_of(), rule, INT8)
        assert nothing.flagged == ()
        assert math.isnan(nothing.margin)
    everything = stats_of(
        stream("0.down_in", 500.0, ratio=99.0), stream("0.down_out", 500.0), stream("0.block_out", 5000.0)
    )
    for rule in ("snr", "ratio", "massive", "super-weight"):
        verdict = find_spikes(everything, rule, INT8)
        assert len(verdict.flagged) == 1
        assert math.isnan(verdict.margin)


@pytest.mark.parametrize("rule", RULES)
def test_margins_are_above_one_where_nothing_is_flagged(rule: str) -> None:
    verdict = find_spikes(stats_of(*CALM), rule, INT8)
    assert verdict.rule == rule
    assert verdict.flagged == ()
    assert verdict.margin > 1


def test_the_front_that_spikes_goes_as_far_as_spikes_follow_one_another() -> None:
    def peaks(name: str, *places: tuple[int, float]) -> StreamStats:
        found = tuple(Peak(-value, 1, position, 7, "x", 0) for position, value in places)
        return msgspec.structs.replace(stream(name, places[0][1]), peaks=found)  # the median token's maximum is 3

    ordinary = stream("1.down_in", 8 * 3.0)
    assert spiking_front(stats_of(ordinary)) == 0
    assert spiking_front(stats_of(ordinary, peaks("0.down_in", (0, 25.0)))) == 1
    assert spiking_front(stats_of(peaks("0.down_in", (0, 99.0), (2, 25.0)), peaks("1.o_in", (1, 25.0)))) == 3
    assert spiking_front(stats_of(peaks("0.down_in", (1, 99.0)))) == 0  # a spike further on is no business of a prefix
    assert spiking_front(stats_of(peaks("0.block_out", (0, 99.0)))) == 0  # no projection reads it
    left_out = msgspec.structs.replace(stats_of(peaks("0.down_in", (1, 99.0))), prefix=(0,))
    assert spiking_front(left_out) == 2


def test_an_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown spike rule 'superweight'.*super-weight"):
        find_spikes(stats_of(*CALM), "superweight", INT8)
    with pytest.raises(UserError, match=r"known: snr, ratio"):
        find_spikes(stats_of(*CALM), "xyz", INT8)


# ---------------------------------------------------------------- side by side


def test_diagnosis_puts_the_rules_side_by_side_the_worst_first() -> None:
    spike = stream("1.down_in", 200.0, ratio=99.0)
    stats = stats_of(*CALM, spike, stream("1.down_out", 80.0), stream("1.block_out", 200.0, element_median=0.1))
    rows = diagnose(stats, INT8)
    assert names(r.stream for r in rows)[:3] == ["1.down_in", "0.down_in", "0.attn_in"]
    assert {r.stream for r in rows} == stats.streams.keys()
    assert rows[0].flagged_by == ("snr", "ratio", "super-weight", "gap")
    assert rows[0].snr_db == snr(spike, INT8)
    assert rows[0].peak.value == -200.0
    assert (rows[0].block, rows[0].kind, rows[0].ratio, rows[0].maximum) == (1, "down_in", 99.0, 200.0)
    by_name = {r.stream: r for r in rows}
    assert by_name["model.layers.1.block_out"].flagged_by == ("massive",)
    assert math.isnan(by_name["model.layers.1.block_out"].snr_db)
    for rule in RULES:
        flagged = [r.stream for r in rows if rule in r.flagged_by]
        assert sorted(flagged) == sorted(find_spikes(stats, rule, INT8).flagged)


def test_diagnosis_without_a_low_scheme_goes_by_ratio() -> None:
    rows = diagnose(stats_of(*CALM, stream("1.down_in", ratio=9.0), stream("2.down_in", ratio=99.0)), None)
    assert names(r.stream for r in rows)[:2] == ["2.down_in", "1.down_in"]
    assert all(math.isnan(r.snr_db) for r in rows)


def test_flagged_streams_are_the_sites_that_read_them() -> None:
    def site(name: str, *streams: str, kind: str = "projection") -> Site:
        return Site(f"model.layers.{name}", 1, kind, tuple(f"model.layers.{s}" for s in streams))  # type: ignore[arg-type]

    sites = [site("1.gate", "1.mlp_in"), site("1.up", "1.mlp_in"), site("1.down", "1.down_in"), site("1.o", "1.o_in")]
    sites.append(site("1.qk", "1.mlp_in", "1.k", kind="product"))
    stats = stats_of(stream("1.mlp_in", ratio=70.0), stream("1.down_in", ratio=80.0), stream("1.o_in"))
    found = sites_of(find_spikes(stats, "ratio", INT8), sites)
    assert [s.leaf for s in found] == ["down", "gate", "up"]

"""Checks of metrics: figures of made-up menus by hand, real ones on a trained model, and the correction of sums."""

import math
import random
from pathlib import Path

import pytest

from qarat.ground.errors import UserError
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.stages.prices.checking import check, fit_correction, measure_sites
from qarat.stages.prices.pricing import price
from qarat.values.parsing import parse_scheme
from qarat.values.plans import Plan, assign
from qarat.values.records.files import decode_record, encode_record
from qarat.values.records.origin import Difference, Provenance
from qarat.values.records.prices import NATS, Menu, MenuEntry, SiteMeasurements, Trial
from qarat.values.records.scores import Evaluation
from qarat.values.schemes import MatmulScheme
from qarat.values.sites import Site

LOW = "w=int4/channel"
PROVENANCE = Provenance("m" * 64, "t" * 64, "windows-8-bos", {})


def menu(*prices: float, unit: str = NATS, provenance: Provenance = PROVENANCE) -> Menu:
    return Menu(provenance, "made-up", "", tuple(MenuEntry(f"s{i}", LOW, p, 0.1) for i, p in enumerate(prices)), unit)


def measured(*losses: float, joint: float = 1.0) -> SiteMeasurements:
    trials = tuple(Trial(f"only s{i} low", (f"s{i}",), Difference(loss, 0.01, 9)) for i, loss in enumerate(losses))
    return SiteMeasurements(PROVENANCE, LOW, trials, Trial("all low", (), Difference(joint, 0.02, 9)))


# ---------------------------------------------------------------- check


def test_prices_that_are_the_losses_are_perfect():
    found = check(menu(0.1, 0.2, 0.4), measured(0.1, 0.2, 0.4, joint=1.4))
    assert found.rank_correlation == pytest.approx(1)
    assert found.slope == pytest.approx(1)
    assert found.calibration == pytest.approx(1)
    assert found.joint_calibration == pytest.approx(0.5)
    first = found.sites[0]
    assert (first.site, first.predicted, first.predicted_error) == ("s0", 0.1, 0.1)
    assert (first.measured.nats, first.measured.standard_error) == (0.1, 0.01)


def test_figures_are_those_of_their_definitions():
    """Ranks 1 2 3 4 against 2 1 3 4: rho = 1 - 6·2/(4·15) = 0.8."""
    found = check(menu(1, 2, 3, 4), measured(0.2, 0.1, 0.3, 0.4))
    assert found.rank_correlation == pytest.approx(0.8)
    assert found.slope == pytest.approx((0.2 + 0.2 + 0.9 + 1.6) / 30)
    assert (found.predicted_sum, found.measured_sum) == (10, pytest.approx(1.0))


def test_the_ranking_takes_no_notice_of_the_unit_but_the_calibration_does():
    found = check(menu(1, 8, 27, unit="squared weight error"), measured(0.1, 0.2, 0.3))
    assert found.rank_correlation == pytest.approx(1)
    assert math.isnan(found.calibration)
    assert math.isnan(found.joint_calibration)


def test_sites_whose_loss_is_noise_do_not_blur_the_ranking_of_the_others():
    """Three stand out of noise (errors are 0.01) and are ranked right; the other three are ranked upside down."""
    found = check(menu(0.1, 0.2, 0.3, 0.03, 0.02, 0.01), measured(0.1, 0.2, 0.3, -0.01, 0.0, 0.019))
    assert found.clear_sites == 3
    assert found.clear_correlation == pytest.approx(1)
    assert found.rank_correlation < 1
    assert math.isnan(check(menu(1, 2, 3), measured(0.0, 0.01, 0.02)).clear_correlation)


def test_prices_that_are_all_alike_have_no_ranking():
    assert math.isnan(check(menu(1, 1, 1), measured(0.1, 0.2, 0.3)).rank_correlation)


def test_strangers_and_gaps_are_refused():
    other = Provenance("x" * 64, "t" * 64, "windows-8-bos", {})
    with pytest.raises(UserError, match="model: xxx"):
        check(menu(1, 2, 3, provenance=other), measured(1, 2, 3))
    with pytest.raises(UserError, match=r"no price of w=int4/channel at s2, s3"):
        check(menu(1, 2), measured(1, 2, 3, 4))
    with pytest.raises(UserError, match="2 measured sites"):
        check(menu(1, 2), measured(1, 2))


def test_both_records_are_read_back_as_they_were_written(tmp_path: Path):
    for record in (measured(0.1, 0.2, 0.3), check(menu(0.3, 0.2, 0.1), measured(0.1, 0.2, 0.3))):
        path = tmp_path / "record.json"
        path.write_bytes(encode_record(record))
        assert decode_record(path, type(record)) == record


# ---------------------------------------------------------------- measuring


def test_every_site_is_measured_alone_and_all_of_them_together():
    """With a loss that counts low sites, so that what was measured can be read off."""
    sites = [Site(f"model.layers.0.{leaf}", 0, "projection", ("x",), (2, 2)) for leaf in ("q_proj", "k_proj")]
    sites.append(Site("model.layers.0.qk", 0, "product", ("q", "k")))
    plan = assign("m" * 64, 16, sites, "w=int8/channel")
    labels: list[str] = []

    def measure(plan: Plan, label: str) -> Evaluation:
        labels.append(label)
        low = sum(not a.is_float for a in plan.assignments)
        return Evaluation(label, PROVENANCE, "", (8.0 * low, 8.0 * low), (8, 8), ("a", "b"))

    calls: list[tuple[str, int, int]] = []
    found = measure_sites(plan, parse_scheme(LOW), measure, progress=lambda *call: calls.append(call))
    assert labels == ["float", "only 0.q low", "only 0.k low", "all low"]
    assert [(t.sites, t.damage.nats) for t in found.alone] == [((s.name,), 1.0) for s in sites[:2]]
    assert found.joint.damage.nats == 2.0
    assert calls == [("measure sites", done, 4) for done in range(5)]
    products = measure_sites(plan, parse_scheme("l=int8/token"), measure)
    assert [t.sites for t in products.alone] == [("model.layers.0.qk",)]


def test_on_a_trained_model_fisher_finds_the_sites_that_are_dear_when_measured():
    """Measured as a divergence: the loss on so few tokens would be lost in noise."""
    model = open_model("py-128")
    _, tokens, _ = load_token_sets(model, samples=4, length=64)
    scheme = parse_scheme("w=mxint4 a=mxint4")
    seen, told = (price(model, tokens, [scheme], metric=metric) for metric in ("kl", "fisher"))
    alone = tuple(Trial(e.site, (e.site,), Difference(e.damage, e.standard_error, 4)) for e in seen.entries)
    losses = SiteMeasurements(seen.provenance, str(scheme), alone, alone[0])
    found = check(told, losses)
    assert len(found.sites) == 7 * model.blocks
    assert found.rank_correlation > 0.8
    assert 0.5 < found.calibration < 1.5


# ---------------------------------------------------------------- the correction


def test_a_power_law_is_found_without_remainder():
    fit = fit_correction((s, 1.5 * s**1.2) for s in (0.01, 0.03, 0.1, 0.3))
    assert (fit.factor, fit.power) == (pytest.approx(1.5), pytest.approx(1.2))
    assert fit.residual == pytest.approx(0, abs=1e-12)
    assert fit.apply(0.2) == pytest.approx(1.5 * 0.2**1.2)
    assert fit.apply(0.0) == 0.0
    assert (fit.pairs, fit.smallest, fit.largest) == (4, 0.01, 0.3)


def test_the_residual_is_the_spread_of_the_logarithms():
    generator = random.Random(0)
    sums = [0.01 * 1.01**i for i in range(400)]
    fit = fit_correction((s, 2 * s * math.exp(generator.gauss(0, 0.1))) for s in sums)
    assert fit.residual == pytest.approx(0.1, rel=0.1)
    assert fit.factor == pytest.approx(2, rel=0.1)


def test_few_pairs_are_fitted_with_a_factor_alone():
    two = fit_correction([(0.1, 0.2), (0.2, 0.8)])
    assert two.power == 1
    assert two.factor == pytest.approx(math.sqrt(2 * 4))
    one = fit_correction([(0.1, 0.13)])
    assert (one.power, one.factor) == (1, pytest.approx(1.3))
    assert math.isnan(one.residual)
    assert fit_correction([(0.1, 0.2), (0.1, 0.2), (0.1, 0.2)]).power == 1


def test_pairs_that_cannot_be_fitted_are_refused():
    with pytest.raises(UserError, match=r"\(0\.1, -0\.01\), \(0, 0\.2\)"):
        fit_correction([(0.1, -0.01), (0.2, 0.3), (0.0, 0.2)])
    with pytest.raises(UserError, match="no measured combination"):
        fit_correction([])
    with pytest.raises(UserError, match="fall where predictions rise"):
        fit_correction([(0.1, 0.3), (0.2, 0.2), (0.3, 0.1)])
    with pytest.raises(UserError, match="from 0 on"):
        fit_correction([(0.1, 0.1)]).apply(-1)


def test_a_float_product_scheme_is_of_products():
    """`float` alone would not say of what; the type does."""
    site = Site("model.layers.0.qk", 0, "product", ("q", "k"))
    plan = assign("m" * 64, 16, [site], "float")
    same = Evaluation("x", PROVENANCE, "", (1.0, 1.0), (8, 8), ("a", "b"))
    assert measure_sites(plan, MatmulScheme(), lambda *_: same).alone[0].damage.nats == 0

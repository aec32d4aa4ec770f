"""Units and what choices of them cost."""

import numpy as np
import pytest

from qarat.ground.errors import UserError
from qarat.values.parsing import parse_scheme
from qarat.values.units import make_units


def test_units_are_sites_ties_or_blocks(fake):
    sites = fake().sites
    assert [u.label for u in make_units(sites)][:3] == ["0.q", "0.up", "0.down"]
    blocks = make_units(sites, layers=True)
    assert [u.label for u in blocks] == [f"{b}.q+up+down" for b in range(4)]
    assert sum(u.parameters for u in blocks) == sum(s.parameters for s in sites)


@pytest.mark.parametrize("menu", [("w=int4/channel", "float"), ("w=int4/channel", "w=int8/channel", "float")])
@pytest.mark.parametrize("layers", [False, True])
def test_what_a_choice_costs_is_what_its_plan_costs(fake, menu, layers):
    made = fake(menu=menu)
    # An overridden site belongs to no unit, and counts as it is.
    made.base = made.base.with_schemes({made.sites[4].name: parse_scheme("w=int8/channel")}, "by hand")
    space = made.space(layers=layers)
    random = np.random.default_rng(0)
    for _ in range(20):
        choice = tuple(random.integers(0, len(menu), len(space.units)).tolist())
        plan = space.plan(choice, "a test")
        assert space.ratio(choice) == pytest.approx(plan.ratio(), abs=1e-12)
        assert space.bits(choice) == pytest.approx(plan.bits_per_weight(), abs=1e-12)
        assert plan[made.sites[4].name] == parse_scheme("w=int8/channel")
    assert space.plan(space.highest, "").ratio() == 0


def test_predictions_add_up_over_the_sites_of_a_unit(fake):
    made = fake()
    space = made.space(layers=True)
    table = space.predictions(made.prices())
    assert table.shape == (4, 2)
    assert table[:, 1].tolist() == [0, 0, 0, 0]
    assert table[:, 0].sum() == pytest.approx(sum(made.costs.values()))


def test_missing_prices_and_nothing_to_decide(fake):
    made = fake(menu=("w=int4/channel", "w=int8/channel", "float"))
    menu = made.prices()
    with pytest.raises(UserError, match="no price for"):
        made.space().predictions(type(menu)(menu.provenance, "x", "", menu.entries[::2]))
    made.base = made.base.with_schemes({s.name: parse_scheme("float") for s in made.sites}, "by hand")
    with pytest.raises(UserError, match="`rules` decides every site"):
        made.space()

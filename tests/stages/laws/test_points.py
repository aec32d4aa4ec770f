"""Ratios that searches achieved where one was asked for."""

from qarat.stages.laws.points import join_ratios


def test_near_ratios_are_one_and_asked_ones_stay_apart() -> None:
    assert join_ratios([0.75, 0.75543, 0.75, 0.8, 0.806]) == {0.75: 0.75, 0.75543: 0.75, 0.8: 0.8, 0.806: 0.8}
    assert join_ratios([1.0, 0.95, 0.975]) == {0.95: 0.95, 0.975: 0.975, 1.0: 1.0}  # alone it is its own name
    assert set(join_ratios([0.6032608695652173, 0.6032608695652174]).values()) == {0.6032608695652173}
    assert join_ratios([]) == {}


def test_a_chain_is_no_group() -> None:
    """What is joined is joined to the least of a group: each next one would join all."""
    assert join_ratios([0.50, 0.515, 0.53, 0.545]) == {0.50: 0.51, 0.515: 0.51, 0.53: 0.54, 0.545: 0.54}

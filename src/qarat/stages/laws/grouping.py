"""Grouping: ratios that searches achieved where one was asked for.

A search comes close to the ratio that it was asked for, with each block size and model to another one: 0.7554 here,
0.75 there. Where points of one ratio are wanted, those are one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

_APART = 0.02  # from the least of a group on, the ratio is another: nobody asks for ratios less than 0.05 apart
_SAME = 1e-9  # ratios are summed up site by site
_DIGITS = 2  # of a group's name


def join_ratios(ratios: Iterable[float]) -> dict[float, float]:
    """Each ratio to the name of its group: the ratio itself where all agree, else their mean to 0.01."""
    groups: list[list[float]] = []
    for ratio in sorted(set(ratios)):
        if groups and ratio - groups[-1][0] < _APART:
            groups[-1].append(ratio)
        else:
            groups.append([ratio])
    return {ratio: _name(group) for group in groups for ratio in group}


def nearest_group(ratio: float, names: Collection[float]) -> float:
    """The group that a ratio is one of, by name; the ratio itself where none is near."""
    nearest = min(names, key=lambda name: abs(name - ratio), default=ratio)
    return nearest if abs(nearest - ratio) < _APART else ratio


def _name(group: list[float]) -> float:
    return group[0] if group[-1] - group[0] < _SAME else round(sum(group) / len(group), _DIGITS)

"""Learned tables: the number format that suits a model's own weights, by k-means.

The weights are brought to units first, each divided by the largest magnitude that shares its scale, so one table serves
every site. The ends are fixed at ±1, which some weight of every tile reaches, and 0 stays in the table.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qarat.maths.scales import choose_scale
from qarat.maths.tiles import as_matrices, to_tiles, to_units
from qarat.model.model import Model
from qarat.values.formats import NumberFormat, literal_table
from qarat.values.schemes import Granularity, TensorScheme

SAMPLE = 1 << 16  # weights a site; the table's values settle to three digits well before that
DIGITS = 4


def learn_table(model: Model, bits: int, granularity: Granularity, *, iterations: int = 50) -> NumberFormat:
    """Learn a table from all weights of a model; use it by its name, e.g. ``w={name}/g64``.

    Args:
        model: In float.
        bits: 2 to 8; the table has 2^bits values.
        granularity: Of the scales that the table will be used with.
        iterations: Of Lloyd's algorithm.

    Raises:
        UserError: A model that is quantized already.
    """
    model.require_float("learn a table from")
    units: list[Tensor] = []
    scheme = TensorScheme("int8", granularity)
    for site in model.sites():
        if site.kind == "projection":
            inner = site.name.removeprefix(f"{model.family.blocks}.{site.block}.")
            weight = model.block(site.block).get_submodule(inner).weight
            assert isinstance(weight, Tensor)
            units.append(_sample(_in_units(weight.detach().float(), scheme)).cpu())
    return table_of(torch.cat(units), bits, iterations=iterations)


def table_of(units: Tensor, bits: int, *, iterations: int = 50) -> NumberFormat:
    """The table of 2^bits values that minimises the squared error of rounding, with 0 and the ends ±1 held (Lloyd).

    Args:
        units: (values,) float32 within ±1.
        bits: 2 to 8.
        iterations: Of Lloyd's algorithm.
    """
    ordered = units.double().sort().values
    middle = (torch.arange(1 << bits, dtype=torch.float64) + 0.5) / (1 << bits)
    centres = torch.quantile(_sample(ordered), middle)
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), ordered.cumsum(0)])
    for _ in range(iterations):
        centres = _hold(centres)
        edges = torch.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        edges = torch.cat([torch.tensor([0]), edges, torch.tensor([len(ordered)])])
        count = edges[1:] - edges[:-1]
        means = (sums[edges[1:]] - sums[edges[:-1]]) / count.clamp(min=1)
        centres = torch.where(count > 0, means, centres)
    values = sorted({round(v, DIGITS) + 0.0 for v in _hold(centres).tolist()})
    return literal_table(tuple(values))


def _hold(centres: Tensor) -> Tensor:
    """Centres with the ends at ±1 and the one nearest to 0 at 0."""
    held = centres.clone()
    held[0], held[-1] = -1.0, 1.0
    inner = held[1:-1].abs()
    held[1 + int(inner.argmin())] = 0.0
    return held.sort().values


def _in_units(weight: Tensor, scheme: TensorScheme) -> Tensor:
    """Every weight over the largest magnitude that shares its scale, flattened."""
    units = to_units(to_tiles(as_matrices(weight), scheme.granularity), choose_scale(weight, scheme))
    return (units / scheme.number_format.largest).flatten().clamp(-1, 1)


def _sample(values: Tensor) -> Tensor:
    """At most `SAMPLE` values, evenly spaced, so that nothing is drawn at random."""
    return values[:: max(1, len(values) // SAMPLE)]

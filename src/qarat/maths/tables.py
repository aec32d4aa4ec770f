"""Tables by row: each row of a weight, or group of its columns, goes to values of its own, found by k-means.

SqueezeLLM (Kim et al. 2023, arXiv 2306.07629) decodes a code by a table of 2^bits float16 numbers a row. Where a
projection waits for its weight to be read, that takes no longer than a scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.maths.kmeans import cluster_rows
from qarat.maths.tiles import Scales, as_matrices, from_tiles, per_element, to_tiles
from qarat.values.schemes import Granularity, TensorScheme


@torch.no_grad()
def find_tables(weight: Tensor, scheme: TensorScheme, importance: Tensor) -> tuple[Tensor, Scales]:
    """The tables of a weight, and its codes in them.

    Tables are the centres of exact k-means, as float16; each weight then goes to the nearest number of its table.

    Args:
        weight: (rows, cols) float32.
        scheme: Of a learned format.
        importance: What a squared error counts, (rows, cols), not negative. A table none of whose weights counts is
            found as if all counted alike.

    Returns:
        Codes, (rows, cols) uint8, and the tables.

    Raises:
        UserError: A weight that float16 does not reach.
        ValueError: A weight or an importance that is no finite number.
    """
    tiles = to_tiles(as_matrices(weight), scheme.granularity)
    _, tall, _, wide, length = tiles.shape
    counts = to_tiles(as_matrices(importance), scheme.granularity).reshape(-1, length)
    if not bool(weight.isfinite().all()) or not bool(importance.isfinite().all()):
        raise ValueError("tables are found for finite weights, each of finite importance")
    centres = cluster_rows(tiles.reshape(-1, length).double(), counts.double(), len(scheme.number_format.values))
    table = centres.half()
    if not bool(table.isfinite().all()):
        raise UserError("a weight is beyond what a table of float16 reaches (65504); leave this projection in float")
    values = table.float()
    nearest = torch.searchsorted((values[:, 1:] + values[:, :-1]) / 2, tiles.reshape(-1, length))
    codes = from_tiles(nearest.to(torch.uint8).view(tiles.shape), weight.shape)
    return codes, Scales.of_tables(table.view(tall, wide, -1))


def look_up(codes: Tensor, table: Tensor, granularity: Granularity) -> Tensor:
    """The values at those indices of the tiles' own tables.

    Args:
        codes: (rows, cols) uint8.
        table: (tall, wide, values) float16.
        granularity: Of the tiles.

    Returns:
        (rows, cols) float32.
    """
    tall, wide, values = table.shape
    first = torch.arange(tall * wide, device=table.device).view(tall, wide) * values
    places = per_element(first, granularity, codes.shape) + codes
    return table.flatten().float()[places]

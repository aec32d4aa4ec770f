"""Tables made from a known law."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from qarat.stages.laws.equations import internal, log_response
from qarat.stages.laws.forms import FORMS
from qarat.stages.laws.tables import Table
from qarat.values.records.law_data import Measurement

MakeTable = Callable[..., Table]

GRID = {
    "size": (1e8, 3e8, 1e9, 3e9, 1e10, 3e10),
    "tokens": (1e11,),
    "ratio": (0.5, 0.7, 0.9, 1.0),
    "block": (32.0,),
    "bits": (4.25,),
}


@pytest.fixture
def make_table() -> MakeTable:
    """A table whose loss increases follow a form, times log-normal noise, plus normal errors of a known size."""

    def make(
        form: str,
        values: dict[str, float],
        *,
        noise: float = 0.0,
        error: float = 0.0,
        seed: int = 0,
        **grid: tuple[float, ...],
    ) -> Table:
        shape = FORMS.load(form)
        theta = internal(shape, np.array([values[name] for name in shape.names]))
        generator = np.random.default_rng(seed)
        axes = GRID | grid
        rows: list[Measurement] = []
        for point in itertools.product(*axes.values()):
            at = dict(zip(axes, point, strict=True))
            log = log_response(shape, theta, {v: np.array([x]) for v, x in at.items()})[0]
            value = math.exp(log + noise * generator.normal()) + error * generator.normal()
            rows.append(make_row(at, value, error))
        return Table("made", "a made table", "", "", (), tuple(rows))

    return make


def make_row(at: dict[str, float], value: float, error: float) -> Measurement:
    return Measurement(
        source="made",
        family="made",
        model=f"m{at['size']:g}-{at['tokens']:g}",
        size=at["size"],
        tokens=at["tokens"],
        format="mxint4",
        planning="matmul-wise",
        granularity="group",
        ratio_basis="parameters",
        ratio=at["ratio"],
        block=at["block"],
        bits=at["bits"],
        metric="loss-increase",
        value=float(value),
        base_value=None,
        higher_is_better=False,
        standard_error=error or None,
        evaluation="made",
    )

"""Points: measurements as a form sees them, in arrays, one set for each group that the form is fitted to.

What a form does not model is refused here, in words: metrics that are no loss, variables that the data lack, mixtures
of formats or evaluations, too few points or sizes, and parameters that these points cannot tell apart.

A search comes close to the ratio that it was asked for, with each block size and model to another one: 0.7554 here,
0.75 there. Where points of one ratio are wanted, those are one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qarat.ground.errors import UserError
from qarat.stages.laws.equations import Vector, gradient, term_value
from qarat.stages.laws.forms import VARIABLES, Form
from qarat.stages.laws.tables import Table
from qarat.values.records.law_data import LOSS_METRICS, Measurement, loss_increase, spell_value, spell_values

_SHARED = ("family", "format", "planning", "ratio_basis", "evaluation")
# Standard errors within which a point counts by difference. Beyond, its logarithm is off by a third at the most; a
# logarithm taken nearer to zero is biased downwards, which at 2 is still seen in the coefficients, at 3 hardly.
NEAR_ZERO = 3.0
_SINGULAR = 1e-9  # least over largest singular value of a gradient with columns scaled to length one
_SHARE_OF_NULL = 0.05  # a parameter is part of a direction the data do not fix if it has this share of it
_APART = 0.02  # from the least of a group on, the ratio is another: nobody asks for ratios less than 0.05 apart
_SAME_RATIO = 1e-9  # ratios are summed up site by site


@dataclass(frozen=True)
class Points:
    """What is fitted, all arrays of one length n.

    Attributes:
        group: The values that these points have in common.
        models: Names.
        sizes: N, parameters; 0 where not known.
        x: Variable to values.
        y: Response, in the form's unit.
        error: Its standard error; 0 where none is known.
        note: What a reader must know of the group; empty for nothing.
    """

    group: Mapping[str, float]
    models: tuple[str, ...]
    sizes: Vector
    x: Mapping[str, Vector]
    y: Vector
    error: Vector
    note: str = ""

    def __len__(self) -> int:
        return len(self.y)

    @property
    def by_difference(self) -> np.ndarray:
        """Which points are at or near zero, (n,) bool: they count by difference over error, not by ratio."""
        return (self.y <= 0) | (self.y < NEAR_ZERO * self.error)

    def take(self, rows: np.ndarray) -> Points:
        """The points of a mask or of indices, which may repeat."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Points(
            self.group,
            tuple(self.models[i] for i in rows),
            self.sizes[rows],
            {name: values[rows] for name, values in self.x.items()},
            self.y[rows],
            self.error[rows],
            self.note,
        )


def make_points(form: Form, name: str, table: Table, standard_error: float | None = None) -> list[Points]:
    """A table as a form sees it.

    Args:
        form: What will be fitted.
        name: Its name, for messages.
        table: Rows at Q_r = 0 are the unquantized model and no points.
        standard_error: In nats per token, for rows that have none.

    Raises:
        UserError: The form does not model these data, or no group of them is large enough.
    """
    rows = [row for row in table.rows if row.ratio is None or row.ratio > 0]
    if not rows:
        raise UserError(f"{table.title}: no row has a ratio above 0, so there is nothing to fit")
    check_rows(form, name, rows)
    joined = join_ratios(_variable(row, "ratio") for row in rows)
    groups: dict[tuple[float, ...], list[Measurement]] = {}
    for row in rows:
        at = {v: _variable(row, v) for v in form.by}
        key = tuple(joined[value] if v == "ratio" else value for v, value in at.items())
        groups.setdefault(key, []).append(row)
    sets = [
        _points(form, dict(zip(form.by, key, strict=True)), own, standard_error or 0.0)
        for key, own in sorted(groups.items(), key=lambda group: group[0])
    ]
    if form.by and (most := max(map(len, sets))) < form.points:
        by = " and ".join(form.by)
        needs = f"to {form.points} points or more; here none has over {most}"
        raise UserError(f"{name} is fitted once for each {by}, {needs}")
    return sets


def check_rows(form: Form, name: str, rows: Sequence[Measurement]) -> None:
    """Refuse rows that the form does not model.

    Raises:
        UserError: Metrics that are no loss, several formats or evaluations, variables that rows lack.
    """
    problems: list[str] = []
    if others := sorted({row.metric for row in rows if row.metric not in LOSS_METRICS}):
        raise UserError(f"{', '.join(others)}: no form models that; laws are about {', '.join(LOSS_METRICS)}")
    if baseless := {row.metric for row in rows if row.metric in ("loss", "perplexity") and row.base_value is None}:
        problems.append(f"{', '.join(sorted(baseless))} without base_value in some rows: give the unquantized model's")
    for column in _SHARED:
        values = sorted({getattr(row, column) for row in rows})
        if len(values) > 1 and not (column == "format" and "bits" in form.variables):
            listed = ", ".join(repr(value) for value in values[:6])
            problems.append(f"{column} is not one: {listed}; a law holds for one, so choose with `where` {column}=…")
    for variable in sorted({*form.variables, *form.by, *form.needs} - {"loss"}):
        lacking = sum(getattr(row, variable) is None for row in rows)
        if lacking:
            problems.append(f"{name} needs {variable} ({VARIABLES[variable]}); {lacking} of {len(rows)} rows lack it")
    if form.uniform and any(row.ratio != 1 for row in rows):
        values = sorted({row.ratio for row in rows if row.ratio is not None})
        ratios = ", ".join(f"{r:g}" for r in values[:8]) or "not given"
        problems.append(f"{name} models whole models in one precision, ratio 1; here it is {ratios}")
    if problems:
        raise UserError("\n".join(problems))


def check_points(form: Form, name: str, points: Points) -> None:
    """Refuse a group of points that a form cannot be fitted to.

    Raises:
        UserError: What it lacks, or which parameters it cannot tell apart.
    """
    if problems := list(_shortages(form, name, points)):
        raise UserError("\n".join(problems))
    counted = points.take(~points.by_difference)
    if tied := open_parameters(form, counted):
        constant = {v: values[0] for v, values in counted.x.items() if np.ptp(values) == 0}
        same = [f"{v} is {spell_value(v, value)} in every row" for v, value in constant.items()]
        because = "; ".join(same) or "their variables move together in every row"
        listed = tied[0] if len(tied) == 1 else f"{', '.join(tied[:-1])} and {tied[-1]}"
        raise UserError(f"these data{in_group(points.group)} cannot tell {listed} of {name} apart: {because}")


def open_parameters(form: Form, points: Points) -> list[str]:
    """The parameters that points leave open, each alone or along with others; none where they fix all."""
    theta = np.ones(len(form.names))  # any values will do: with d = 1, the offset's column is its own
    columns = gradient(form, theta, points.x)
    columns = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300)
    # θ along a right singular vector whose singular value is zero changes no prediction at these points.
    _, singular, directions = np.linalg.svd(columns, full_matrices=True)
    singular = np.pad(singular, (0, len(theta) - len(singular)))
    open_ones = np.abs(directions[singular < _SINGULAR * singular[0]])
    involved = open_ones.max(axis=0, initial=0.0) > _SHARE_OF_NULL
    return [name for name, tied in zip(form.names, involved, strict=True) if tied]


def shared_values(table: Table) -> dict[str, str]:
    """What all rows have in common, by column."""
    values = {column: {getattr(row, column) for row in table.rows} for column in _SHARED}
    return {column: next(iter(distinct)) for column, distinct in values.items() if len(distinct) == 1 and all(distinct)}


def response_of(form: Form, row: Measurement) -> float:
    """What a row measured, in the unit of the form's response."""
    return float(_responses(form, [row], 0.0)[0][0])


def unmodelled(form: Form, table: Table) -> list[str]:
    """What a form makes of mixed plans, and variables that vary in the data and that it leaves out, with ranges."""
    used = {*form.variables, *form.by, "loss", *(["size"] if form.response == "billions" else [])}
    if "ratio" in used:
        used.add("bits")  # they follow from the ratio
    notes = [form.mixed] if form.mixed and any(row.ratio not in (None, 1) for row in table.rows) else []
    for variable in VARIABLES:
        values = [v for row in table.rows if variable not in used and (v := _variable(row, variable))]
        if len(set(values)) > 1:
            least, most = (spell_value(variable, v) for v in (min(values), max(values)))
            notes.append(f"{variable} is not part of this form; in these data it is {least} to {most}")
    return notes


def _points(form: Form, group: Mapping[str, float], rows: Sequence[Measurement], standard_error: float) -> Points:
    y, error = _responses(form, rows, standard_error)
    x = {v: np.array([_variable(row, v) for row in rows]) for v in form.variables}
    sizes = np.array([row.size or 0.0 for row in rows])
    note, name = "", group.get("ratio")
    least, most = (end(_variable(row, "ratio") for row in rows) for end in (min, max))
    if name is not None and not f"{least:.4f}" == f"{most:.4f}" == f"{name:.4f}":
        note = f"ratio is {least:.4f} to {most:.4f} in these points, counted as {spell_value('ratio', name)}"
    return Points(group, tuple(row.model for row in rows), sizes, x, y, error, note)


def _responses(form: Form, rows: Sequence[Measurement], standard_error: float) -> tuple[Vector, Vector]:
    """What the rows measured, in the unit of the form's response, and its standard errors, (n,) each."""
    if form.response == "billions":
        return np.array([_variable(row, "size") / 1e9 for row in rows]), np.zeros(len(rows))
    increases = [loss_increase(row) for row in rows]
    delta = np.array([value for value, _ in increases])
    error = np.array([own or standard_error for _, own in increases])
    if form.response == "perplexity-increase":
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused with the shortages
            return 100 * np.expm1(delta), 100 * np.exp(delta) * error
    return delta, error


def _variable(row: Measurement, name: str) -> float:
    return round(loss_increase(row)[0], 12) if name == "loss" else getattr(row, name) or 0.0


def _shortages(form: Form, name: str, points: Points) -> Iterator[str]:
    """What the form needs and the points do not have."""
    where = in_group(points.group)
    if len(points) < form.points:
        yield f"{name} needs at least {form.points} points; there are {len(points)}{where}"
    for variable, needed in form.needs.items():
        values = points.x.get(variable, points.sizes)
        if (there := len(np.unique(values))) < needed:
            yield f"{name} needs at least {needed} values of {variable}; there are {there}{where}"
        # One block to a row is another number at each size.
        at_one_size = (len(np.unique(values[points.sizes == size])) for size in np.unique(points.sizes))
        if there >= needed and variable == "block" and (most := max(at_one_size)) < needed:
            why = ": block differs only with size" if most == 1 else ""
            yield f"{name} needs at least {needed} values of block at some one size; none has over {most}{where}{why}"
    for term in form.terms:
        with np.errstate(divide="ignore", invalid="ignore"):
            impossible = ~np.isfinite(term_value(term, points.x[term.variable], float(bool(term.offset))))
        if impossible.any():
            value = points.x[term.variable][impossible][0]
            yield f"{name} has no value at {term.variable} {value:g}{where}: {form.equation}"
    if not np.isfinite(points.y).all():
        yield f"{name} is about per cent of perplexity; some increases{where} are beyond any number"
    if (points.by_difference & (points.error > 0)).all():
        yield f"every increase{where} is within {NEAR_ZERO:g} standard errors of zero; measure more windows"
    for i in np.flatnonzero((points.y <= 0) & (points.error == 0)):
        place = spell_values({v: points.x[v][i] for v in form.variables})
        yield (
            f"{points.models[i]} at {place} has an increase of {points.y[i]:.4g}, which has no logarithm, and no "
            "standard error to weigh it by: give standard_error in the data, or `standard_error` for rows without one"
        )


def in_group(group: Mapping[str, float]) -> str:
    """A group in the words of a message; empty where there is one alone."""
    return f" where {', '.join(f'{k} is {spell_value(k, v)}' for k, v in group.items())}" if group else ""


def join_ratios(ratios: Iterable[float]) -> dict[float, float]:
    """Each ratio to the name of its group: the ratio itself where all agree, else their mean to 0.01."""
    groups: list[list[float]] = []
    for ratio in sorted(set(ratios)):
        if groups and ratio - groups[-1][0] < _APART:
            groups[-1].append(ratio)
        else:
            groups.append([ratio])
    names = [g[0] if g[-1] - g[0] < _SAME_RATIO else round(sum(g) / len(g), 2) for g in groups]
    return {ratio: name for group, name in zip(groups, names, strict=True) for ratio in group}


def nearest_group(ratio: float, names: Collection[float]) -> float:
    """The group that a ratio is one of, by name; the ratio itself where none is near."""
    nearest = min(names, key=lambda name: abs(name - ratio), default=ratio)
    return nearest if abs(nearest - ratio) < _APART else ratio

"""Prediction: ask a law. Give all of its variables but one, and it answers with that one.

The loss increase is one of the variables: leave it out, and the law predicts it; give a budget, and the law answers
with the ratio that this allows, the smallest model, the largest block. Two intervals go with an answer: that of the
law, from its bootstrap estimates, and that of a measurement, which scatters about the law as the fitted points did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from qarat.ground.errors import UserError
from qarat.stages.laws.equations import Vector, direction, internal, log_response, solve
from qarat.stages.laws.forms import FORMS, VARIABLES, Form
from qarat.stages.laws.resampling import interval
from qarat.values.records.law import Fit, Law, Parameter, Prediction
from qarat.values.records.law_data import spell_value, spell_values

_POSSIBLE = {"ratio": (0.0, 1.0), "block": (1.0, math.inf), "bits": (0.0, math.inf)}
_ERRORS = 20  # of a measurement, drawn for each bootstrap estimate
_SAME = 1e-6  # relative: a budget given as ppl+5% is the group fitted at 5 %
_DEARER = {"ratio": 1, "block": 1, "tokens": 1, "size": -1, "bits": -1}  # which way the loss increase is taken to go


def predict(law: Law, known: Mapping[str, float], form: str = "", *, measured: bool = True) -> Prediction:
    """Answer with the variable that is not given.

    Args:
        law: Fitted or published.
        known: ``size``, ``tokens``, ``ratio``, ``block``, ``bits``, and ``loss`` for a budget in nats per token.
        form: Which of the law's forms; empty takes the only or the best one.
        measured: Whether the interval of a measurement is wanted, which takes twenty times as long as the law's.

    Raises:
        UserError: The law has no such form or group; a value is impossible; variables the form does not model, or more
            or fewer than one left open.
    """
    fit, variable = choose_fit(law, known, form)
    shape = FORMS.load(fit.form)
    values = {v: known[v] for v in shape.question if v in known} | fit.group
    theta = internal(shape, np.array([p.value for p in fit.parameters]))
    raw = float(_answer(shape, theta, variable, values, 0.0))
    if math.isnan(raw):
        raise UserError(f"the fitted coefficient of {variable} is zero, so no {variable} answers this")
    low, high = _POSSIBLE.get(variable, (0.0, math.inf))
    value = min(max(raw, low), high)
    turned, undecided, notes = _direction(shape, fit, variable)
    notes += [*fit.notes, *([f"the law's data: {law.how}"] if law.how else [])]
    if not fit.parameters[0].draws:
        notes.append("no intervals: the coefficients come without draws to take them from")
    none = _no_answer(variable, raw, turned)
    intervals = ((), ()) if undecided or none else _intervals(shape, fit, variable, values, measured=measured)
    law_interval, measured_interval = (tuple(min(max(v, low), high) for v in ends) for ends in intervals)
    if not low <= raw <= high:
        notes.insert(0, f"the formula gives {raw:.4g}, which cannot be; {value:g} is the nearest that can")
    return Prediction(
        form=fit.form,
        variable=variable,
        known=dict(values),
        value=value,
        interval=law_interval,
        measured_interval=measured_interval,
        outside=tuple(outside_domain(fit, {**values, variable: value})),
        notes=tuple(notes),
        turned=turned,
        none=none,
    )


def choose_form(law: Law, form: str = "") -> str:
    """The form that is meant: the one named, the best, or the only one.

    Raises:
        UserError: The law has no such form, or several and none that is the best.
    """
    name = form or law.best or law.fits[0].form
    there = sorted({fit.form for fit in law.fits})
    if name not in there:
        reason = f": {law.refused[name]}" if name in law.refused else f"; it has {', '.join(there)}"
        raise UserError(f"this law has no form {name!r}{reason}")
    if not form and not law.best and len(there) > 1:
        raise UserError(f"this law has several forms and no best one; choose with `form`: {', '.join(there)}")
    return name


def choose_fit(law: Law, known: Mapping[str, float], form: str = "") -> tuple[Fit, str]:
    """The fit that a question is about, and the variable that it leaves open.

    Raises:
        UserError: As `predict`.
    """
    _check_values(known)
    name = choose_form(law, form)
    fits = [fit for fit in law.fits if fit.form == name]
    shape = FORMS.load(name)
    if strange := [fit for fit in fits if tuple(p.name for p in fit.parameters) != shape.names]:
        theirs = ", ".join(p.name for p in strange[0].parameters)
        raise UserError(f"this law's {name} has the parameters {theirs}, not {', '.join(shape.names)}; fit it again")
    variable = _open_variable(shape, name, known, fits)
    matching = [fit for fit in fits if all(_same(known.get(k), v) for k, v in fit.group.items())]
    if not matching:  # a size of 3145728 is listed as 3.15M, and may be given so
        matching = [fit for fit in fits if all(_spelt_same(k, known.get(k), v) for k, v in fit.group.items())]
    if len(matching) != 1:
        groups = "; ".join(spell_values(fit.group) for fit in fits)
        others = f"; not for others, since {law.refused[name]}" if name in law.refused else ""
        raise UserError(f"{name} was fitted for these values alone: {groups}; give one of them{others}")
    return matching[0], variable


def published_names() -> list[str]:
    """Laws whose authors print coefficients: ``FORM`` or ``FORM:VARIANT``; groups of one variant are one law."""
    variants = ((name, p.name) for name in FORMS.names() for p in FORMS.load(name).published)
    return list(dict.fromkeys(f"{name}:{variant}" if variant else name for name, variant in variants))


def published_law(name: str) -> Law:
    """A law with its authors' coefficients, without intervals, which none of them prints.

    Raises:
        UserError: No such law.
    """
    if name not in published_names():
        raise UserError(f"there is no published law {name!r}; known: {', '.join(published_names())}")
    key, _, variant = name.partition(":")
    form = FORMS.load(key)
    fits = tuple(
        Fit(
            form=key,
            group=dict(p.group),
            parameters=tuple(Parameter(n, p.values[n]) for n in form.names),
            method="published",
            domain=dict(p.domain),
            notes=tuple(filter(None, (p.note, form.transfers))),
        )
        for p in form.published
        if p.name == variant
    )
    return Law(form.source, "", {}, {}, 0, fits)


def _open_variable(form: Form, name: str, known: Mapping[str, float], fits: Sequence[Fit]) -> str:
    """The one variable left open; messages name variables as arguments."""
    variables = form.question
    if strange := sorted(set(known) - set(variables)):
        listed = ", ".join(f"`{v}` ({VARIABLES[v]})" for v in strange)
        raise UserError(f"{name} does not model {listed}; it is about {_named(variables)}")
    missing = [v for v in variables if v not in known]
    if lacking := [v for v in missing if v in form.by]:
        groups = "; ".join(spell_values(fit.group) for fit in fits)
        raise UserError(f"{name} was fitted for single values alone; give {_named(lacking)} of one of these: {groups}")
    if not missing:
        raise UserError(f"{name} answers with the one of {_named(variables)} that is left out; leave one out")
    if len(missing) > 1:
        raise UserError(f"{name} takes all of {_named(variables)} but the one it answers with; {_named(missing)} lack")
    return missing[0]


def _named(variables: Sequence[str]) -> str:
    return ", ".join(f"`{v}`" for v in variables)


def _check_values(known: Mapping[str, float]) -> None:
    for variable, value in known.items():
        low, high = _POSSIBLE.get(variable, (0.0, math.inf))
        if not low <= value <= high or value == math.inf or (value == 0 and variable != "ratio"):
            raise UserError(f"`{variable}` {value:g} cannot be: {VARIABLES[variable]}")


def _answer(form: Form, theta: Vector, variable: str, known: Mapping[str, float], noise: float) -> float:
    """The open variable, of a point that lies ``noise`` above the law in the logarithm."""
    response = "size" if form.response == "billions" else "loss"
    if variable == response:
        x = {v: np.array([known[v]]) for v in form.variables}
        return _from_log_response(form, float(log_response(form, theta, x)[0]) + noise)
    return solve(form, theta, variable, known, _to_log_response(form, known[response]) - noise)


def _to_log_response(form: Form, value: float) -> float:
    if form.response == "billions":
        return math.log(value / 1e9)
    return math.log(100 * math.expm1(value) if form.response == "perplexity-increase" else value)


def _from_log_response(form: Form, log_response: float) -> float:
    response = math.exp(min(log_response, 700.0))
    if form.response == "billions":
        return response * 1e9
    return math.log1p(response / 100) if form.response == "perplexity-increase" else response


def _no_answer(variable: str, raw: float, turned: bool) -> str:
    """That no value keeps a budget, or every one, where the formula's is beyond what can be; empty for an answer."""
    low, high = _POSSIBLE.get(variable, (0.0, math.inf))
    if low <= raw <= high or (raw > high and not turned):  # a largest ratio above 1 is an answer: everything low
        return ""
    noun = {"ratio": "share", "block": "block size", "bits": "number of bits"}.get(variable, variable)
    cheap_is_low = (_DEARER[variable] > 0) != turned
    return f"no {noun} keeps this budget" if (raw < low) == cheap_is_low else f"every {noun} keeps this budget"


def _direction(form: Form, fit: Fit, variable: str) -> tuple[bool, bool, list[str]]:
    """Whether the answer is the other end of what is expected, whether the law's sign is open, and both in words.

    A budget is solved for a variable through one over its coefficient. As that passes through zero the answer leaps
    from one end of everything to the other, so that an interval of answers would mean nothing.
    """
    if variable == "loss":
        return False, False, []
    # Law 1 has one coefficient, which decides whichever variable is asked for: N grows with the ratio it is to reach.
    decisive, expected = ("ratio", 1) if form.response == "billions" else (variable, _DEARER[variable])
    response = "N" if form.response == "billions" else "the loss increase"
    usual, other = ("grows", "falls") if expected > 0 else ("falls", "grows")
    parameter = fit.parameters[1 + form.variables.index(decisive)]
    theta = internal(form, np.array([p.value for p in fit.parameters]))
    against = expected * direction(form, theta, decisive) < 0
    notes: list[str] = []
    if against:
        notes.append(
            f"in this fit {response} {other} with {decisive} ({parameter.name} = {parameter.value:.4g}), not {usual}"
        )
    undecided = bool(parameter.interval) and parameter.interval[0] <= 0 <= parameter.interval[1]
    if undecided:
        low, high = (f"{bound:.4g}" for bound in parameter.interval)
        notes.append(
            f"no intervals: these data do not fix whether {response} {usual} or {other} with {decisive}; "
            f"{parameter.name} is {low} to {high}"
        )
    # A budget's largest ratio stays one where larger models reach less; everything else is its other end.
    return against and not (form.response == "billions" and variable == "ratio"), undecided, notes


def _intervals(
    form: Form, fit: Fit, variable: str, known: Mapping[str, float], *, measured: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of the law, and of a measurement; empty where nothing was resampled, the latter where it is not wanted."""
    draws = np.array([p.draws for p in fit.parameters]).T
    if not draws.size:
        return (), ()
    thetas = [internal(form, row) for row in draws]
    of_law = interval([_answer(form, theta, variable, known, 0.0) for theta in thetas], fit.units)
    if not measured:
        return of_law, ()
    residuals = _residuals(fit)
    # The same errors for every question: a seed of their own would make two answers of one law disagree.
    noise = np.random.default_rng(0).choice(residuals, size=(len(draws), _ERRORS))
    answers = [_answer(form, theta, variable, known, e) for theta, row in zip(thetas, noise, strict=True) for e in row]
    return of_law, interval(answers, fit.units)


def _residuals(fit: Fit) -> Vector:
    """Logarithms of measured over predicted, widened for the parameters that were fitted to them."""
    counted = [p for p in fit.points if not p.by_difference]
    residuals = np.array([math.log(p.measured / p.predicted) for p in counted])
    return residuals * math.sqrt(len(counted) / max(len(counted) - len(fit.parameters), 1))


def _spelt_same(variable: str, a: float | None, b: float) -> bool:
    return a is not None and spell_value(variable, a) == spell_value(variable, b)


def _same(a: float | None, b: float) -> bool:
    return a is not None and math.isclose(a, b, rel_tol=_SAME)


def outside_domain(fit: Fit, values: Mapping[str, float]) -> list[str]:
    """What lies outside the fitted domain, and how far."""
    notes: list[str] = []
    for variable, value in values.items():
        low, high = fit.domain.get(variable, (-math.inf, math.inf))
        if low * (1 - _SAME) <= value <= high * (1 + _SAME) or variable in fit.group:
            continue
        below = value < low
        bound, word = (low, "smallest") if below else (high, "largest")
        times = max(value, bound) / min(value, bound) if min(value, bound) > 0 else math.inf
        if variable == "ratio":
            far = f"{abs(value - bound):.3g} {'below' if below else 'above'}"
        else:
            far = f"{times:.3g} times {'below' if below else 'above'}"
        at, end = spell_value(variable, value), spell_value(variable, bound)
        notes.append(f"{variable} {at} is {far} the {word} fitted, {end}")
    return notes

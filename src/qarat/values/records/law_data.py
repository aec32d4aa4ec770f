"""Measurements: what laws are fitted to, one frozen value a point.

A published figure, a sweep of one's own and any table a user brings say the same things of a point: which model, what
of it is low, in which format, and what that did to a metric. What a source does not say is None, never a guess.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import msgspec

from qarat.ground.errors import UserError

LOSS_METRICS = ("loss", "loss-increase", "perplexity", "perplexity-increase")
"""Metrics that are nats per token, or become nats: the last two as ppl and as per cent over float's."""

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_LEAST_PARAMETERS, _LEAST_TOKENS = 1e3, 1e3  # below that, somebody wrote billions
_MOST_BITS = 32
_MOST_COUNTED = 1e18  # beyond, a count in millions of T is only harder to read


class Measurement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One measured point.

    Attributes:
        source: Where it was read: a paper's figure, a sweep's name.
        family: Models that share recipe and data, e.g. ``Qwen-1.5``.
        model: Name.
        size: N, parameters.
        tokens: D, training tokens.
        format: Low format of weights, and of inputs if these are quantized.
        planning: ``layer-wise`` or ``matmul-wise``.
        granularity: Which elements share a scale: ``group``, ``channel``, ``tensor``.
        ratio_basis: What Q_r counts: ``parameters``, ``sites`` or ``macs``.
        ratio: Q_r, the low share, 0 to 1.
        block: Q_b, values that share one scale.
        bits: A weight, averaged over all sites, high ones included.
        metric: One of `LOSS_METRICS`, or another that no law here models, such as ``accuracy``.
        value: Of the metric after quantization. ``perplexity-increase`` is per cent, ``loss`` and its increase nats.
        base_value: The same before; None where the metric is a change.
        higher_is_better: Of the metric.
        standard_error: Of the value, in its unit.
        evaluation: Text, cut and number of samples, in words.
    """

    source: str
    family: str
    model: str
    size: float | None
    tokens: float | None
    format: str
    planning: str
    granularity: str
    ratio_basis: str
    ratio: float | None
    block: float | None
    bits: float | None
    metric: str
    value: float
    base_value: float | None
    higher_is_better: bool
    standard_error: float | None
    evaluation: str


def loss_increase(point: Measurement) -> tuple[float, float]:
    """The loss increase in nats per token, and its standard error; 0 where none is given.

    Raises:
        UserError: The metric is no loss, or its base value is missing.
    """
    value, error = point.value, point.standard_error or 0.0
    if point.metric == "loss-increase":
        return value, error
    if point.metric == "perplexity-increase":
        return math.log1p(value / 100), error / (100 + value)
    if point.metric not in LOSS_METRICS:
        raise UserError(f"{point.metric} is no loss; laws are about {', '.join(LOSS_METRICS)}")
    if point.base_value is None:
        raise UserError(f"{point.metric} needs a base_value, the unquantized model's")
    if point.metric == "loss":
        return value - point.base_value, error
    return math.log(value / point.base_value), error / value


def find_problems(point: Measurement) -> list[str]:
    """What of a measurement cannot be: units mistaken, shares above one. Empty if all is well."""
    checks = [
        _least("size", point.size, _LEAST_PARAMETERS, "parameters: 7e9 or 7B, not billions"),
        _least("tokens", point.tokens, _LEAST_TOKENS, "training tokens: 2e12 or 2T, not billions"),
        _least("block", point.block, 1, "values that share a scale"),
        _least("standard_error", point.standard_error, 0, "the unit of value"),
        _share("ratio", point.ratio),
    ]
    if point.bits is not None and not 0 < point.bits <= _MOST_BITS:
        checks.append(f"bits {point.bits:g} is not above 0 and at most {_MOST_BITS}: give bits a weight")
    if not point.model:
        checks.append("model is empty: give the model's name")
    if point.metric in LOSS_METRICS and point.higher_is_better:
        checks.append(f"higher_is_better is yes, but a higher {point.metric} is worse")
    return [check for check in (*checks, *_check_values(point)) if check]


def _least(name: str, value: float | None, least: float, unit: str) -> str:
    if value is None or least <= value < math.inf:
        return ""
    return f"{name} {value:g} is not between {least:g} and infinity: give {unit}"


def _share(name: str, value: float | None) -> str:
    if value is None or 0 <= value <= 1:
        return ""
    return f"{name} {value:g} is not between 0 and 1: give a share, not per cent"


def _check_values(point: Measurement) -> list[str]:
    """What is wrong with the value and its base, by the metric."""
    problems: list[str] = []
    for name, value in (("value", point.value), ("base_value", point.base_value)):
        if value is None:
            continue
        if not math.isfinite(value):
            problems.append(f"{name} {value:g} is not finite")
        elif point.metric == "perplexity" and value < 1:
            problems.append(f"{name} {value:g} is no perplexity: none is below 1")
        elif point.metric == "loss" and value < 0:
            problems.append(f"{name} {value:g} is no loss: nats per token are not negative")
        elif point.metric == "perplexity-increase" and value <= -100:
            problems.append(f"{name} {value:g} is no increase in per cent: none is -100 or less")
        elif point.metric == "accuracy" and not 0 <= value <= 1:
            problems.append(f"{name} {value:g} is no accuracy: give a share between 0 and 1")
    if point.metric.endswith("-increase") and point.base_value is not None:
        problems.append(f"base_value must be empty: {point.metric} is a change already")
    return problems


def parse_count(text: str) -> float:
    """A number of parameters or tokens such as ``7B``, ``350M``, ``1.3e9`` or ``2T``.

    Raises:
        UserError: Malformed, or not positive and finite.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(e[+-]?\d+)?\s*([kmbt]?)", text.strip().lower())
    value = float(match[1] + (match[2] or "")) * _UNITS[match[3]] if match else 0.0
    if not 0 < value < math.inf:
        raise UserError(f"{text!r} is no number of parameters or tokens; write for example 7B, 350M, 1.3e9 or 2T")
    return value


def spell_value(variable: str, value: float) -> str:
    """A size, ratio, block, loss, … as a person writes it, to three digits: ``7B``, ``0.95``, ``ppl+5%``."""
    if variable in ("size", "tokens"):
        return _spell_count(value)
    if variable == "loss":
        return f"{value:.4g} nats (ppl{100 * math.expm1(min(value, 700)):+.3g}%)"
    return f"{value:.4g}"


def spell_values(values: Mapping[str, float]) -> str:
    """Variables with their values, as a person lists them: ``size 7B, ratio 0.95``."""
    return ", ".join(f"{variable} {spell_value(variable, value)}" for variable, value in values.items())


def _spell_count(value: float) -> str:
    if value >= _MOST_COUNTED:
        return f"{value:.3g}"
    for unit in ("t", "b", "m", "k"):
        if value >= 0.9995 * _UNITS[unit]:
            scaled = value / _UNITS[unit]
            return (f"{scaled:.3g}" if scaled < 999.5 else f"{scaled:,.0f}") + unit.upper()
    return f"{value:.3g}"

"""Requests checked as far as that needs no model: by themselves, and against what the folders of the stages hold."""

from __future__ import annotations

from qarat.ground.errors import UserError
from qarat.stages.choose.strategies import STRATEGIES
from qarat.stages.prices import METRICS
from qarat.stages.transforms import parse_transform
from qarat.values.requests.protect import ProtectRequest
from qarat.values.requests.search import SearchRequest
from qarat.values.requests.studies import FamilyRequest, RatioRequest


def check_plan_request(request: ProtectRequest) -> None:
    """Check what a plan should be.

    Raises:
        UserError: Malformed or unknown words.
    """
    request.check()
    for text in request.transforms:
        parse_transform(text)


def check_search_request(request: SearchRequest) -> None:
    """Check what a search is to find out.

    Raises:
        UserError: Malformed or unknown words, numbers out of range, options that do not go together; an extra that the
            strategy needs is not installed.
    """
    metric = metric_of(request)
    request.check()
    if request.basis == "macs" and metric and METRICS.load(metric).weights_only:
        raise UserError(f"`metric` {metric} has no price of attention products, which `basis` macs decides too")
    own = STRATEGIES.load(request.strategy).METRIC
    if request.caches() and (blind := [name for name in (metric, own) if name and METRICS.load(name).weights_only]):
        raise UserError(
            f"`menu` has schemes of caches, and {blind[0]} looks at weights alone: take another metric or strategy"
        )


def metric_of(request: SearchRequest) -> str:
    """What predictions come from: the metric asked for, or the strategy's own; empty where it makes none.

    Raises:
        UserError: Unknown names; an extra that the strategy needs is not installed.
    """
    if request.metric:
        METRICS.check(request.metric)
    own = STRATEGIES.load(request.strategy).METRIC
    return own and (request.metric or own)


def check_searches(request: RatioRequest | FamilyRequest) -> None:
    """Check what many searches are to find out; errors as `check_search_request`."""
    request.check()
    for search in request.searches():
        check_search_request(search)

"""The cache of keys and values: one ``kv_cache_scheme`` for all blocks, and one scale of keys and of values in each.

vLLM (0.32) takes FP8 under one static scale, and reads a token's own key and value from the cache like all others;
transformers computes INT8 too. A cache in part, or that only later tokens read, has no words there.
"""

from __future__ import annotations

from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy, QuantizationType
from torch import Tensor

from qarat.model.layers import QuantCache
from qarat.stages.export.compressed_tensors.shards import Layout
from qarat.stages.export.compressed_tensors.tensors import SCALES
from qarat.values.plans import Assignment, Plan
from qarat.values.roles import CACHES
from qarat.values.schemes import CacheScheme, Granularity, Scheme

FORMATS = ("e4m3", "int8")
LEAVES = dict(zip(CACHES, ("k_scale", "v_scale"), strict=True))
"""Last name of a cache's site to that of its scale; both stand in the attention module."""


def cache_offences(plan: Plan) -> list[str]:
    """What the format cannot hold of a plan's caches, in words with the remedy; empty if it holds them."""
    caches = _caches(plan)
    wrong = [f"{a.site.name}: {a.scheme}: {why}" for a in caches if (why := cache_offence(a.scheme))]
    spelled = {str(a.scheme): a.site.name for a in caches}
    if not wrong and len(spelled) > 1:
        listed = ", ".join(f"{scheme} ({name})" for scheme, name in spelled.items())
        wrong.append(f"caches of keys and values have one scheme in all blocks, and the plan has {listed}")
    return wrong


def cache_args(plan: Plan) -> QuantizationArgs | None:
    """The ``kv_cache_scheme`` of a plan without offences; None where its caches stay in float."""
    kept = _caches(plan)[0].scheme.operands()[0]
    if kept is None:
        return None
    kind = QuantizationType.INT if kept.number_format.is_integer else QuantizationType.FLOAT
    return QuantizationArgs(num_bits=8, symmetric=True, dynamic=False, type=kind, strategy=QuantizationStrategy.TENSOR)


def cache_layout(plan: Plan) -> Layout:
    """Name of every scale to its dtype and shape."""
    sites = (a.site for a in _caches(plan) if not a.is_float)
    return {f"{site.name.rpartition('.')[0]}.{LEAVES[site.leaf]}": (SCALES["float32"], (1,)) for site in sites}


def cache_tensors(home: str, cache: QuantCache) -> dict[str, Tensor]:
    """The scales of a block's cache by full name; ``home`` is its attention's."""
    return {f"{home}.{LEAVES[name]}": scales.scale.reshape(1) for name, scales in cache.scales.items()}


def _caches(plan: Plan) -> list[Assignment]:
    return [a for a in plan.assignments if a.site.kind == "cache"]


def cache_offence(scheme: Scheme) -> str:
    """Why the format cannot hold caches under a scheme, in words with the remedy; empty if it can."""
    kept = scheme.kept if isinstance(scheme, CacheScheme) else None
    if kept is None:
        return ""
    if kept.past_only:
        return "engines read a token's own key and value from the cache too; drop past-only"
    if kept.two_dimensional:
        return "engines shift and scale no channel of a cache; drop 2d"
    held = kept.static and kept.granularity == Granularity() and kept.symmetric and kept.scale == "float32"
    return "" if held and kept.format in FORMATS else "caches are c=e4m3/tensor/static or c=int8/tensor/static"

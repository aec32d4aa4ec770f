"""What a plan has computed for one token beside its products: the elementwise work that a count of MACs leaves out.

After PikeLPN's ACEv2 (Neseem et al. 2024, arXiv 2404.00103), which shows that such work weighs the more, the fewer bits
the products have. Here it is counted, not weighed by bit widths. An element that an operation goes through counts one,
whatever the operation takes.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from qarat.values.plans import Plan
from qarat.values.roles import Role
from qarat.values.schemes import LinearScheme, TensorScheme


class TokenWork(NamedTuple):
    """Operations of all blocks for one token, attention (products, softmax, rotary) left out: that grows with length.

    Attributes:
        macs: Multiply-accumulates of the projections.
        scalings: Products with scales and additions of zero points. A quantized input has one an element, once for all
            that read it under one scheme; a quantized product one for each output of each group along the reduction,
            two with zero points; scales that are quantized themselves another for each.
        roundings: One an element of a quantized input, and another for the search of the largest where scales are
            dynamic.
        others: Elements of norms (two a block, as LLaMA has), residual sums, activations and their products with gates.
    """

    macs: int
    scalings: int
    roundings: int
    others: int

    @property
    def elementwise(self) -> int:
        """All but the MACs."""
        return self.scalings + self.roundings + self.others


def work_of(plan: Plan) -> TokenWork:
    """The work that a plan asks for, counted from shapes."""
    inputs: dict[tuple[str, TensorScheme], int] = {}
    macs = scalings = others = 0
    readers = Counter(a.site.streams[0] for a in plan.assignments if a.site.kind == "projection")
    norms: dict[str, int] = {}
    for a in plan.assignments:
        scheme, site = a.scheme, a.site
        if not isinstance(scheme, LinearScheme):
            continue
        (rows, cols), stream = site.shape, site.streams[0]
        macs += rows * cols
        scalings += _scalings(scheme, rows, cols)
        if scheme.input is not None:
            inputs[stream, scheme.input] = cols
        role = stream.rpartition(".")[2]
        if role in (Role.ATTENTION_INPUT, Role.MLP_INPUT):
            norms[stream] = cols
        else:
            others += rows  # what is added to the residual stream
        if role == Role.DOWN_INPUT:
            # The activation, and the product with it where there is a gate.
            others += cols * readers[f"{stream.rpartition('.')[0]}.{Role.MLP_INPUT}"]
    scalings += sum(inputs.values())
    roundings = sum(cols * (1 if given.static else 2) for (_, given), cols in inputs.items())
    return TokenWork(macs, scalings, roundings, others + sum(norms.values()))


def _scalings(scheme: LinearScheme, rows: int, cols: int) -> int:
    """Products with scales of one projection's sums, and with what stands above the weight's scales."""
    if scheme.is_float:
        return 0
    weight, wide = scheme.weight, [t.granularity.scale_shape(1, cols)[1] for t in (scheme.weight, scheme.input) if t]
    sums = rows * max(wide)
    zero_points = sum(sums for t in (weight, scheme.input) if t and not t.symmetric)
    above = 0
    if weight is not None and weight.nests_scales:
        tall, across = weight.granularity.scale_shape(rows, cols)
        above = rows if weight.scale == "e4m3" else tall * across  # one for all can wait for the sum
    return sums + zero_points + above

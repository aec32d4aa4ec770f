"""Conversion: a float model and a plan become a quantized model; the one place where projections are swapped.

A quantized model is the opened float model with another function that brings in blocks: read the float block, quantize
its weights, put `QuantLinear` in place of its projections. The next block sees the quantized outputs, because the walk
hands on whatever a block returns.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from qarat.ground.errors import UserError
from qarat.maths.static_scales import check_static, static_operands, static_scales_of
from qarat.maths.tensors import QuantizedTensor
from qarat.maths.tiles import Scales
from qarat.model.capture import block_work
from qarat.model.layers import QuantLinear, attention_layers, fill_block
from qarat.model.model import Model
from qarat.model.prefixes import FloatPrefix, PrefixedBlock, prefix_of
from qarat.model.tokens import TokenSet
from qarat.stages.rounding import Merged, check_roundings, needs_calibration
from qarat.stages.rounding.inputs import Calibration, inputs_of, round_site
from qarat.values.plans import Plan
from qarat.values.records.files import content_hash
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import LinearScheme, Scheme, TensorScheme
from qarat.values.sites import Site


class WeightCache:
    """Weights quantized once per (site, scheme), for callers that build the same block many times.

    What is over the bound is quantized anew each time. What came first stays: whoever goes through the blocks again and
    again would find that the least recently used is just what he needs next.

    Attributes:
        held: Bytes of the weights kept.
    """

    def __init__(self, bound: int) -> None:
        """Empty.

        Args:
            bound: On the bytes of the weights kept.
        """
        self.held = 0
        self._bound = bound
        self._weights: dict[tuple[str, TensorScheme], QuantizedTensor] = {}

    def quantized(
        self, site: Site, weight: Merged, scheme: TensorScheme, calibration: Calibration | None = None
    ) -> QuantizedTensor:
        """A site's weight under a scheme; arguments as `round_site`, weight and calibration always the same."""
        key = (site.name, scheme)
        if key in self._weights:
            return self._weights[key]
        quantized = round_site(site, weight, scheme, calibration)
        if self.held + quantized.nbytes <= self._bound:
            self._weights[key] = quantized
            self.held += quantized.nbytes
        return quantized


def room_for_weights(model: Model) -> int:
    """Bytes for weights rounded once: what the runtime's memory leaves beside float blocks, but no more than these."""
    every = model.block_bytes() * model.blocks
    held = block_work(model, model.runtime.batch_tokens) + (every if model.keeps_blocks else 0)
    return max(0, min(model.memory * 3 // 4 - held, every))  # a quarter is for hidden states


def quantize(
    model: Model, plan: Plan, stats: ActivationStats | None = None, calibration: TokenSet | Calibration | None = None
) -> Model:
    """The model under a plan, still opened block by block.

    Args:
        model: In float.
        plan: For every site of this model.
        stats: Behind static scales; may be None if the plan has none.
        calibration: Tokens behind roundings that look at what a projection reads, or what keeps the weights so rounded;
            those of the stats, if there are any.

    Raises:
        PlanError: If the plan does not fit the model.
        UserError: If stats or calibration tokens are missing, or of another model or plan; a prefix that the model
            cannot have.
    """
    model.require_float("quantize")
    plan.check(model.fingerprint, model.sites())
    check_stats(plan, stats)
    inputs = inputs_of(model, calibration, len(plan.prefix))
    check_roundings(((a.site, a.scheme) for a in plan.assignments), inputs.rows if inputs else 0)
    if inputs is not None and stats is not None and stats.provenance.tokens != inputs.tokens.fingerprint:
        raise UserError("the stats are of other calibration tokens than those given; profile these, or give the others")
    check_calibration(plan, inputs.tokens if inputs else None)
    prefix = prefix_of(model, plan)
    return model.with_blocks(
        lambda index: build_block(model, index, plan.block(index), stats, prefix=prefix, calibration=inputs)
    )


def check_stats(plan: Plan, stats: ActivationStats | None) -> None:
    """Check that every static scale of a plan has its stats, before any long work.

    Args:
        plan: Any; one without static scales needs no stats.
        stats: Of the plan's model, and those it was made with if it names some.

    Raises:
        UserError: Listing every stream that is missing, or what does not belong together.
    """
    needed = [pair for a in plan.assignments for pair in static_operands(a.site.streams, a.scheme)]
    check_static(needed, stats, plan.model, plan.prefix)
    if needed and stats is not None and plan.stats and plan.stats != content_hash(stats):
        raise UserError("the plan was made with other stats; plan again, or pass the stats it was made with")


def check_calibration(plan: Plan, calibration: TokenSet | None) -> None:
    """Check that a plan's roundings look at the tokens that they looked at when it was made, before any long work.

    Args:
        plan: Any; one that names no tokens takes all.
        calibration: Tokens.

    Raises:
        UserError: Both, by their beginnings, and what to do.
    """
    if calibration is None or not plan.calibration or calibration.fingerprint == plan.calibration:
        return
    if needs_calibration(a.scheme for a in plan.assignments):
        raise UserError(
            f"the plan's roundings looked at the calibration tokens {plan.calibration[:8]}, these are "
            f"{calibration.fingerprint[:8]}; give the text, length, samples and seed behind it, or plan again"
        )


def build_block(
    model: Model,
    index: int,
    schemes: Mapping[str, Scheme],
    stats: ActivationStats | None,
    cache: WeightCache | None = None,
    prefix: FloatPrefix | None = None,
    calibration: Calibration | None = None,
) -> nn.Module:
    """One block under its schemes; tensors that stay in float are shared with the float block.

    Args:
        model: In float.
        index: Of the block.
        schemes: Full site name to scheme, for every site of the block.
        stats: Behind static scales.
        cache: Filled and used if given.
        prefix: Computed in float in front of every sequence; None for none.
        calibration: For roundings that look at what a projection reads.
    """
    source, inside = model.block(index), f"{model.family.blocks}.{index}."
    floats = _as_stored(model, inside, source.state_dict())
    layers: dict[str, nn.Module] = {}
    operands: dict[str, Scales] = {}
    for site in (s for s in model.sites() if s.block == index):
        scheme = schemes[site.name]
        needed = static_operands(site.streams, scheme)
        static = {stream: static_scales_of(stats, stream, by, model.runtime.device) for stream, by in needed}
        if not isinstance(scheme, LinearScheme):
            operands |= {stream.rpartition(".")[2]: scales for stream, scales in static.items()}
        elif not scheme.is_float:
            inner = site.name.removeprefix(inside)
            weight: QuantizedTensor | Tensor = floats[f"{inner}.weight"]
            if scheme.weight is not None:
                whole = Merged.of(source, inside, site, model.sites())  # rounded once, by its scheme alone
                rounded = round_site if cache is None else cache.quantized
                weight = rounded(site, whole, scheme.weight, calibration)
            scales = static.get(site.streams[0])
            layers[inner] = QuantLinear(weight, floats.get(f"{inner}.bias"), scheme, scales, model.runtime.kernels)
    leaves = {name.rpartition(".")[2]: scheme for name, scheme in schemes.items()}
    layers |= attention_layers(model.family.attention, leaves, operands, 0 if prefix is None else len(prefix.tokens))
    block = fill_block(model.empty_block(index), layers, floats)
    return block if prefix is None else PrefixedBlock(block, index, prefix[index])


def _as_stored(model: Model, prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A float block's tensors as a file will hold them: what a transform folded, in the checkpoint's own dtypes."""
    if not model.transforms:
        return state  # it is where they come from
    return {
        name: value.to(model.checkpoint.dtype_of(f"{prefix}{name}")).to(value.dtype) for name, value in state.items()
    }

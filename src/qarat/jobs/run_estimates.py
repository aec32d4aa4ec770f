"""What a whole run takes, from shapes."""

from __future__ import annotations

from collections.abc import Sequence

from qarat.ground.runtime import Estimate
from qarat.jobs.estimates import (
    PRICED_ON,
    PROTECTING_FORWARDS,
    TO_EXPORT,
    TO_QUANTIZE,
    Work,
    estimate,
    measuring,
    meter_bytes,
    observing,
    pricing,
    quantized_bytes,
    stats_bytes,
    whole_bytes,
)
from qarat.jobs.exporting import HOLD_WEIGHTS
from qarat.jobs.run_steps import DIVERGED_ON, LABELS
from qarat.jobs.transforming import tokens_to_prepare
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.stages.measure.generation import new_tokens
from qarat.values.plans import Plan
from qarat.values.requests.protect import ProtectRequest


def estimate_run(
    model: Model,
    request: ProtectRequest,
    draft: Plan,
    tokens: tuple[TokenSet, TokenSet, TokenSet],
    exports: Sequence[str],
) -> Estimate:
    """Time, memory and disk, at rates measured now.

    Args:
        model: In float.
        request: What the plan should be.
        draft: Everything low.
        tokens: Calibration, selection and report.
        exports: Formats to write as well.
    """
    calibration, selection, report = (t.windows.numel() for t in tokens)
    prepared = tokens_to_prepare(request, calibration, selection)
    whole = whole_bytes(model) if continues(model) else 0
    work: dict[str, float | Work] = {
        **({"transform": prepared} if prepared else {}),
        "profile": observing(calibration),
        "damage": pricing(min(selection, PRICED_ON), 1),
        "plan": measuring(selection, PROTECTING_FORWARDS),
        "quantize": TO_QUANTIZE,
        "evaluate float": report,
        **{f"evaluate {label}": measuring(report) for label in LABELS[1:]},
        "divergence": Work(4 * min(report, DIVERGED_ON), passes=4, rounded=2),
        **({"continue": Work(len(LABELS) * new_tokens(model), len(LABELS), 2)} if whole else {}),
        **{f"export {format}": TO_EXPORT for format in exports},
    }
    states = max(calibration, selection, report)
    held = max(whole, meter_bytes(model, tokens[1], PROTECTING_FORWARDS, 1))
    return estimate(model, work, states=states, disk=run_bytes(model, draft, exports), held=held)


def run_bytes(model: Model, draft: Plan, exports: Sequence[str]) -> int:
    """What is written: stats, the quantized folder, and exports that hold weights as it does."""
    weights = 1 + sum(format in HOLD_WEIGHTS for format in exports)
    return stats_bytes(model) + weights * quantized_bytes(model, draft)


def continues(model: Model) -> bool:
    """Whether there is room for a whole model, which a prompt is continued by."""
    return whole_bytes(model) <= model.memory

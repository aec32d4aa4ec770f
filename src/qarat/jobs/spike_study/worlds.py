"""Worlds: what arms are measured in. A float model, the stats behind its static scales, and the report tokens.

All arms of a world share its stats, its rounded weights and the hidden states in front of the first block in which they
differ; so whatever does not need a world of its own (clipping, outlier columns, protection) is in the main one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from qarat.ground.runtime import Progress
from qarat.jobs.protecting import profile
from qarat.model.model import Model
from qarat.model.prefixes import shared_front
from qarat.model.tokens import TokenSet
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.quantize import quantize
from qarat.stages.transforms import choose, parse_transform
from qarat.values.plans import Plan, assign
from qarat.values.records.files import content_hash
from qarat.values.records.spike_study import Left
from qarat.values.records.streams import ActivationStats

PREFIX, OTHER = "prefix", "other calibration"


class SpikeTokens(NamedTuple):
    """The token sets of a study.

    Attributes:
        calibration: Behind static scales.
        selection: On which choices are made.
        report: On which arms are measured.
        bos: BOS rules other than theirs, to calibration and report under it.
        other: Calibration on another kind of text; None where there is none.
        left: What could not be had, and why.
    """

    calibration: TokenSet
    selection: TokenSet
    report: TokenSet
    bos: Mapping[str, tuple[TokenSet, TokenSet]]
    other: TokenSet | None
    left: tuple[Left, ...]


class World(NamedTuple):
    """What arms are measured in.

    Attributes:
        model: In float.
        stats: Of it, behind static scales; what they leave out is computed in float.
        report: Tokens.
        tokens: What the float loss to compare with goes by: a key of `SpikeStudy.floats`.
        transforms: Done to the model.
    """

    model: Model
    stats: ActivationStats
    report: TokenSet
    tokens: str
    transforms: tuple[str, ...] = ()

    def plan(self, scheme: str, stats: str) -> Plan:
        """Every projection under one scheme.

        Args:
            scheme: Spelling.
            stats: Content hash of the world's stats.
        """
        model = self.model
        return assign(
            model.fingerprint, model.source_bits, model.sites(), scheme, stats=stats, prefix=self.stats.prefix
        )


def bos_world(rule: str) -> str:
    """The name of the world in which BOS stands by another rule."""
    return f"BOS {rule}"


def observe_front(model: Model, tokens: TokenSet, progress: Progress) -> ActivationStats:
    """Stats without the tokens in front that hold spikes; without the first where none does.

    Args:
        model: In float.
        tokens: The calibration set, whose windows begin alike.
        progress: Called after every block.
    """
    assert shared_front(tokens)  # whoever asks has looked
    found = profile(model, tokens, "auto", attention=False, progress=progress)
    return found if found.prefix else profile(model, tokens, 1, attention=False, progress=progress)


def choose_strengths(
    model: Model, stats: ActivationStats, auto: str, lows: Sequence[str], tokens: SpikeTokens, progress: Progress
) -> dict[str, str]:
    """The strength of smoothing under which everything low loses least on the selection tokens, by low scheme.

    Args:
        model: In float.
        stats: Of it, on the calibration tokens.
        auto: Spelling of the transform that leaves the strength open.
        lows: Low schemes.
        tokens: Calibration and selection count here.
        progress: Called as the work goes on.
    """
    losses: dict[str, dict[str, float]] = {low: {} for low in lows}
    for text in parse_transform(auto).choices:
        smoothed = parse_transform(text).apply(model, stats)
        seen = profile(smoothed, tokens.calibration, attention=False, progress=progress)
        world, digest = World(smoothed, seen, tokens.selection, "", (text,)), content_hash(seen)
        for low in lows:
            quantized = quantize(smoothed, world.plan(low, digest), seen)
            losses[low][text] = measure_perplexity(quantized, tokens.selection, label=text, progress=progress).loss
    return {low: choose(list(found), found.__getitem__)[0] for low, found in losses.items()}

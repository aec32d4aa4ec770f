"""Worlds: what arms are measured in. A float model, the stats behind its static scales, and the report tokens.

All arms of a world share its stats, its rounded weights and the hidden states in front of the first block in which they
differ; so whatever does not need a world of its own (clipping, outlier columns, protection) is in the main one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from qarat.ground.runtime import Progress
from qarat.jobs.folder import Run
from qarat.jobs.protecting import profile
from qarat.jobs.steps import PROFILE, Step
from qarat.model.model import Model
from qarat.model.prefixes import shared_front
from qarat.model.tokens import TokenSet
from qarat.stages.measure.outliers import measure_float_columns
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.quantize import quantize
from qarat.stages.transforms import choose, parse_transform
from qarat.values.plans import Plan, assign
from qarat.values.records.files import content_hash
from qarat.values.records.spike_study import MAIN, Left
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import LinearScheme, parse_scheme
from qarat.values.sites import short_name

PREFIX, OTHER = "prefix", "other calibration"
COLUMNS = Step[dict[str, float]]("columns", ("columns.json",), dict[str, float])
_COLUMN_WINDOWS = 16  # selection windows in which outlier columns are counted


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


class Worlds(NamedTuple):
    """What worlds are made from.

    Attributes:
        model: In float.
        tokens: Of every kind.
        main: Stats of the main world.
        key: Everything that decides them.
        progress: Called after every block.
    """

    model: Model
    tokens: SpikeTokens
    main: ActivationStats
    key: object
    progress: Progress

    def open(self, run: Run, name: str) -> World:
        """A world by its name, observed if it has not been.

        Args:
            run: That keeps its stats.
            name: `MAIN`, `PREFIX`, `OTHER`, one of `bos_world`, or a transform.
        """
        model, tokens, transforms = self.model, self.tokens, ()
        if name == MAIN:
            return World(model, self.main, tokens.report, MAIN)
        rules = {bos_world(rule): (*sets, bos_world(rule)) for rule, sets in tokens.bos.items()}
        calibration, report, key = rules.get(name, (tokens.calibration, tokens.report, MAIN))
        if name == OTHER and tokens.other is not None:
            calibration = tokens.other
        if name.partition("/")[0] in ("smooth", "hadamard"):
            model, transforms = parse_transform(name).apply(model, self.main), (name,)
        observe = observe_front if name == PREFIX else functools.partial(profile, attention=False)
        step = Step[ActivationStats](f"profile {name}", (f"stats-{re.sub('[/ ]', '-', name)}.safetensors",))
        origin = [self.key, calibration.fingerprint]
        stats = step.make(run, origin, lambda: observe(model, calibration, progress=self.progress), [PROFILE])
        return World(model, stats, report, key, transforms)

    def columns(self, run: Run, schemes: Iterable[str]) -> dict[str, str]:
        """Of every scheme with outlier columns, a note on how many they are.

        Args:
            run: That keeps the numbers.
            schemes: Of all arms, each once.
        """
        tokens = self.tokens.selection.subset(min(_COLUMN_WINDOWS, len(self.tokens.selection)))
        main = World(self.model, self.main, tokens, MAIN)
        some = [scheme for scheme in schemes if _has_outliers(scheme)]

        def share(scheme: str) -> float:
            quantized = quantize(self.model, main.plan(scheme, ""))
            shares = measure_float_columns(quantized, tokens, progress=self.progress)
            return sum(shares.values()) / len(shares)

        shares = COLUMNS.make(run, [self.key, some], lambda: {scheme: share(scheme) for scheme in some}, [PROFILE])
        return {scheme: f"{100 * share:.1f} % of the inputs' columns in float" for scheme, share in shares.items()}


def _has_outliers(scheme: str) -> bool:
    """Whether some columns of the inputs stay in float."""
    low = parse_scheme(scheme)
    return isinstance(low, LinearScheme) and low.input is not None and low.input.outliers is not None


def note_on(name: str, world: World, sites: Sequence[str]) -> str:
    """What else is to be known of a world's arms.

    Args:
        name: Of the world.
        world: It.
        sites: That are protected.
    """
    if name == PREFIX:
        text = world.model.tokenizer.convert_ids_to_tokens(list(world.stats.prefix))
        return f"in float: the first {len(world.stats.prefix)} of every window, {' '.join(map(repr, text))}"
    if name == MAIN or not sites or world.transforms:
        return ""
    streams = {s.name: s.streams[0] for s in world.model.sites()}
    inputs = [(short_name(site), world.stats.stream(streams[site])) for site in sites]
    return "input of " + "; ".join(f"{site}: maximum {s.maximum:.3g}, r {s.ratio:.3g}" for site, s in inputs)


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
    stats = profile(model, tokens, "auto", attention=False, progress=progress)
    return stats if stats.prefix else profile(model, tokens, 1, attention=False, progress=progress)


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
    return {low: choose(list(by_text), by_text.__getitem__)[0] for low, by_text in losses.items()}

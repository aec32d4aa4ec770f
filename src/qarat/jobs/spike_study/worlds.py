"""Worlds: what arms are measured in. A float model, the stats behind its static scales, and the report tokens.

All arms of a world share its stats, its rounded weights and the hidden states in front of the first block in which they
differ; so whatever does not need a world of its own (clipping, outlier columns, protection) is in the main one. Every
answer is on disk before the next question.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import msgspec

from qarat.ground.runtime import Progress
from qarat.jobs.folder import PROFILE, Run, Step
from qarat.jobs.protecting import profile
from qarat.jobs.rewriting import fit_asked, reaching, with_columns
from qarat.model.model import Model
from qarat.model.prefixes import shared_front
from qarat.model.tokens import TokenSet
from qarat.stages.measure.outliers import measure_float_columns
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.quantize import quantize
from qarat.stages.rounding import needs_calibration
from qarat.stages.rounding.inputs import Calibration
from qarat.stages.transforms import TRANSFORMS, parse_transform
from qarat.values.parsing import parse_scheme
from qarat.values.plans import Plan, assign
from qarat.values.records.files import content_hash
from qarat.values.records.rewrites import Rewrites
from qarat.values.records.spike_study import MAIN, Left
from qarat.values.records.streams import ActivationStats
from qarat.values.requests.protect import ProtectRequest
from qarat.values.schemes import LinearScheme
from qarat.values.sites import short_name

PREFIX, OTHER = "prefix", "other calibration"
EACH, EACH_WITH_PREFIX = "BOS each", "BOS each with prefix"
SMOOTH = Step[dict[str, dict[str, str]]]("smooth", ("strengths.json",), dict[str, dict[str, str]])
COLUMNS = Step[dict[str, float]]("columns", ("columns.json",), dict[str, float])
_FOR = " for "  # between a rewrite and the low scheme that it is fitted to, in the name of its world
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


@dataclass(frozen=True, eq=False)
class World:
    """What arms are measured in.

    Attributes:
        name: `MAIN`, `PREFIX`, `OTHER`, `EACH_WITH_PREFIX`, one of `bos_world`, or a transform.
        model: In float.
        stats: Of it, behind static scales; what they leave out is computed in float.
        report: Tokens.
        tokens: What the float loss to compare with goes by: a key of `SpikeStudy.floats`.
        transforms: Done to the model.
        note: What else is to be known of its arms.
        calibration: What roundings look at; None where no arm has one.
    """

    name: str
    model: Model
    stats: ActivationStats
    report: TokenSet
    tokens: str = MAIN
    transforms: tuple[str, ...] = ()
    note: str = ""
    calibration: Calibration | None = None

    @cached_property
    def digest(self) -> str:
        """Content hash of the stats."""
        return content_hash(self.stats)

    def plan(self, scheme: str) -> Plan:
        """Every projection under one scheme, by its spelling."""
        model, prefix = self.model, self.stats.prefix
        plan = assign(model.fingerprint, model.source_bits, model.sites(), scheme, stats=self.digest, prefix=prefix)
        if self.calibration is None or not needs_calibration([parse_scheme(scheme)]):
            return plan
        return msgspec.structs.replace(plan, calibration=self.calibration.tokens.fingerprint)

    def arm_note(self, sites: Sequence[str]) -> str:
        """What else is to be known of its arms, which protect these sites."""
        if self.stats.prefix:
            text = self.model.tokenizer.convert_ids_to_tokens(list(self.stats.prefix))
            return f"in float: the first {len(self.stats.prefix)} of every window, {' '.join(map(repr, text))}"
        if self.name == MAIN or not sites or self.transforms:
            return self.note
        streams = {s.name: s.streams[0] for s in self.model.sites()}
        inputs = [(short_name(site), self.stats.stream(streams[site])) for site in sites]
        return "input of " + "; ".join(f"{site}: maximum {s.maximum:.3g}, r {s.ratio:.3g}" for site, s in inputs)


class Worlds(NamedTuple):
    """What worlds are made from.

    Attributes:
        model: In float.
        tokens: Of every kind.
        main: Stats of the main world.
        key: Everything that decides them.
        seed: Of the labels that rewrites are fitted with.
        rewrites: Those fitted so far, by the world's name.
        progress: Called after every block.
    """

    model: Model
    tokens: SpikeTokens
    main: ActivationStats
    key: object
    seed: int
    rewrites: dict[str, Rewrites]
    progress: Progress

    def open(self, run: Run, name: str) -> World:
        """A world by its name, observed if it has not been; the run keeps its stats."""
        model, tokens, transforms, note = self.model, self.tokens, (), ""
        if name == MAIN:
            return World(MAIN, model, self.main, tokens.report, calibration=Calibration(model, tokens.calibration))
        rules = {bos_world(rule): (*sets, bos_world(rule)) for rule, sets in tokens.bos.items()}
        windows = EACH if name == EACH_WITH_PREFIX else name
        calibration, report, key = rules.get(windows, (tokens.calibration, tokens.report, MAIN))
        if name == OTHER and tokens.other is not None:
            calibration = tokens.other
        if name.partition("/")[0] in TRANSFORMS.names():
            text, _, low = name.partition(_FOR)
            made_from = self.rewrites.get(name, self.main)
            model, transforms = parse_transform(text).apply(model, made_from), (text,)
            note = _words(text, low)
        in_front = name in (PREFIX, EACH_WITH_PREFIX)
        observe = observe_front if in_front else functools.partial(profile, attention=False)
        step = Step[ActivationStats](f"profile {name}", (f"stats-{_file_word(name)}.safetensors",))
        origin = [self.key, calibration.fingerprint]
        stats = step.make(run, origin, lambda: observe(model, calibration, progress=self.progress), [PROFILE])
        return World(name, model, stats, report, key, transforms, note)

    def fit(self, run: Run, text: str, lows: Sequence[str], budget: str) -> dict[str, str]:
        """Rewrites for every low scheme, as they are worlds: low scheme to the name of its world.

        Args:
            run: That keeps what is fitted.
            text: Spelling of the transform; without a number of columns as few as the budget is predicted to allow.
            lows: Low schemes.
            budget: A loss.
        """
        names: dict[str, str] = {}
        for low in lows:
            request = ProtectRequest(reaching(low), budget=budget)
            name = f"{text}{_FOR}{request.low}"
            step = Step[Rewrites](name, (f"{_file_word(name)}.json",))
            more = {"seed": self.seed, "progress": self.progress}
            work = functools.partial(fit_asked, text, self.model, request, self.main, self.tokens.selection, **more)
            rewrites = step.make(run, [self.key, name], lambda work=work: work()[1], [PROFILE])
            names[low] = f"{with_columns(text, rewrites, budget)}{_FOR}{request.low}"
            self.rewrites[names[low]] = rewrites
        return names

    def columns(self, run: Run, schemes: Iterable[str]) -> dict[str, str]:
        """Of every scheme with outlier columns, a note on how many they are.

        Args:
            run: That keeps the numbers.
            schemes: Of all arms, each once.
        """
        tokens = self.tokens.selection.subset(min(_COLUMN_WINDOWS, len(self.tokens.selection)))
        main = World(MAIN, self.model, self.main, tokens)
        some = [scheme for scheme in schemes if _has_outliers(scheme)]

        def share(scheme: str) -> float:
            quantized = quantize(self.model, main.plan(scheme), self.main)
            shares = measure_float_columns(quantized, tokens, progress=self.progress)
            return sum(shares.values()) / len(shares)

        shares = COLUMNS.make(run, [self.key, some], lambda: {scheme: share(scheme) for scheme in some}, [PROFILE])
        return {scheme: f"{100 * share:.1f} % of the inputs' columns in float" for scheme, share in shares.items()}

    def strengths(self, run: Run, autos: Mapping[str, str], lows: Sequence[str]) -> dict[str, dict[str, str]]:
        """Smoothing as it is chosen: method to low scheme to the transform under which everything low loses least.

        Args:
            run: That keeps the choices.
            autos: Method to the spelling of a transform that leaves the strength open.
            lows: Low schemes.
        """

        def choose_all() -> dict[str, dict[str, str]]:
            return {name: self._choose_strengths(auto, lows) for name, auto in autos.items()}

        return SMOOTH.make(run, [self.key, autos, lows], choose_all, [PROFILE])

    def _choose_strengths(self, auto: str, lows: Sequence[str]) -> dict[str, str]:
        """The strength under which each scheme loses least on the selection tokens."""
        selection, progress = self.tokens.selection, self.progress
        losses: dict[str, dict[str, float]] = {low: {} for low in lows}
        for text in parse_transform(auto).choices:
            smoothed = parse_transform(text).apply(self.model, self.main)
            stats = profile(smoothed, self.tokens.calibration, attention=False, progress=progress)
            world = World(text, smoothed, stats, selection)
            for low in lows:
                quantized = quantize(smoothed, world.plan(low), stats)
                losses[low][text] = measure_perplexity(quantized, selection, label=text, progress=progress).loss
        return {low: min(by_text, key=by_text.__getitem__) for low, by_text in losses.items()}


def _words(text: str, low: str) -> str:
    """What copies of inner channels are, of a spelling that does not say it; empty for other transforms."""
    name, _, channels = text.partition("/")
    told = {
        "split": f"the largest inner channels copied, into {channels} more",
        "rewrite": f"streams scaled, inner channels copied into {channels} more, fitted to damage under {low}",
    }
    return told.get(name, "")


def _file_word(name: str) -> str:
    """A name without what paths and shells take apart."""
    return re.sub("[/ =]", "-", name)


def _has_outliers(scheme: str) -> bool:
    """Whether some columns of the inputs stay in float."""
    low = parse_scheme(scheme)
    return isinstance(low, LinearScheme) and low.input is not None and low.input.outliers is not None


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

"""The job of a spike study: steps in a folder, from profile to record; arms in between, each kept as it is measured."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from qarat.ground.disk import write_whole
from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress
from qarat.jobs.estimates import PROTECTING_FORWARDS, price_forwards
from qarat.jobs.folder import CONTINUE, DAMAGE, PROFILE, PROTECT, Run, read_manifest, result_of
from qarat.jobs.protecting import draft_plan, find_plan, profile
from qarat.jobs.spike_study import arms, worlds
from qarat.jobs.spike_study.arms import PlannedArm
from qarat.model.model import Model
from qarat.model.prefixes import shared_front
from qarat.stages.measure.generation import continue_all, new_tokens, prompt_of
from qarat.stages.prices import pricing
from qarat.stages.quantize import quantize
from qarat.stages.spikes import RULES, find_spikes
from qarat.stages.transforms import parse_transform
from qarat.values.budgets import parse_loss_budget
from qarat.values.parsing import input_scheme, parse_scheme
from qarat.values.plans import Plan
from qarat.values.records.files import Record, content_hash, decode_record, encode_record
from qarat.values.records.prices import Menu
from qarat.values.records.spike_study import MAIN, Left, RuleSays, SpikeStudy
from qarat.values.records.streams import ActivationStats
from qarat.values.requests import spike_study as asking
from qarat.values.requests.protect import ProtectRequest
from qarat.values.schemes import LinearScheme

KIND = "spike-study"
RESULT = result_of(KIND)
_NEW_PART = 0.7  # of an arm's blocks, what no other arm has computed; seen with eight blocks
STEPS: dict[str, tuple[str, ...]] = {
    step.name: step.files for step in (PROFILE, DAMAGE, PROTECT, CONTINUE, worlds.SMOOTH, worlds.COLUMNS)
}
"""What each step in front of the arms writes, in the order they are done."""
SHOWN_WITH = (*PROFILE.files, *DAMAGE.files, *PROTECT.files, *CONTINUE.files)
"""What is shown beside the result: what the protected sites were found with, and texts."""
_WHOLE = 4_000_000_000  # bytes of blocks up to which a study generates; arms need one block at a time


class Groundwork(NamedTuple):
    """What the main setting came to before any arm.

    Attributes:
        stats: Of the calibration tokens.
        menu: Prices of the low schemes.
        plan: At the main setting.
        sites: That it protects, those first that are predicted to cost most in the low scheme.
    """

    stats: ActivationStats
    menu: Menu
    plan: Plan
    sites: tuple[str, ...]


class SpikeJob:
    """One study: a model, its tokens, and what is to be compared."""

    def __init__(
        self,
        model: Model,
        tokens: worlds.SpikeTokens,
        request: asking.SpikeRequest,
        *,
        name: str,
        seed: int,
        progress: Progress,
    ) -> None:
        """Check the request against the model; nothing long is done.

        Args:
            model: In float.
            tokens: Of every kind.
            request: Checked already.
            name: That the model was opened by.
            seed: Of labels.
            progress: Told of every stage.

        Raises:
            UserError: A pattern that matches nothing, or a method that was named and does not fit the model.
        """
        model.require_float("study")
        self.model, self.tokens, self.request = model, tokens, request
        self.name, self.seed, self.progress = name, seed, progress
        self.extent = asking.EXTENTS[request.extent]
        self.plan_request = ProtectRequest(asking.MAIN.low, budget=request.budget, sites=request.sites, runtime="any")
        draft_plan(model, self.plan_request)
        self.every = [s for s in model.sites() if s.kind == "projection"]
        self.methods, self.unfit = self._fitting_methods()

    def _fitting_methods(self) -> tuple[dict[str, asking.Method], list[Left]]:
        """The methods that the model can have, and why it cannot have the others."""
        methods, unfit = dict(self.request.asked_methods), list[Left]()
        for name, method in self.request.asked_methods.items():
            if not method.transform or parse_transform(method.transform).needs:
                continue
            try:
                parse_transform(method.transform).apply(self.model, None)
            except UserError as error:
                if name in self.request.methods:
                    raise UserError(f"`methods` {name}: {error}") from None
                del methods[name]
                unfit.append(Left(f"the method {name}", str(error)))
        return methods, unfit

    def work(self) -> dict[str, float]:
        """Tokens that each step sends through the whole model, for an estimate; of arms by what they usually share."""
        calibration, selection, report = (
            t.windows.numel() for t in (self.tokens.calibration, self.tokens.selection, self.tokens.report)
        )
        extent, methods = self.extent, self.methods
        tried = sum(len(parse_transform(m.transform).choices) for m in methods.values() if m.transform)
        elsewhere = 2 * len(self.tokens.bos) + len(extent.compared) * 4
        against = sum(m.fits(s) for m in methods.values() for s in extent.compared)
        tried_arms = len(extent.settings) * (8 + 2 * extent.few) + 2 * against
        tried_arms += len(extent.rich) * len(self.request.asked_orders) * (len(extent.counts) - 1)
        return {
            "profile": calibration,
            "damage": price_forwards(len(extent.rich)) * selection,
            "plan": PROTECTING_FORWARDS * selection,
            "continue": 3 * new_tokens(self.model),
            "smooth": tried * (calibration + len(extent.compared) * selection),
            "arms": (tried_arms + elsewhere) * _NEW_PART * report + elsewhere * calibration,
        }

    def execute(self, run: Run) -> SpikeStudy:
        """Do every step that is not done yet, and put the folder into place."""
        ground = self._find_sites(run)
        self._continue(run, ground)
        every = worlds.Worlds(self.model, self.tokens, ground.stats, self._key(), self.progress)
        autos = {n: m.transform for n, m in self.methods.items() if m.transform.startswith("smooth")}
        strengths = every.strengths(run, autos, [setting.low for setting in self.extent.compared])
        planned, left = self._planned_arms(ground, strengths)
        notes = every.columns(run, dict.fromkeys(a.scheme for a in planned))
        study = self._blank(ground, (*self.tokens.left, *left))
        for world in dict.fromkeys(a.world for a in planned):
            study = self._measure(run, study, every.open(run, world), planned, notes)
        run.step("study", content_hash(study), [RESULT], lambda: write_whole(run.path(RESULT), encode_record(study)))
        run.finish()
        return study

    def _key(self) -> dict[str, object]:
        origin = self.model.provenance(self.tokens.calibration.fingerprint, self.tokens.selection.fingerprint)
        return {"origin": msgspec.to_builtins(origin), "seed": self.seed}

    def _find_sites(self, run: Run) -> Groundwork:
        model, calibration, selection = self.model, self.tokens.calibration, self.tokens.selection
        lows = [s.low for s in self.extent.rich]
        stats = PROFILE.make(
            run, self._key(), lambda: profile(model, calibration, attention=False, progress=self.progress)
        )

        def price() -> Menu:
            schemes = [parse_scheme(low) for low in lows]
            return pricing.price(model, selection, schemes, stats, seed=self.seed, progress=self.progress)

        menu = DAMAGE.make(run, [self._key(), lows], price, [PROFILE])
        most = self.request.most
        plan, protection = PROTECT.make(
            run,
            [self._key(), msgspec.to_builtins(self.plan_request), most],
            lambda: find_plan(model, selection, self.plan_request, stats, menu, most=most, progress=self.progress),
            [PROFILE, DAMAGE],
        )
        damages = menu.damages(plan.low)
        return Groundwork(stats, menu, plan, tuple(sorted(protection.kept, key=lambda site: -damages[site])))

    def _continue(self, run: Run, ground: Groundwork) -> None:
        """The same prompt under float, naive and planned."""
        report, prompt = self.tokens.report, prompt_of(self.model, self.tokens.report)
        stats, sites = ground.stats, ground.sites
        low = worlds.World(MAIN, self.model, stats, report).plan(asking.MAIN.low)
        models = {"float": lambda: self.model, "naive": lambda: quantize(self.model, low, stats)}
        if sites:
            plan = low.with_schemes(dict.fromkeys(sites, LinearScheme()), "protected")
            models["plan"] = lambda: quantize(self.model, plan, stats)
        key = [self._key(), report.fingerprint, prompt]
        if self._too_large():
            run.step(CONTINUE.name, key, (), lambda: None)
        else:
            write = functools.partial(continue_all, self.model, report, models, prompt, self.progress)
            CONTINUE.make(run, key, write, [PROFILE, PROTECT])

    def _too_large(self) -> bool:
        """Whether the model is not to be held in one piece; by its size alone, so that memory changes no result."""
        return self.model.block_bytes() * self.model.blocks > _WHOLE

    def _planned_arms(
        self, ground: Groundwork, strengths: dict[str, dict[str, str]]
    ) -> tuple[list[PlannedArm], list[Left]]:
        """Every arm, and what is left out."""
        stats, menu, plan, sites = ground
        planned: list[PlannedArm] = []
        left = list(self.unfit)
        for setting in self.extent.settings:
            rich = setting in self.extent.rich
            planned += arms.protection_arms(setting, sites)
            planned += arms.control_arms(setting, sites, self.every, self.extent.seeds if rich else self.extent.few)
            for order in self.request.asked_orders if rich else ():
                ranked = arms.rank_sites(order, setting, stats, menu, self.every)
                planned += arms.order_arms(setting, order, ranked, self.extent.counts)
            for name, method in self.methods.items() if setting in self.extent.compared else ():
                if not method.fits(setting) or (method.prefix and not shared_front(self.tokens.calibration)):
                    continue
                world = worlds.PREFIX if method.prefix else strengths.get(name, {}).get(setting.low, method.transform)
                planned += arms.method_arms(setting, name, method, world or MAIN, sites)
        for setting in (asking.MAIN, asking.TWIN):
            for rule in self.tokens.bos:
                planned += arms.world_arms(setting, "bos", worlds.bos_world(rule), sites)
            if self.tokens.other is not None:
                planned += arms.world_arms(setting, "calibration", worlds.OTHER, sites)
        if not shared_front(self.tokens.calibration) and worlds.PREFIX in self.methods:
            left.append(Left("the prefix", "windows do not begin with the same token; give `bos` each"))
        if self._too_large():
            left.append(Left("continuations", f"the model's blocks take more than {_WHOLE // 10**9} GB in one piece"))
        if not sites:
            left.append(Left("protected sites and their controls", f"the planner protects nothing: {plan.note}"))
        return planned, left

    def _blank(self, ground: Groundwork, left: Sequence[Left]) -> SpikeStudy:
        """The study before its first arm."""
        report, selection = self.tokens.report, self.tokens.selection
        low = input_scheme(asking.MAIN.low)
        verdicts = [find_spikes(ground.stats, rule, low) for rule in RULES]
        budget = parse_loss_budget(self.request.budget)
        return SpikeStudy(
            self.model.provenance(report.fingerprint, report.convention), self.name, selection.fingerprint,
            budget.spelling, budget.nats, asking.MAIN.low, asking.TWIN.low, ground.sites, ground.plan.note,
            tuple(RuleSays(v.rule, v.flagged, v.margin, v.statement) for v in verdicts), {}, (), tuple(left),
        )  # fmt: skip

    def _measure(
        self, run: Run, study: SpikeStudy, world: worlds.World, planned: Sequence[PlannedArm], columns: dict[str, str]
    ) -> SpikeStudy:
        """The study with the arms of one more world; what there is lies in the folder, so that a kill loses little."""
        meter = worlds.WorldMeter(run, world)
        floats = dict(study.floats)
        if world.tokens not in floats:
            floats[world.tokens] = meter.float_loss()
        here = [a for a in planned if a.world == world.name]
        notes = {a.name: columns.get(a.scheme, "") or world.arm_note(study.sites) for a in here}
        names = [a.name for a in planned]
        before = study.arms
        for measured in meter.measure(here, notes, self.progress):
            known = {arm.name: arm for arm in (*before, *measured)}
            study = msgspec.structs.replace(
                study,
                floats=floats,
                arms=tuple(known[n] for n in names if n in known),
                missing=tuple(n for n in names if n not in known),
            )
            write_whole(run.path(RESULT), encode_record(study))
        return study


def read_study(folder: Path) -> tuple[dict[str, Record], tuple[str, ...]]:
    """The records of a study by file name, its result first, and what it has not come to.

    Args:
        folder: Of a study, finished or not.

    Raises:
        UserError: If there is none, or a file is damaged.
    """
    done = read_manifest(folder).steps
    records: dict[str, Record] = {}
    missing = (*(step for step in STEPS if step not in done), "every arm")
    if (folder / RESULT).is_file():
        study = records[RESULT] = decode_record(folder / RESULT, SpikeStudy)
        missing = (study.missing_words,) if study.missing else ()
    names = [name for step in STEPS if step in done for name in done[step] if name in SHOWN_WITH]
    return records | {name: decode_record(folder / name) for name in names}, missing

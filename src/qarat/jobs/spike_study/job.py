"""The job of a spike study: steps in a folder, from profile to record; arms in between, each kept as it is measured."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from qarat.ground.disk import write_whole
from qarat.ground.runtime import Progress
from qarat.jobs.estimates import PRICED_ON, PROTECTING_FORWARDS, meter_bytes, price_forwards, whole_bytes
from qarat.jobs.folder import CONTINUE, DAMAGE, PROFILE, PROTECT, Run, read_manifest, result_of
from qarat.jobs.protecting import draft_plan, find_plan, profile
from qarat.jobs.rewriting import FITTING_FORWARDS
from qarat.jobs.spike_study import arms, worlds
from qarat.jobs.spike_study.arm_meter import WorldMeter
from qarat.jobs.spike_study.arms import PlannedArm
from qarat.jobs.spike_study.planning import Asked, fitting_methods
from qarat.model.model import Model
from qarat.model.prefixes import shared_front
from qarat.stages.measure.generation import continue_all, new_tokens, prompt_of
from qarat.stages.prices import pricing
from qarat.stages.quantize import quantize
from qarat.stages.spikes import RULES, find_spikes
from qarat.stages.transforms import TRANSFORMS, parse_transform
from qarat.values.budgets import parse_loss_budget
from qarat.values.parsing import input_scheme, parse_scheme
from qarat.values.plans import Plan, match_sites
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
        # Blocks are not kept, neither here nor by what is made from it: several models follow one another, and bringing
        # blocks in is a small part of going through them.
        self.model, self.tokens, self.request = model.unkept(), tokens, request
        self.name, self.seed, self.progress = name, seed, progress
        self.plan_request = ProtectRequest(asking.MAIN.low, budget=request.budget, sites=request.sites, runtime="any")
        draft_plan(model, self.plan_request)
        self.every = [s for s in model.sites() if s.kind == "projection"]
        methods, self.unfit = fitting_methods(model, request, tokens.calibration.windows.numel())
        front = bool(shared_front(tokens.calibration))
        self.wanted = Asked(request, methods, self.every, tuple(tokens.bos), tokens.other is not None, front)

    def work(self) -> dict[str, float]:
        """Tokens that each step sends through the whole model, for an estimate; of arms by what they usually share."""
        tokens = self.tokens
        calibration, selection, report = (
            t.windows.numel() for t in (tokens.calibration, tokens.selection, tokens.report)
        )
        compared = [setting.low for setting in self.wanted.extent.compared]
        fits, planned = self._likely()
        plans = {(a.world, a.scheme, a.protected, a.protection) for a in planned}
        elsewhere = {a.world for a in planned} - {MAIN}
        tried = sum(len(parse_transform(m.transform).choices) for m in self.wanted.by("stats").values())
        fitted = FITTING_FORWARDS * min(selection, PRICED_ON) * sum(map(len, fits.values()))
        return {
            "profile": calibration,
            "damage": price_forwards(len(self.wanted.priced)) * selection,
            "plan": PROTECTING_FORWARDS * selection,
            "continue": 3 * new_tokens(self.model),
            "smooth": tried * (calibration + len(compared) * selection),
            "rewrite": fitted,
            f"profile {len(elsewhere)} more": len(elsewhere) * calibration,
            f"{len(plans)} arms": (_NEW_PART * len(plans) + 1 + len(tokens.bos)) * report,
        }

    def memory(self) -> int:
        """Bytes held at once beside one float block: while a prompt is continued, or the arms of a world measured."""
        model, whole = self.model, 0 if self._too_large() else whole_bytes(self.model)
        by_world: dict[str, list[PlannedArm]] = {}
        for arm in self._likely()[1]:
            by_world.setdefault(arm.world, []).append(arm)
        outside = sum(t.nbytes for t in model.outside().values())
        measuring = (
            meter_bytes(model, self.tokens.report, len(some), len({a.scheme.partition(" ")[0] for a in some}))
            + (outside if some[0].world.partition("/")[0] in TRANSFORMS.names() else 0)  # its model's own
            for some in by_world.values()
        )
        return max(whole, *measuring)

    def _likely(self) -> tuple[dict[str, dict[str, str]], list[PlannedArm]]:
        """Worlds of rewrites by method and low scheme, and all arms, as they may be before anything is chosen."""
        named = [s.name for pattern in self.request.sites for s in match_sites(pattern, self.every)]
        sites = tuple(dict.fromkeys(named)) or tuple(s.name for s in self.every[: self.request.most])
        compared = [setting.low for setting in self.wanted.extent.compared]
        fits = {name: {low: f"{name}/{low}" for low in compared} for name in self.wanted.by("rewrites")}
        return fits, self.wanted.arms(sites, lambda *_: [s.name for s in self.every], fits)

    def execute(self, run: Run) -> SpikeStudy:
        """Do every step that is not done yet, and put the folder into place."""
        ground = self._find_sites(run)
        self._continue(run, ground)
        every = worlds.Worlds(self.model, self.tokens, ground.stats, self._key(), self.seed, {}, self.progress)
        lows = [setting.low for setting in self.wanted.extent.compared]
        autos = {n: m.transform for n, m in self.wanted.by("stats").items() if parse_transform(m.transform).choices}
        chosen = every.strengths(run, autos, lows)
        for name, method in self.wanted.by("rewrites").items():
            chosen[name] = every.fit(run, method.transform, lows, self.request.budget)
        planned = self.wanted.arms(ground.sites, functools.partial(self._ranked, ground), chosen)
        left = self._left(ground)
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
        lows = self.wanted.priced
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

    def _ranked(self, ground: Groundwork, order: str, setting: asking.Setting) -> list[str]:
        return arms.rank_sites(order, setting, ground.stats, ground.menu, self.every)

    def _left(self, ground: Groundwork) -> list[Left]:
        """What is left out, and why."""
        left = list(self.unfit)
        if not self.wanted.front and worlds.PREFIX in self.wanted.methods:
            why = "windows do not begin with the same token; give `bos` each, or ask for the arms of bos"
            left.append(Left("the prefix", why))
        extent = self.wanted.extent
        for group, there in (("method", extent.compared), ("order", extent.rich), ("ablation", extent.rich)):
            lacking = [s.brief for s in extent.settings if s not in there]
            if lacking and self.request.settings and self.request.asks(group):
                left.append(Left(f"{group}s in {', '.join(lacking)}", "only `full` has them, where they fit"))
        if self._too_large():
            left.append(Left("continuations", f"the model's blocks take more than {_WHOLE // 10**9} GB in one piece"))
        if not ground.sites:
            why = f"the planner protects nothing: {ground.plan.note}"
            left.append(Left("protected sites and their controls", why))
        return left

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
        meter = WorldMeter(run, world)
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

"""The job of a spike study: steps in a folder, from profile to record; arms in between, each kept as it is measured."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import msgspec

from qarat.ground.disk import write_whole
from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress
from qarat.jobs.estimates import SWEEP_FORWARDS, price_forwards
from qarat.jobs.folder import Run
from qarat.jobs.protecting import draft_plan, find_plan, profile
from qarat.jobs.spike_study.arms import (
    Asked,
    control_arms,
    method_arms,
    order_arms,
    protection_arms,
    rank_sites,
    world_arms,
)
from qarat.jobs.spike_study.measuring import WorldMeter, has_outliers
from qarat.jobs.spike_study.worlds import OTHER, PREFIX, SpikeTokens, World, bos_world, choose_strengths, observe_front
from qarat.model.model import Model
from qarat.model.prefixes import shared_front
from qarat.stages.measure.generation import continue_all, new_tokens, prompt_of
from qarat.stages.measure.outliers import measure_float_columns
from qarat.stages.prices import pricing
from qarat.stages.quantize import quantize
from qarat.stages.spikes import RULES, find_spikes
from qarat.stages.transforms import parse_transform
from qarat.values.budgets import parse_loss_budget
from qarat.values.plans import Plan
from qarat.values.records.files import content_hash, decode_record, encode_record
from qarat.values.records.prices import Menu
from qarat.values.records.protection import Protection
from qarat.values.records.scores import Evaluation
from qarat.values.records.spike_study import MAIN, Left, RuleSays, SpikeStudy
from qarat.values.records.streams import ActivationStats
from qarat.values.requests import spike_study as asking
from qarat.values.requests.protect import ProtectRequest
from qarat.values.schemes import LinearScheme, parse_scheme
from qarat.values.sites import short_name

RESULT = "study.json"
_MENU, _PLAN, _SWEEP, _STRENGTHS, _COLUMNS = "menu.json", "plan.json", "sweep.json", "strengths.json", "columns.json"
_TEXTS = "continuations.json"
_NEW_PART = 0.7  # of an arm's blocks, what no other arm has computed; seen with eight blocks
STEPS: dict[str, tuple[str, ...]] = {
    "profile": ("stats-main.safetensors",),
    "damage": (_MENU,),
    "plan": (_PLAN, _SWEEP),
    "continue": (_TEXTS,),
    "smooth": (_STRENGTHS,),
    "columns": (_COLUMNS,),
}
"""What each step in front of the arms writes, in the order they are done."""
FOUND_WITH = (*STEPS["profile"], *STEPS["damage"], *STEPS["plan"])
"""What the protected sites were found with, beside the result."""
SHOWN_WITH = (*FOUND_WITH, *STEPS["continue"])
"""What is shown beside the result."""
_WHOLE = 4_000_000_000  # bytes of blocks up to which a study generates; arms need one block at a time
_COLUMN_WINDOWS = 16  # selection windows in which outlier columns are counted


class SpikeJob:
    """One study: a model, its tokens, and what is to be compared."""

    def __init__(
        self,
        model: Model,
        tokens: SpikeTokens,
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
        self.plan_request = ProtectRequest(asking.MAIN.low, budget=request.budget, sites=request.sites)
        draft_plan(model, self.plan_request)
        self.every = [s for s in model.sites() if s.kind == "projection"]
        self.methods, self.unfit = self._fitting_methods()

    def _fitting_methods(self) -> tuple[dict[str, asking.Method], list[Left]]:
        """The methods that the model can have, and why it cannot have the others."""
        methods, unfit = dict(self.request.asked_methods), list[Left]()
        for name, method in self.request.asked_methods.items():
            if not method.transform or parse_transform(method.transform).needs_stats:
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
        worlds = 2 * len(self.tokens.bos) + len(extent.compared) * 4
        against = sum(m.fits(s) for m in methods.values() for s in extent.compared)
        arms = len(extent.settings) * (8 + 2 * extent.few) + 2 * against
        arms += len(extent.rich) * len(self.request.asked_orders) * (len(extent.counts) - 1)
        return {
            "profile": calibration,
            "damage": price_forwards(len(extent.rich)) * selection,
            "plan": SWEEP_FORWARDS * selection,
            "continue": 3 * new_tokens(self.model),
            "smooth": tried * (calibration + len(extent.compared) * selection),
            "arms": (arms + worlds) * _NEW_PART * report + worlds * calibration,
        }

    def execute(self, run: Run) -> SpikeStudy:
        """Do every step that is not done yet, and put the folder into place."""
        self._find_sites(run)
        sites = self._sites(run)
        self._continue(run, sites)
        strengths = self._strengths(run)
        asked, left = self._asked(run, sites, strengths)
        notes = self._columns(run, asked)
        study = self._blank(run, sites, (*self.tokens.left, *left))
        for world in dict.fromkeys(a.world for a in asked):
            study = self._measure(run, study, world, asked, notes)
        run.step("study", content_hash(study), [RESULT], lambda: write_whole(run.path(RESULT), encode_record(study)))
        run.finish()
        return study

    def _key(self) -> dict[str, object]:
        origin = self.model.provenance(self.tokens.calibration.fingerprint, self.tokens.selection.fingerprint)
        return {"origin": msgspec.to_builtins(origin), "seed": self.seed}

    def _find_sites(self, run: Run) -> None:
        stats = _stats_file(MAIN)
        run.step("profile", self._key(), STEPS["profile"], lambda: self._profile(run))
        lows = [s.low for s in self.extent.rich]

        def price() -> None:
            menu = pricing.price(
                self.model, self.tokens.selection, [parse_scheme(low) for low in lows],
                decode_record(run.path(stats), ActivationStats), seed=self.seed, progress=self.progress,
            )  # fmt: skip
            write_whole(run.path(_MENU), encode_record(menu))

        def plan() -> None:
            seen, menu = decode_record(run.path(stats), ActivationStats), decode_record(run.path(_MENU), Menu)
            found = find_plan(
                self.model, self.tokens.selection, self.plan_request, seen, menu,
                most=self.request.most, progress=self.progress,
            )  # fmt: skip
            for file, record in zip((_PLAN, _SWEEP), found, strict=True):
                write_whole(run.path(file), encode_record(record))

        run.step("damage", [self._key(), lows], STEPS["damage"], price, after=["profile"])
        asked = [self._key(), msgspec.to_builtins(self.plan_request), self.request.most]
        run.step("plan", asked, STEPS["plan"], plan, after=["profile", "damage"])

    def _profile(self, run: Run) -> None:
        stats = profile(self.model, self.tokens.calibration, attention=False, progress=self.progress)
        write_whole(run.path(_stats_file(MAIN)), encode_record(stats))

    def _sites(self, run: Run) -> tuple[str, ...]:
        """The protected sites, those first whose protection buys most."""
        recoveries = sorted(decode_record(run.path(_SWEEP), Protection).recoveries, key=lambda t: -t.damage.nats)
        return tuple(site for trial in recoveries for site in trial.sites)

    def _continue(self, run: Run, sites: tuple[str, ...]) -> None:
        """The same prompt under float, naive and planned."""
        report, prompt = self.tokens.report, prompt_of(self.model, self.tokens.report)
        stats = decode_record(run.path(_stats_file(MAIN)), ActivationStats)
        low = World(self.model, stats, report, MAIN).plan(asking.MAIN.low, content_hash(stats))
        models = {"float": lambda: self.model, "naive": lambda: quantize(self.model, low, stats)}
        if sites:
            plan = low.with_schemes(dict.fromkeys(sites, LinearScheme()), "protected")
            models["plan"] = lambda: quantize(self.model, plan, stats)

        def work() -> None:
            record = continue_all(self.model, report, models, prompt, self.progress)
            write_whole(run.path(_TEXTS), encode_record(record))

        asked = [self._key(), report.fingerprint, prompt]
        if self._too_large():
            run.step("continue", asked, (), lambda: None)
        else:
            run.step("continue", asked, STEPS["continue"], work, after=["profile", "plan"])

    def _too_large(self) -> bool:
        """Whether the model is not to be held in one piece; by its size alone, so that memory changes no result."""
        return self.model.block_bytes() * self.model.blocks > _WHOLE

    def _strengths(self, run: Run) -> dict[str, dict[str, str]]:
        """Smoothing as it was chosen: method to low scheme to the transform's spelling."""
        autos = {n: m.transform for n, m in self.methods.items() if m.transform.startswith("smooth")}
        lows = [s.low for s in self.extent.compared]

        def work() -> None:
            stats = decode_record(run.path(_stats_file(MAIN)), ActivationStats)
            found = {
                name: choose_strengths(self.model, stats, auto, lows, self.tokens, self.progress)
                for name, auto in autos.items()
            }
            write_whole(run.path(_STRENGTHS), msgspec.json.encode(found) + b"\n")

        run.step("smooth", [self._key(), autos, lows], STEPS["smooth"], work, after=["profile"])
        return msgspec.json.decode(run.path(_STRENGTHS).read_bytes(), type=dict[str, dict[str, str]])

    def _asked(
        self, run: Run, sites: tuple[str, ...], strengths: dict[str, dict[str, str]]
    ) -> tuple[list[Asked], list[Left]]:
        """Every arm, and what is left out."""
        stats, menu = decode_record(run.path(_stats_file(MAIN)), ActivationStats), decode_record(run.path(_MENU), Menu)
        asked: list[Asked] = []
        left = list(self.unfit)
        for setting in self.extent.settings:
            rich = setting in self.extent.rich
            asked += protection_arms(setting, sites)
            asked += control_arms(setting, sites, self.every, self.extent.seeds if rich else self.extent.few)
            for order in self.request.asked_orders if rich else ():
                ranked = rank_sites(order, setting, stats, menu, self.every)
                asked += order_arms(setting, order, ranked, self.extent.counts)
            for name, method in self.methods.items() if setting in self.extent.compared else ():
                if not method.fits(setting) or (method.prefix and not shared_front(self.tokens.calibration)):
                    continue
                world = PREFIX if method.prefix else strengths.get(name, {}).get(setting.low, method.transform)
                asked += method_arms(setting, name, method, world or MAIN, sites)
        for setting in (asking.MAIN, asking.TWIN):
            for rule in self.tokens.bos:
                asked += world_arms(setting, "bos", bos_world(rule), sites)
            if self.tokens.other is not None:
                asked += world_arms(setting, "calibration", OTHER, sites)
        if not shared_front(self.tokens.calibration) and PREFIX in self.methods:
            left.append(Left("the prefix", "windows do not begin with the same token; give `bos` each"))
        if self._too_large():
            left.append(Left("continuations", f"the model's blocks take more than {_WHOLE // 10**9} GB in one piece"))
        if not sites:
            why = decode_record(run.path(_PLAN), Plan).note
            left.append(Left("protected sites and their controls", f"the planner protects nothing: {why}"))
        return asked, left

    def _columns(self, run: Run, asked: Iterable[Asked]) -> dict[str, str]:
        """Of every arm with outlier columns, a note on how many they are."""
        schemes = dict.fromkeys(a.scheme for a in asked if has_outliers(a.scheme))
        some = self.tokens.selection.subset(min(_COLUMN_WINDOWS, len(self.tokens.selection)))

        def work() -> None:
            found: dict[str, float] = {}
            stats = decode_record(run.path(_stats_file(MAIN)), ActivationStats)
            for scheme in schemes:
                plan = World(self.model, stats, some, MAIN).plan(scheme, "")
                shares = measure_float_columns(quantize(self.model, plan), some, progress=self.progress)
                found[scheme] = sum(shares.values()) / len(shares)
            write_whole(run.path(_COLUMNS), msgspec.json.encode(found) + b"\n")

        run.step("columns", [self._key(), list(schemes)], STEPS["columns"], work, after=["profile"])
        shares = msgspec.json.decode(run.path(_COLUMNS).read_bytes(), type=dict[str, float])
        return {scheme: f"{100 * share:.1f} % of the inputs' columns in float" for scheme, share in shares.items()}

    def _blank(self, run: Run, sites: tuple[str, ...], left: Sequence[Left]) -> SpikeStudy:
        """The study before its first arm."""
        report, selection = self.tokens.report, self.tokens.selection
        stats = decode_record(run.path(_stats_file(MAIN)), ActivationStats)
        low = parse_scheme(asking.MAIN.low)
        assert isinstance(low, LinearScheme)
        said = [find_spikes(stats, rule, low.input) for rule in RULES]
        plan, budget = decode_record(run.path(_PLAN), Plan), parse_loss_budget(self.request.budget)
        return SpikeStudy(
            self.model.provenance(report.fingerprint, report.convention), self.name, selection.fingerprint,
            budget.spelling, budget.nats, asking.MAIN.low, asking.TWIN.low, sites, plan.note,
            tuple(RuleSays(v.rule, v.flagged, v.margin, v.statement) for v in said), {}, (), tuple(left),
        )  # fmt: skip

    def _measure(
        self, run: Run, study: SpikeStudy, name: str, asked: Sequence[Asked], notes: dict[str, str]
    ) -> SpikeStudy:
        """The study with the arms of one more world; what there is lies in the folder, so that a kill loses little."""
        world = self._world(run, name)
        meter = WorldMeter(run, world)
        floats = dict(study.floats)
        if world.tokens not in floats:
            floats[world.tokens] = _float_loss(world, meter.float_nats())
        here = [a for a in asked if a.world == name]
        said = {a.name: notes.get(a.scheme, "") or self._note(name, world, study.sites) for a in here}
        progress = functools.partial(_of_world, self.progress, name)
        names = [a.name for a in asked]
        before = study.arms
        for found in meter.measure(here, said, progress):
            arms = {arm.name: arm for arm in (*before, *found)}
            study = msgspec.structs.replace(
                study,
                floats=floats,
                arms=tuple(arms[n] for n in names if n in arms),
                missing=tuple(n for n in names if n not in arms),
            )
            write_whole(run.path(RESULT), encode_record(study))
        return study

    def _world(self, run: Run, name: str) -> World:
        """A world by its name, observed if it has not been."""
        tokens = self.tokens
        calibration, report, key, model, transforms = tokens.calibration, tokens.report, MAIN, self.model, ()
        main = decode_record(run.path(_stats_file(MAIN)), ActivationStats)
        for rule, (theirs, reported) in tokens.bos.items():
            if name == bos_world(rule):
                calibration, report, key = theirs, reported, name
        if name == OTHER and tokens.other is not None:
            calibration = tokens.other
        if name.partition("/")[0] in ("smooth", "hadamard"):
            model, transforms = parse_transform(name).apply(model, main), (name,)
        if name == MAIN:
            return World(model, main, report, key)
        observe: Callable[..., ActivationStats] = functools.partial(profile, attention=False)
        if name == PREFIX:
            observe = observe_front
        file = _stats_file(name)

        def work() -> None:
            write_whole(run.path(file), encode_record(observe(model, calibration, progress=self.progress)))

        run.step(f"profile {name}", [self._key(), calibration.fingerprint], [file], work, after=["profile"])
        return World(model, decode_record(run.path(file), ActivationStats), report, key, transforms)

    def _note(self, name: str, world: World, sites: Sequence[str]) -> str:
        """What else is to be known of a world's arms."""
        if name == PREFIX:
            text = world.model.tokenizer.convert_ids_to_tokens(list(world.stats.prefix))
            return f"in float: the first {len(world.stats.prefix)} of every window, {' '.join(map(repr, text))}"
        if name == MAIN or not sites or world.transforms:
            return ""
        streams = {s.name: s.streams[0] for s in self.every}
        seen = [(short_name(site), world.stats.stream(streams[site])) for site in sites]
        return "input of " + "; ".join(f"{site}: maximum {s.maximum:.3g}, r {s.ratio:.3g}" for site, s in seen)


def _stats_file(world: str) -> str:
    return f"stats-{world.replace('/', '-').replace(' ', '-')}.safetensors"


def _float_loss(world: World, nats: tuple[float, ...]) -> Evaluation:
    report = world.report
    origin = world.model.provenance(report.fingerprint, report.convention)
    return Evaluation("float", origin, "", nats, report.predicted, report.sources)


def _of_world(progress: Progress, world: str, stage: str, done: int, total: int) -> None:
    progress(f"{stage}: {world}", done, total)

"""The whole job as steps in a folder: profile, price, plan, quantize, evaluate, continue a prompt.

Each step reads what the steps before it wrote, so a killed run continues where it was, and `qarat show FOLDER` tells
the same story from the files alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from qarat.ground.runtime import Estimate, Progress
from qarat.jobs.estimates import (
    PRICED_ON,
    whole_bytes,
)
from qarat.jobs.exporting import measured_in
from qarat.jobs.float16 import float16_notes
from qarat.jobs.folder import CONTINUE, DAMAGE, PROFILE, PROTECT, Run
from qarat.jobs.open_any import EXPORTING
from qarat.jobs.protecting import draft_plan, find_plan, naive_plan, profile
from qarat.jobs.rewriting import with_rewrites
from qarat.jobs.run_checks import check_exports, prefix_by_number, prompt_ids
from qarat.jobs.run_estimates import continues, estimate_run, run_bytes
from qarat.jobs.run_models import Walked, Walking
from qarat.jobs.run_steps import (
    BEFORE,
    DIVERGE,
    DIVERGED_ON,
    EVALUATE,
    MODEL,
    QUANTIZE,
    WITHOUT,
    Shower,
    show_choices,
    show_continuations,
    show_divergence,
    show_outcome,
    show_stats,
)
from qarat.jobs.spreading import Spread
from qarat.jobs.transforming import apply_again, outline, prepare_in
from qarat.model.model import Model
from qarat.model.native import read_native, write_native
from qarat.model.tokens import TokenSet
from qarat.stages.export.base import export_model
from qarat.stages.measure.divergence import measure_divergence
from qarat.stages.measure.generation import continue_all
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.prices.pricing import price
from qarat.stages.quantize import quantize
from qarat.stages.rounding import check_roundings
from qarat.stages.rounding.inputs import Calibration
from qarat.values.fingerprints import LEFT_ALONE, changes_of
from qarat.values.parsing import parse_scheme
from qarat.values.plans import Plan
from qarat.values.records.files import content_hash
from qarat.values.records.prices import Menu
from qarat.values.records.scores import Continuations, Divergence, Evaluation
from qarat.values.records.streams import ActivationStats
from qarat.values.requests.protect import ProtectRequest


class Pipeline:
    """One run: a model, its three token sets, and what the plan should be."""

    def __init__(
        self,
        model: Model,
        tokens: tuple[TokenSet, TokenSet, TokenSet],
        request: ProtectRequest,
        *,
        seed: int,
        prompt: str | None,
        exports: Sequence[str] = (),
        spread: Spread | None = None,
        progress: Progress,
        show: Shower,
        note: Callable[[str], None],
    ) -> None:
        """Check the request against the model; nothing long is done.

        Args:
            model: In float, as all that follows is of a run.
            tokens: Calibration, selection and report.
            request: What the plan should be.
            seed: Of draws and labels.
            prompt: To be continued.
            exports: Formats to write as well.
            spread: Passes over the model by workers; None for this process alone.
            progress: Told of every stage.
            show: Shows records.
            note: Says a line.

        Raises:
            UserError: A pattern that matches nothing, a scheme that does not fit, a rounding that cannot be made, a
                prompt that is too long, a scheme or a prefix that an export cannot hold, windows or a prompt that do
                not begin with the prefix.
        """
        # The model asked for, which the others are compared with, and the one that is planned and quantized. Blocks are
        # not kept: bringing them in is a small part of going through them.
        self.source = self.model = model.unkept()
        self.source_spread = self.spread = spread
        self.plain, self.seed = request, seed
        self.request, rewrite_note = with_rewrites(model, request)
        if rewrite_note:
            note(rewrite_note)
        request = self.request
        self.calibration, self.selection, self.report = tokens
        self.progress, self.show, self.note = progress, show, note
        self.draft = draft_plan(outline(model, request), request, prefix=prefix_by_number(request, tokens))
        inputs = Calibration(model, self.calibration, len(self.draft.prefix))
        check_roundings(((a.site, a.scheme) for a in self.draft.assignments), inputs.rows)
        self.exports = exports
        check_exports(self.model, self.request, self.draft, exports)
        self.prompt = prompt_ids(model, self.report, prompt, self.draft.prefix)

    def execute(self, run: Run) -> None:
        """Do every step that is not done yet, show what each found, and put the folder into place."""
        request, progress = self.request, self.progress
        before = self._transform(run)
        model = self.model
        key = self._observed(model)
        watched: dict[str, Any] = {"collect": self.spread and self.spread.collect, "progress": progress}
        stats = PROFILE.make(run, key, lambda: profile(model, self.calibration, request.prefix, **watched))
        # Priced, measured and written down, a weight is rounded once.
        inputs = Calibration(model, self.calibration, len(stats.prefix))
        show_stats(run.folder, self.show, self.draft.low)
        for line in float16_notes(model, stats, before and (self.source, before)):
            self.note(line)

        key |= {"selection": self.selection.fingerprint, "low": self.draft.low, "seed": self.seed}
        menu = DAMAGE.make(run, key, lambda: self._price(stats, inputs), [PROFILE])
        key |= {"request": msgspec.to_builtins(request)}
        more: dict[str, Any] = {"calibration": inputs, "spread": self.spread, "progress": progress}
        plan, _ = PROTECT.make(
            run,
            key,
            lambda: find_plan(model, self.selection, request, stats, menu, **more),
            [PROFILE, DAMAGE],
        )
        show_choices(run.folder, self.show)

        run.step("quantize", key, [MODEL], lambda: self._quantize(run, plan, stats, inputs), after=["profile", "plan"])
        key |= {"report": self.report.fingerprint}
        self._measure(run, key, plan, stats, before or stats)
        for format in self.exports:
            work = functools.partial(self._export, run, format)
            run.step(f"export {format}", format, [format], work, after=["quantize", *(s.name for s in EVALUATE)])
        run.finish()

    def _measure(
        self, run: Run, key: dict[str, object], plan: Plan, stats: ActivationStats, before: ActivationStats
    ) -> None:
        """What float, everything low and the plan lose on the report tokens, and how they continue a prompt.

        Args:
            run: Whose steps these are.
            key: Of the plan.
            plan: That was found.
            stats: Of the planned model.
            before: Of the model as it was asked for, to which nothing was done: naive is of that one.
        """
        plain = msgspec.structs.replace(self.plain, transforms=())
        naive = naive_plan(self.source, plain, before)
        source = Walked(self.source, self.source_spread)
        models: dict[str, Walking] = {
            "float": lambda: source,
            "naive": lambda: source.quantized(naive, before, self.calibration),
            # What lies on disk, so that what is measured is what was written.
            "plan": lambda: source.stored(run.path(MODEL), plan),
        }

        def evaluate(label: str, plan: Plan | None, walking: Walking) -> Evaluation:
            model, spread = walking()
            more: dict[str, Any] = {"plan": content_hash(plan) if plan else "", "progress": self.progress}
            losses = spread and spread.losses
            return measure_perplexity(model.unkept(), self.report, label=label, losses=losses, **more)

        behind = [PROFILE, PROTECT, QUANTIZE]
        for (label, model), planned, step in zip(models.items(), (None, naive, plan), EVALUATE, strict=True):
            after = behind if label == "plan" else [PROFILE, PROTECT]
            step.make(run, key, functools.partial(evaluate, label, planned, model), after)
        for label, (planned, model) in self._without_parts(plan, stats, naive, before).items():
            name = f"without {label}"
            WITHOUT[label].make(run, key, functools.partial(evaluate, name, planned, model), [PROFILE, PROTECT])
        show_outcome(run.folder, self.show)
        DIVERGE.make(run, key, lambda: self._diverge(models, (content_hash(naive), content_hash(plan))), behind)
        show_divergence(run.folder, self.show)
        opened = {label: functools.partial(_model_of, walking) for label, walking in models.items()}
        CONTINUE.make(
            run,
            key | {"prompt": self.prompt} | ({} if continues(self.model) else {"continued": False}),
            lambda: self._continue(opened),
            behind,
        )
        show_continuations(run.folder, self.show)

    def _diverge(self, models: Mapping[str, Walking], plans: tuple[str, str]) -> tuple[Divergence, Divergence]:
        """How far from float's the predictions of naive and of the plan are, on the first of the report tokens."""
        tokens = self.report.at_most(DIVERGED_ON)

        def measure(label: str, plan: str) -> Divergence:
            model, spread = models[label]()
            base = models["float"]()
            compare = spread.comparing(base.spread.replica) if spread is not None and base.spread is not None else None
            more: dict[str, Any] = {"plan": plan, "compare": compare, "progress": self.progress}
            return measure_divergence(model.unkept(), base.model, tokens, label=label, **more)

        return measure("naive", plans[0]), measure("plan", plans[1])

    def _without_parts(
        self, plan: Plan, stats: ActivationStats, naive: Plan, before: ActivationStats
    ) -> dict[str, tuple[Plan, Walking]]:
        """What the plan would be without its protection, and without its transforms; nothing where it lacks either.

        Args:
            plan: That was found, with stats of the planned model.
            stats: Those.
            naive: Of the model as it was asked for, with its stats.
            before: Those.
        """
        low = naive_plan(self.model, self.request, stats)
        kept = {a.site.name: a.scheme for a, b in zip(plan.assignments, low.assignments, strict=True) if a != b}
        if not kept or not changes_of(self.model.fingerprint):
            return {}
        protected, tokens = naive.with_schemes(kept, "protected in the plan"), self.calibration
        return {
            "protection": (low, lambda: Walked(self.model, self.spread).quantized(low, stats, tokens)),
            "transforms": (
                protected,
                lambda: Walked(self.source, self.source_spread).quantized(protected, before, tokens),
            ),
        }

    def _observed(self, model: Model) -> dict[str, object]:
        """Everything that decides what observing a model comes to."""
        return {
            "model": model.fingerprint,
            "versions": model.provenance("", "").versions,
            "dtype": model.runtime.dtype,
            "calibration": self.calibration.fingerprint,
            "prefix": self.request.prefix,
        }

    def _transform(self, run: Run) -> ActivationStats | None:
        """Take the transformed model in the place of the one asked for, if any transform is asked for.

        Returns:
            Stats of the one asked for; None where nothing is done to it.
        """
        if not self.request.transforms:
            return None
        source, prefix = self.source, self.request.prefix
        # Only a rule can make an attention product low.
        options: dict[str, Any] = {"attention": bool(self.request.rules), "progress": self.progress}
        options["collect"] = self.spread and self.spread.collect
        before = BEFORE.make(run, self._observed(source), lambda: profile(source, self.calibration, prefix, **options))
        more: dict[str, Any] = {"stats": before, "seed": self.seed, "progress": self.progress}
        done = prepare_in(run, source, self.request, self.calibration, self.selection, **more)
        again = functools.partial(apply_again, transforms=done.transforms, made_from=done.made_from)
        self.model = done.model
        self.spread = self.spread and self.spread.over(self.spread.replica.remade(done.model, again))
        self.note(f"transformed before planning: {', '.join(done.transforms)}")
        if LEFT_ALONE in done.transforms and LEFT_ALONE not in self.request.transforms:
            self.note("nothing is rewritten: it is predicted to buy less than predictions can tell (rewrites-0.json)")
        return before

    def estimate(self) -> Estimate:
        """Time, memory and disk, from shapes and a matrix rate measured now."""
        return estimate_run(
            self.model, self.request, self.draft, (self.calibration, self.selection, self.report), self.exports
        )

    def disk_bytes(self) -> int:
        """What is written."""
        return run_bytes(self.model, self.draft, self.exports)

    def _continue(self, models: Mapping[str, Callable[[], Model]]) -> Continuations:
        """One prompt under every model; none where a whole model has no room."""
        if continues(self.model):
            return continue_all(self.model, self.report, models, self.prompt, self.progress)
        self.note(
            f"the prompt is not continued: a model in one piece takes {whole_bytes(self.model) / 1e9:.1f} GB, and "
            f"`memory` leaves {self.model.memory / 1e9:.1f} GB"
        )
        return continue_all(self.model, self.report, {}, self.prompt, self.progress)

    def _price(self, stats: ActivationStats, calibration: Calibration) -> Menu:
        more: dict[str, Any] = {"calibration": calibration, "prefix": stats.prefix, "seed": self.seed}
        low = parse_scheme(self.request.low)
        more |= {"windows": self.spread and self.spread.prices, "progress": self.progress}
        return price(self.model, self.selection.at_most(PRICED_ON), [low], stats, **more)

    def _quantize(self, run: Run, plan: Plan, stats: ActivationStats, calibration: Calibration) -> None:
        quantized = quantize(self.model.in_float32(), plan, stats, calibration)
        write_native(quantized, plan, run.path(MODEL), progress=self.progress)

    def _export(self, run: Run, format: str) -> None:
        # The blocks as they were written, the checkpoint in float: some formats round its weights anew.
        quantized, plan = read_native(run.path(MODEL), EXPORTING)
        model = Model(self.model.checkpoint, EXPORTING, quantized.unkept().block, self.model.transforms)
        more: dict[str, Any] = {"measured": measured_in(run.folder), "overwrite": True, "progress": self.progress}
        notes = export_model(model, plan, run.path(format), format, **more)
        for note in notes:
            self.note(f"{format}: {note}")


def _model_of(walking: Walking) -> Model:
    return walking().model

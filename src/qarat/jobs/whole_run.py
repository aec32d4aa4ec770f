"""The whole job as steps in a folder: profile, price, plan, quantize, evaluate, continue a prompt.

Each step reads what the steps before it wrote, so a killed run continues where it was, and `qarat show FOLDER` tells
the same story from the files alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from qarat.ground.disk import write_whole
from qarat.ground.errors import UserError
from qarat.ground.runtime import Estimate, Progress, Runtime
from qarat.jobs.estimates import ROUNDING, SWEEP_FORWARDS, estimate, price_forwards, quantized_bytes, stats_bytes
from qarat.jobs.folder import Run, read_manifest
from qarat.jobs.open_any import RUN_MODEL
from qarat.jobs.protecting import draft_plan, find_plan, naive_plan, profile
from qarat.jobs.transforming import outline, prepare_in, tokens_to_prepare
from qarat.model.model import Model
from qarat.model.native import read_native, write_native
from qarat.model.prefixes import check_prefix, leading_tokens
from qarat.model.tokens import TokenSet
from qarat.stages.export.base import check_export, export_model
from qarat.stages.measure.generation import continue_all, new_tokens, prompt_of
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.prices.pricing import price
from qarat.stages.quantize import quantize
from qarat.values.plans import Plan
from qarat.values.records.files import content_hash, decode_record, encode_record
from qarat.values.records.prices import Menu
from qarat.values.records.protection import Protection
from qarat.values.records.scores import Continuations, Evaluation
from qarat.values.records.streams import ActivationStats
from qarat.values.requests.protect import ProtectRequest
from qarat.values.schemes import LinearScheme, parse_scheme

Shower = Callable[..., None]
"""Called with records, and keywords that say how to show them."""

LABELS = ("float", "naive", "plan")
STATS, MENU, PLAN, SWEEP = "stats.safetensors", "menu.json", "plan.json", "sweep.json"
MODEL, TEXTS = RUN_MODEL, "continuations.json"
TITLES = {
    STATS: "Where the spikes are",
    MENU: "What each site would cost, predicted and measured",
    SWEEP: "Protecting the dearest sites, measured",
    PLAN: "The plan",
    TEXTS: "The same prompt, continued greedily",
}
EXPORTING = Runtime(memory=1)
"""How a quantized model is opened to be exported: it is gone through once, so no block is kept."""


def _evaluation(label: str) -> str:
    return f"evaluation-{label}.json"


STEPS: dict[str, tuple[str, ...]] = {
    "profile": (STATS,),
    "damage": (MENU,),
    "plan": (PLAN, SWEEP),
    "quantize": (MODEL,),
    **{f"evaluate {label}": (_evaluation(label),) for label in LABELS},
    "continue": (TEXTS,),
}
"""What each step writes, in the order they are done."""


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
        progress: Progress,
        show: Shower,
        note: Callable[[str], None],
    ) -> None:
        """Check the request against the model; nothing long is done.

        Raises:
            UserError: A pattern that matches nothing, a scheme that does not fit, a prompt that is too long, a scheme
                or a prefix that an export cannot hold, windows or a prompt that do not begin with the prefix.
        """
        # The model asked for, which the others are compared with, and the one that is planned and quantized.
        self.source = self.model = model
        self.request, self.seed = request, seed
        self.calibration, self.selection, self.report = tokens
        self.progress, self.show, self.note = progress, show, note
        self.draft = draft_plan(outline(model, request), request, prefix=self._asked_prefix())
        self.exports = exports
        self._check_exports()
        self.new_tokens = new_tokens(model)
        self.prompt = self._prompt_ids(prompt)

    def execute(self, run: Run) -> None:
        """Do every step that is not done yet, show what each found, and put the folder into place."""
        self._transform(run)
        key = {
            "model": self.model.fingerprint,
            "versions": self.model.provenance("", "").versions,
            "dtype": self.model.runtime.dtype,
            "calibration": self.calibration.fingerprint,
            "prefix": self.request.prefix,
        }
        run.step("profile", key, STEPS["profile"], lambda: self._profile(run))
        _show_stats(run.folder, self.show, self.draft.low)

        key |= {"selection": self.selection.fingerprint, "low": self.draft.low, "seed": self.seed}
        run.step("damage", key, STEPS["damage"], lambda: self._price(run), after=["profile"])
        key |= {"request": msgspec.to_builtins(self.request)}
        run.step("plan", key, STEPS["plan"], lambda: self._plan(run), after=["profile", "damage"])
        _show_choices(run.folder, self.show)

        before = ["profile", "plan"]
        run.step("quantize", key, STEPS["quantize"], lambda: self._quantize(run), after=before)
        key |= {"report": self.report.fingerprint}
        for label in LABELS:
            step = f"evaluate {label}"
            behind = [*before, "quantize"] if label == "plan" else before
            run.step(step, key, STEPS[step], lambda label=label: self._evaluate(run, label), after=behind)
        _show_outcome(run.folder, self.show)
        key |= {"prompt": self.prompt}
        run.step("continue", key, STEPS["continue"], lambda: self._continue(run), after=[*before, "quantize"])
        _show_continuations(run.folder, self.show)
        for format in self.exports:
            work = functools.partial(self._export, run, format)
            run.step(f"export {format}", format, [format], work, after=["quantize"])
        run.finish()

    def _transform(self, run: Run) -> None:
        """Take the transformed model in the place of the one asked for, if any transform is asked for."""
        if self.request.transforms:
            tokens = self.calibration, self.selection
            self.model, words = prepare_in(run, self.source, self.request, *tokens, progress=self.progress)
            self.note(f"transformed before planning: {', '.join(words)}")

    def estimate(self) -> Estimate:
        """Time, memory and disk, from shapes and a matrix rate measured now."""
        calibration, selection, report = (t.windows.numel() for t in (self.calibration, self.selection, self.report))
        prepared = tokens_to_prepare(self.request, calibration, selection)
        work: dict[str, float] = {
            **({"transform": prepared} if prepared else {}),
            "profile": calibration,
            "damage": price_forwards(1) * selection,
            "plan": SWEEP_FORWARDS * selection,
            "quantize": ROUNDING,
            **{f"evaluate {label}": report for label in LABELS},
            "continue": len(LABELS) * self.new_tokens,
        }
        states = max(calibration, selection * (self.model.blocks + 1), report)
        disk = stats_bytes(self.model) + quantized_bytes(self.model, self.draft)
        return estimate(self.model, work, states=states, disk=disk)

    def _profile(self, run: Run) -> None:
        stats = profile(self.model, self.calibration, self.request.prefix, progress=self.progress)
        write_whole(run.path(STATS), encode_record(stats))

    def _price(self, run: Run) -> None:
        stats = decode_record(run.path(STATS), ActivationStats)
        low = parse_scheme(self.request.low)
        menu = price(
            self.model,
            self.selection,
            [low],
            stats,
            calibration=self.calibration,
            prefix=stats.prefix,
            seed=self.seed,
            progress=self.progress,
        )
        write_whole(run.path(MENU), encode_record(menu))

    def _plan(self, run: Run) -> None:
        stats, menu = decode_record(run.path(STATS), ActivationStats), decode_record(run.path(MENU), Menu)
        plan, sweep = find_plan(
            self.model,
            self.selection,
            self.request,
            stats,
            menu,
            calibration=self.calibration,
            progress=self.progress,
        )
        write_whole(run.path(PLAN), encode_record(plan))
        write_whole(run.path(SWEEP), encode_record(sweep))

    def _quantize(self, run: Run) -> None:
        plan, stats = decode_record(run.path(PLAN), Plan), decode_record(run.path(STATS), ActivationStats)
        quantized = quantize(self.model.in_float32(), plan, stats, self.calibration)
        write_native(quantized, plan, run.path(MODEL), progress=self.progress)

    def _asked_prefix(self) -> tuple[int, ...]:
        """The tokens of a prefix that was asked for by number, the same in all windows."""
        if self.request.prefix == "auto":
            return ()
        prefix = leading_tokens(self.calibration, self.request.prefix)
        for tokens in (self.selection, self.report):
            check_prefix(tokens, prefix)
        return prefix

    def _check_exports(self) -> None:
        """Check that whatever is planned can be exported: each site has the draft's scheme or the protection."""
        if self.exports and self.request.prefix == "auto":
            raise UserError("`prefix` auto: no format to export holds a prefix, if one is found; give `prefix` 0")
        model = outline(self.model, self.request)
        protect = parse_scheme(self.request.protection)
        open_sites = [a.site.name for a in self.draft.assignments if str(a.scheme) == self.draft.low]
        protected = self.draft.with_schemes(dict.fromkeys(open_sites, protect), "protected")
        for format in self.exports:
            check_export(model, self.draft, format)
            if protect != LinearScheme():
                check_export(model, protected, format)

    def _export(self, run: Run, format: str) -> None:
        # The blocks as they were written, the checkpoint in float: some formats round its weights anew.
        quantized, plan = read_native(run.path(MODEL), EXPORTING)
        model = Model(self.model.checkpoint, EXPORTING, quantized.block, self.model.transforms)
        notes = export_model(model, plan, run.path(format), format, overwrite=True, progress=self.progress)
        for note in notes:
            self.note(f"{format}: {note}")

    def _evaluate(self, run: Run, label: str) -> None:
        plan = "" if label == "float" else content_hash(self._plan_of(run, label))
        model = self._model(run, label)
        evaluation = measure_perplexity(model, self.report, label=label, plan=plan, progress=self.progress)
        write_whole(run.path(_evaluation(label)), encode_record(evaluation))

    def _continue(self, run: Run) -> None:
        models = {label: functools.partial(self._model, run, label) for label in LABELS}
        record = continue_all(self.model, self.report, models, self.prompt, self.progress)
        write_whole(run.path(TEXTS), encode_record(record))

    def _plan_of(self, run: Run, label: str) -> Plan:
        stats = decode_record(run.path(STATS), ActivationStats)
        return naive_plan(self.model, self.request, stats) if label == "naive" else decode_record(run.path(PLAN), Plan)

    def _model(self, run: Run, label: str) -> Model:
        if label == "float":
            return self.source
        if label == "plan":  # what lies on disk, so that what is measured is what was written
            return read_native(run.path(MODEL), self.model.runtime)[0]
        stats = decode_record(run.path(STATS), ActivationStats)
        return quantize(self.model, self._plan_of(run, label), stats, self.calibration)

    def _prompt_ids(self, prompt: str | None) -> list[int]:
        first = self.report.windows[0].tolist()
        if prompt is None:
            return prompt_of(self.model, self.report)
        ids = self.model.tokenizer(prompt, add_special_tokens=False).input_ids
        # As the windows begin, so does the prompt.
        bos = self.model.tokenizer.bos_token_id
        ids = [bos, *ids] if first[0] == bos else ids
        most = self.model.length - self.new_tokens
        front = self.draft.prefix
        if tuple(ids[: len(front)]) != front:
            raise UserError(
                f"`prompt` does not begin with the prefix {list(front)} that `prefix` {len(front)} asks for"
            )
        if not 1 <= len(ids) <= most:
            follow = f"with {self.new_tokens} to follow"
            raise UserError(f"`prompt` has {len(ids)} tokens; give 1 to {most}, as the model takes {most}, {follow}")
        return ids


def show_run(folder: Path, show: Shower, low: str) -> tuple[str, ...]:
    """Tell the story of a run from its files, as far as it has come.

    Args:
        folder: Of the run, finished or not.
        show: Called with the records.
        low: Scheme under which stats are shown where there is no plan yet.

    Returns:
        The steps that are missing; none if the run is finished.

    Raises:
        UserError: If the folder holds no run.
    """
    done = read_manifest(folder)
    missing = tuple(step for step in STEPS if step not in done)
    if "profile" in done:
        _show_stats(folder, show, decode_record(folder / PLAN, Plan).low if "plan" in done else low)
    if {"damage", "plan"} <= done.keys():
        _show_choices(folder, show)
    elif "damage" in done:
        show(decode_record(folder / MENU, Menu), title=TITLES[MENU])
    if not any(step.startswith("evaluate") for step in missing):
        _show_outcome(folder, show)
    if "continue" in done:
        _show_continuations(folder, show)
    return missing


def _show_stats(folder: Path, show: Shower, low: str) -> None:
    scheme = parse_scheme(low)
    low_input = scheme.input if isinstance(scheme, LinearScheme) else None
    show(decode_record(folder / STATS, ActivationStats), title=TITLES[STATS], low=low_input)


def _show_choices(folder: Path, show: Shower) -> None:
    plan, sweep = decode_record(folder / PLAN, Plan), decode_record(folder / SWEEP, Protection)
    show(decode_record(folder / MENU, Menu), protection=sweep, plan=plan, title=TITLES[MENU])
    show(sweep, title=TITLES[SWEEP])
    show(plan, protection=sweep, title=TITLES[PLAN])


def _show_outcome(folder: Path, show: Shower) -> None:
    evaluations = [decode_record(folder / _evaluation(label), Evaluation) for label in LABELS]
    show(*evaluations, title="What it cost, on the report tokens")


def _show_continuations(folder: Path, show: Shower) -> None:
    show(decode_record(folder / TEXTS, Continuations), title=TITLES[TEXTS])

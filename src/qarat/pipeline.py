"""The whole job as steps in a folder: profile, price, plan, quantize, evaluate, continue a prompt.

Each step reads what the steps before it wrote, so a killed run continues where it was, and `qarat show FOLDER` tells
the same story from the files alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from qarat.conversion import quantize
from qarat.damage import fisher
from qarat.data import TokenSet
from qarat.errors import UserError
from qarat.evaluation.perplexity import measure_perplexity
from qarat.exporters.native import write_native
from qarat.models import Model
from qarat.observation import observe
from qarat.planning import Request, find_plan, naive_plan
from qarat.plans import Plan, assign
from qarat.recordfiles import content_hash, decode_record, encode_record
from qarat.records import ActivationStats, Continuations, Evaluation, Menu, Sweep
from qarat.schemes import LinearScheme, parse_scheme
from qarat.workspace import Estimate, Progress, Run, write_whole

__all__ = ["LABELS", "Pipeline", "Shower", "show_run"]

Shower = Callable[..., None]
"""Called with records, and keywords that say how to show them."""

STATS, MENU, PLAN, SWEEP, MODEL, TEXTS = (
    "stats.safetensors",
    "menu.json",
    "plan.json",
    "sweep.json",
    "model",
    "continuations.json",
)
LABELS = ("float", "naive", "plan")
PROMPT_TOKENS, NEW_TOKENS = 40, 40


class Pipeline:
    """One run: a model, its three token sets, and what the plan should be."""

    def __init__(
        self,
        model: Model,
        tokens: tuple[TokenSet, TokenSet, TokenSet],
        request: Request,
        *,
        seed: int,
        prompt: str | None,
        progress: Progress,
        show: Shower,
    ) -> None:
        """Check the request against the model; nothing long is done.

        Raises:
            UserError: A pattern that matches nothing, a scheme that does not fit, a prompt that is too long.
        """
        self.model, self.request, self.seed = model, request, seed
        self.calibration, self.selection, self.report = tokens
        self.progress, self.show = progress, show
        self._sites = model.sites()
        assign(model.fingerprint, model.source_bits, self._sites, request.low, request.overrides())
        self.prompt = self._prompt_ids(prompt)

    def execute(self, run: Run) -> None:
        """Do every step that is not done yet, show what each found, and put the folder into place."""
        origin = {"model": self.model.fingerprint, **self.model.provenance("", "").versions}
        key = {"origin": origin, "dtype": self.model.runtime.dtype, "calibration": self.calibration.fingerprint}
        low = parse_scheme(self.request.low)
        low_input = low.input if isinstance(low, LinearScheme) else None

        run.step("profile", key, [STATS], lambda: self._profile(run))
        self.show(decode_record(run.path(STATS), ActivationStats), low=low_input, title="Where the spikes are")

        key |= {"selection": self.selection.fingerprint, "low": str(low), "seed": self.seed}
        run.step("price", key, [MENU], lambda: self._price(run))
        key |= {"request": msgspec.to_builtins(self.request)}
        run.step("plan", key, [PLAN, SWEEP], lambda: self._plan(run))
        plan, sweep = decode_record(run.path(PLAN), Plan), decode_record(run.path(SWEEP), Sweep)
        menu = decode_record(run.path(MENU), Menu)
        self.show(menu, sweep=sweep, plan=plan, title="What each site would cost, predicted and measured")
        self.show(sweep, title="Protecting the dearest sites, measured")
        self.show(plan, sweep=sweep, title="The plan")

        run.step("quantize", key, [MODEL], lambda: self._quantize(run))
        key |= {"report": self.report.fingerprint}
        files = [f"evaluation-{label}.json" for label in LABELS]
        for label, file in zip(LABELS, files, strict=True):
            run.step(f"evaluate {label}", key, [file], lambda label=label, file=file: self._evaluate(run, label, file))
        self.show(*(decode_record(run.path(f), Evaluation) for f in files), title="What it cost, on the report tokens")
        run.step("continue", key | {"prompt": self.prompt}, [TEXTS], lambda: self._continue(run))
        self.show(decode_record(run.path(TEXTS), Continuations), title="The same prompt, continued greedily")
        run.finish()

    def estimate(self) -> Estimate:
        """Time, memory and disk, from shapes and a matrix rate measured now."""
        rate = _matrix_rate()
        weights = sum(s.parameters for s in self._sites)
        head = self.model.outside()[f"{self.model.family.head}.weight"].numel()
        calibration, selection, report = (t.windows.numel() for t in (self.calibration, self.selection, self.report))
        per_token = 2 * (weights + head) / rate
        # Units: forwards of the whole model. The sweep measures about ten plans, half of each from a kept prefix.
        work = [("profile", calibration), ("price", 6 * selection), ("plan", 5 * selection)]
        steps = [(name, units * per_token) for name, units in work]
        steps += [(f"evaluate {label}", report * per_token) for label in LABELS]
        hidden = self.model.config.hidden_size * 4
        kept = self.model.block_bytes() * self.model.blocks
        blocks = kept if kept <= self.model.runtime.memory_bytes() else self.model.block_bytes()
        states = max(report, selection * (self.model.blocks + 1)) * hidden
        plan = assign(self.model.fingerprint, self.model.source_bits, self._sites, self.request.low)
        outside = sum(t.numel() for t in self.model.outside().values()) * self.model.source_bits // 8
        return Estimate(tuple(steps), blocks + states, plan.weight_bits() // 8 + outside, rate)

    def _profile(self, run: Run) -> None:
        stats = observe(self.model, self.calibration, progress=self.progress)
        write_whole(run.path(STATS), encode_record(stats))

    def _price(self, run: Run) -> None:
        stats = decode_record(run.path(STATS), ActivationStats)
        low = parse_scheme(self.request.low)
        menu = fisher.price(self.model, self.selection, [low], stats, seed=self.seed, progress=self.progress)
        write_whole(run.path(MENU), encode_record(menu))

    def _plan(self, run: Run) -> None:
        stats, menu = decode_record(run.path(STATS), ActivationStats), decode_record(run.path(MENU), Menu)
        plan, sweep = find_plan(self.model, self.request, stats, menu, self.selection, progress=self.progress)
        write_whole(run.path(PLAN), encode_record(plan))
        write_whole(run.path(SWEEP), encode_record(sweep))

    def _quantize(self, run: Run) -> None:
        plan = decode_record(run.path(PLAN), Plan)
        write_native(self._model(run, "plan"), plan, run.path(MODEL), progress=self.progress)

    def _evaluate(self, run: Run, label: str, file: str) -> None:
        plan = "" if label == "float" else content_hash(self._plan_of(run, label))
        model = self._model(run, label)
        evaluation = measure_perplexity(model, self.report, label=label, plan=plan, progress=self.progress)
        write_whole(run.path(file), encode_record(evaluation))

    def _continue(self, run: Run) -> None:
        texts = {}
        for done, label in enumerate(LABELS):
            self.progress("continue", done, len(LABELS))
            texts[label] = continue_greedily(self._model(run, label), self.prompt, NEW_TOKENS)
        self.progress("continue", len(LABELS), len(LABELS))
        prompt = self.model.tokenizer.decode(self.prompt, skip_special_tokens=True)
        record = Continuations(self.model.provenance(self.report.fingerprint, self.report.convention), prompt, texts)
        write_whole(run.path(TEXTS), encode_record(record))

    def _plan_of(self, run: Run, label: str) -> Plan:
        stats = decode_record(run.path(STATS), ActivationStats)
        return naive_plan(self.model, self.request, stats) if label == "naive" else decode_record(run.path(PLAN), Plan)

    def _model(self, run: Run, label: str) -> Model:
        if label == "float":
            return self.model
        return quantize(self.model, self._plan_of(run, label), decode_record(run.path(STATS), ActivationStats))

    def _prompt_ids(self, prompt: str | None) -> list[int]:
        first = self.report.windows[0].tolist()
        if prompt is None:
            return first[:PROMPT_TOKENS]
        ids = self.model.tokenizer(prompt, add_special_tokens=False).input_ids
        # As the windows begin, so does the prompt.
        bos = self.model.tokenizer.bos_token_id
        ids = [bos, *ids] if first[0] == bos else ids
        if not ids or len(ids) + NEW_TOKENS > self.model.length:
            most = self.model.length - NEW_TOKENS
            raise UserError(f"--prompt has {len(ids)} tokens; 1 to {most} fit the model, with {NEW_TOKENS} to follow")
        return ids


def continue_greedily(model: Model, prompt: list[int], count: int) -> str:
    """The text of the ``count`` tokens that a model finds likeliest, one after the other.

    Args:
        model: In float or quantized.
        prompt: Token ids.
        count: Tokens to add.
    """
    ids = torch.tensor([prompt], device=model.runtime.device)
    module = model.module()
    with torch.no_grad():
        whole = module.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
        )
    return model.tokenizer.decode(whole[0, len(prompt) :], skip_special_tokens=True)


def show_run(folder: Path, show: Shower) -> None:
    """Tell the story of a finished run from its files.

    Raises:
        UserError: If the folder holds no run, or the run is not finished.
    """
    if not (folder / "manifest.json").is_file():
        raise UserError(f"{folder} holds no run of qarat (no manifest.json)")
    plan, sweep = decode_record(folder / PLAN, Plan), decode_record(folder / SWEEP, Sweep)
    low = parse_scheme(plan.low)
    show(decode_record(folder / STATS, ActivationStats), low=low.input if isinstance(low, LinearScheme) else None)
    show(decode_record(folder / MENU, Menu), sweep=sweep, plan=plan)
    show(sweep)
    show(plan, sweep=sweep)
    show(*(decode_record(folder / f"evaluation-{label}.json", Evaluation) for label in LABELS))
    show(decode_record(folder / TEXTS, Continuations))


def _matrix_rate() -> float:
    """Floating-point operations a second of a float32 matrix product, measured for a moment."""
    a = torch.randn(768, 768)
    a @ a
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < 0.2:
        a @ a
        done += 1
    return 2 * 768**3 * done / (time.perf_counter() - begun)

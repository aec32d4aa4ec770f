"""Commands: one value per verb, paths in, paths out; each puts stages together and holds no logic of its own.

A verb is a frozen dataclass: its fields are the options (the command line and its help are made from them), and calling
it runs it. ``qarat run`` is the other verbs in a row, in a folder that survives a kill.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from tyro.conf import Positional, UseAppendAction, arg

from qarat.checkpoints import BUNDLED, describe_reference_models
from qarat.conversion import quantize
from qarat.damage import fisher
from qarat.data import TokenSet, load_token_sets
from qarat.errors import UserError
from qarat.evaluation.perplexity import measure_perplexity
from qarat.exporters.native import is_native, read_native, write_native
from qarat.models import Model, open_model
from qarat.observation import observe
from qarat.pipeline import Pipeline, Shower, show_run
from qarat.planning import LOW, Request, find_plan
from qarat.plans import Plan
from qarat.recordfiles import content_hash, decode_record, encode_record
from qarat.records import ActivationStats, Evaluation, Menu
from qarat.schemes import LinearScheme, parse_scheme
from qarat.workspace import Progress, Run, Runtime, parse_size, write_whole

__all__ = ["Common", "Damage", "Evaluate", "Models", "PlanSites", "Profile", "Quantize", "RunAll", "Show"]


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options that every verb takes."""

    revision: str | None = None
    """Revision of a hub model."""
    calibration: str | None = None
    """Text from which scales come: FILE (.jsonl, .txt) or hub:DATASET. Given alone, it is split into all three sets by
    documents; with none of the three, the text that ships with qarat (Python source) is used."""
    selection: str | None = None
    """Text on which choices are made."""
    report_text: str | None = None
    """Text on which every printed number is measured."""
    samples: int = 64
    """Windows for calibration, and for selection."""
    report_samples: int = 256
    """Windows for the report."""
    length: int | None = None
    """Tokens of a window; default the model's own length, at most 512."""
    bos: Literal["auto", "each", "once", "never"] = "auto"
    """Whether windows begin with BOS: each of them, only where a document begins, never, or as the tokenizer does."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the walk. Published numbers are float32."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice. Results are equal to the byte for equal threads."""
    memory: str = "0"
    """Bound on weights kept in memory, e.g. 8GB; 0 is half of what is free. It changes time, never results."""
    seed: int = 0
    """Of every random choice."""
    json: bool = False
    """Print the record as JSON on stdout, and nothing else there."""
    dry_run: bool = False
    """Check everything, print the steps with estimated time, memory and disk, and stop."""
    config: str | None = None
    """A YAML file with these options by name; what is given on the command line wins."""

    def machine(self) -> Runtime:
        """Where the work runs."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: torch sees no CUDA device; use --device cpu")
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        device = auto if self.device == "auto" else self.device
        return Runtime(device, self.dtype, self.threads, parse_size(self.memory))

    def open(self, name: str) -> Model:
        """Open a float model."""
        return open_model(name, self.machine(), revision=self.revision)

    def tokens(self, model: Model) -> tuple[TokenSet, TokenSet, TokenSet]:
        """Calibration, selection and report sets."""
        return load_token_sets(
            model,
            calibration=self.calibration,
            selection=self.selection,
            report=self.report_text,
            length=self.length,
            bos=self.bos,
            samples=self.samples,
            report_samples=self.report_samples,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class Planning:
    """Options that say what a plan should be."""

    low: str = LOW
    """Scheme of every projection that is not protected."""
    protect: str = "float"
    """What protected sites get: float, fp8, fp8-e5m2, or a scheme."""
    budget: str = "ppl+1%"
    """What may be lost over float: ppl+1% or nats+0.05."""
    by: str = "damage"
    """What chooses the sites: damage (ranked, then confirmed by measurement), or one spike rule alone: snr, ratio,
    massive, super-weight, gap."""
    sites: tuple[str, ...] = ()
    """Protect just these (patterns: '1.down' '*.30.*.down_proj') instead of choosing."""
    set: UseAppendAction[tuple[str, ...]] = ()
    """Ordered overrides 'PATTERN: SCHEME', last match wins; may be given several times."""
    runtime: str = "any"
    """Engine whose fused projections must share a scheme: any, vllm."""

    def request(self) -> Request:
        """The options as a request, checked as far as that needs no model."""
        request = Request(self.low, self.protect, self.budget, self.by, self.sites, self.set, self.runtime)
        request.check()
        return request


Model_ = Annotated[str, arg(metavar="MODEL")]


@dataclass(frozen=True, kw_only=True)
class Profile(Common):
    """Measure every stream of a model in one pass, and say where its spikes are."""

    model: Positional[Model_] = BUNDLED
    """A Hugging Face folder, a reference model's name, or a hub id."""
    out: Annotated[Path, arg(aliases=["-o"])] = Path("stats.safetensors")
    """Where the stats go."""
    low: str = LOW
    """Scheme under which the signal-to-noise ratio is shown."""
    attention: bool = True
    """Whether to observe the operands of the attention products too."""

    def __call__(self, progress: Progress, show: Shower) -> None:
        """Run the verb."""
        low = parse_scheme(self.low)
        model = self.open(self.model)
        stats = observe(model, self.tokens(model)[0], attention=self.attention, progress=progress)
        write_whole(self.out, encode_record(stats))
        show(stats, low=low.input if isinstance(low, LinearScheme) else None)


@dataclass(frozen=True, kw_only=True)
class Damage(Common):
    """Price every scheme at every site, in nats per token, from one forward and one backward pass."""

    model: Positional[Model_] = BUNDLED
    """As for profile."""
    stats: Path = Path("stats.safetensors")
    """From `qarat profile`."""
    out: Annotated[Path, arg(aliases=["-o"])] = Path("menu.json")
    """Where the menu of prices goes."""
    schemes: tuple[str, ...] = (LOW,)
    """Schemes to price: w=… a=… at projections, l=… r=… at attention products."""

    def __call__(self, progress: Progress, show: Shower) -> None:
        """Run the verb."""
        schemes = [parse_scheme(text) for text in self.schemes]
        model = self.open(self.model)
        stats = decode_record(self.stats, ActivationStats)
        menu = fisher.price(model, self.tokens(model)[1], schemes, stats, seed=self.seed, progress=progress)
        write_whole(self.out, encode_record(menu))
        show(menu)


@dataclass(frozen=True, kw_only=True)
class PlanSites(Planning, Common):
    """Decide which sites to protect, by measurement, and write the plan."""

    model: Positional[Model_] = BUNDLED
    """As for profile."""
    stats: Path = Path("stats.safetensors")
    """From `qarat profile`."""
    menu: Path = Path("menu.json")
    """From `qarat damage`, with the low scheme among its schemes."""
    out: Annotated[Path, arg(aliases=["-o"])] = Path("plan.json")
    """Where the plan goes; its measurements go beside it, to NAME.sweep.json."""

    def __call__(self, progress: Progress, show: Shower) -> None:
        """Run the verb."""
        request = self.request()
        model = self.open(self.model)
        stats, menu = decode_record(self.stats, ActivationStats), decode_record(self.menu, Menu)
        plan, sweep = find_plan(model, request, stats, menu, self.tokens(model)[1], progress=progress)
        write_whole(self.out, encode_record(plan))
        write_whole(self.out.with_suffix(".sweep.json"), encode_record(sweep))
        show(plan, sweep=sweep)


@dataclass(frozen=True, kw_only=True)
class Quantize(Common):
    """Quantize a model by a plan and save it as a native folder."""

    model: Positional[Model_] = BUNDLED
    """As for profile."""
    plan: Path = Path("plan.json")
    """From `qarat plan`, or edited by hand."""
    stats: Path = Path("stats.safetensors")
    """From `qarat profile`; the source of static scales."""
    out: Annotated[Path, arg(aliases=["-o"])] = Path("quantized")
    """Folder to write."""
    overwrite: bool = False
    """Replace the folder if it exists."""

    def __call__(self, progress: Progress, show: Shower) -> None:
        """Run the verb."""
        if self.out.exists() and not self.overwrite:
            raise UserError(f"{self.out} exists already; give another -o, or --overwrite to replace it")
        plan, stats = decode_record(self.plan, Plan), decode_record(self.stats, ActivationStats)
        write_native(quantize(self.open(self.model), plan, stats), plan, self.out, progress=progress)
        show(plan)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Common):
    """Measure perplexity on the report tokens, of a float model or of a quantized folder."""

    model: Positional[Model_] = BUNDLED
    """As for profile; or a folder that `qarat quantize` or `qarat run` wrote."""
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Where the evaluation goes; default nowhere."""

    def __call__(self, progress: Progress, show: Shower) -> None:
        """Run the verb."""
        model, label, plan = self._open()
        tokens = self.tokens(model)[2]
        evaluation = measure_perplexity(model, tokens, label=label, plan=plan, progress=progress)
        if self.out is not None:
            write_whole(self.out, encode_record(evaluation))
        show(evaluation)

    def _open(self) -> tuple[Model, str, str]:
        folder = next((f for f in (Path(self.model) / "model", Path(self.model)) if is_native(f)), None)
        if folder is None:
            return self.open(self.model), "float", ""
        model, plan = read_native(folder, self.machine())
        return model, "plan", content_hash(plan)


@dataclass(frozen=True, kw_only=True)
class Show:
    """Print any record: stats, menu, plan, sweep, evaluation; or a whole run's folder."""

    paths: Positional[tuple[Path, ...]]
    """Files; several evaluations are compared with the first."""
    low: str = LOW
    """Scheme under which stats are shown."""
    json: bool = False
    """Print JSON on stdout, and nothing else there."""

    def __call__(self, progress: Progress, show: Shower) -> None:
        """Run the verb."""
        low = parse_scheme(self.low)
        context = {"low": low.input if isinstance(low, LinearScheme) else None}
        if len(self.paths) == 1 and self.paths[0].is_dir():
            show_run(self.paths[0], show)
            return
        records = [decode_record(path) for path in self.paths]
        if len(records) > 1 and all(isinstance(r, Evaluation) for r in records):
            show(*records)
            return
        for record in records:
            show(record, **(context if isinstance(record, ActivationStats) else {}))


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the reference models; a name from the list is accepted wherever a MODEL is."""

    json: bool = False
    """Print JSON on stdout, and nothing else there."""

    def __call__(self, progress: Progress, show: Shower) -> None:
        """Run the verb."""
        show(*describe_reference_models())


@dataclass(frozen=True, kw_only=True)
class RunAll(Planning, Common):
    """Do everything: profile, price, plan by measurement, quantize, evaluate float, naive and plan."""

    model: Positional[Model_] = BUNDLED
    """A Hugging Face folder, a reference model's name, or a hub id; default the model that ships with qarat."""
    out: Annotated[Path, arg(aliases=["-o"])]
    """Folder to write. Work goes on in OUT.partial; after a kill the same command continues it."""
    overwrite: bool = False
    """Replace OUT if it exists."""
    prompt: str | None = None
    """Text that float, naive and plan continue; default the beginning of the report text."""

    def __call__(self, progress: Progress, show: Shower) -> None:
        """Run the verb."""
        request = self.request()
        run = None if self.dry_run else Run(self.out, overwrite=self.overwrite)
        model = self.open(self.model)
        pipeline = Pipeline(
            model, self.tokens(model), request, seed=self.seed, prompt=self.prompt, progress=progress, show=show
        )
        if run is None:
            show(pipeline.estimate())
            return
        pipeline.execute(run)

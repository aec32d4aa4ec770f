"""Options of the verbs that do one step each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

from qarat.ground.errors import UserError
from qarat.stages.prices import DEFAULT, METRICS
from qarat.surfaces.options.groups import IntoFile, OfModel, Runners, Transforms, check_given
from qarat.values.parsing import parse_scheme_in
from qarat.values.plans import Plan
from qarat.values.records.files import decode_record
from qarat.values.requests.protect import ProtectRequest
from qarat.values.schemes import LOW, Scheme, is_static

STATS = Path("stats.safetensors")


class ProfileOptions(OfModel, IntoFile, frozen=True, kw_only=True):
    """Measure every activation stream in one pass, and say where the spikes are.

    Attributes:
        out: Where the stats go.
        low: Scheme under which the signal-to-noise ratio is shown.
        attention: Leave the operands of the attention products, and what goes into the cache, out.
        prefix: Leave so many tokens in front of each window out, to be kept in float; auto: as many as hold spikes.
        overwrite: Replace FILE if it is there.
    """

    out: Path = STATS
    low: str = LOW
    attention: bool = True
    prefix: int | Literal["auto"] = 0
    overwrite: bool = False
    transforms: Transforms = Transforms()
    runners: Runners = Runners()

    def check(self) -> None:
        """Refuse what is no scheme."""
        super().check()
        parse_scheme_in("low", self.low)


class DamageOptions(OfModel, IntoFile, frozen=True, kw_only=True):
    """Predict what each scheme would cost at each site, in nats per token.

    Attributes:
        stats: Stats from `qarat profile`.
        out: Where the menu of prices goes.
        schemes: Schemes to price: 'w=... a=...' at projections, 'l=... r=...' at attention products,
            'c=...' at caches of keys and values.
        metrics: What prices come from, or all.
        alone: Measure every site alone as well, under the first scheme, and say how well each metric predicts that.
        overwrite: Replace FILE if it is there.
    """

    LISTED: ClassVar[dict[str, Any]] = {"metrics": METRICS}

    stats: Path = STATS
    out: Path = Path("menu.json")
    schemes: tuple[str, ...] = (LOW,)
    metrics: tuple[str, ...] = (DEFAULT,)
    alone: bool = False
    overwrite: bool = False
    transforms: Transforms = Transforms()
    runners: Runners = Runners()

    def check(self) -> None:
        """Refuse what is no scheme or metric, and stats that are not there."""
        super().check()
        schemes = [parse_scheme_in("schemes", scheme) for scheme in self.schemes]
        for name in self.metrics:
            if name != "all":
                METRICS.check(name)
        _check_stats(self.stats, schemes)

    @property
    def trials(self) -> Path:
        """Where each site's loss goes as it is measured."""
        return self.out.with_suffix(".trials.jsonl")

    @property
    def measured(self) -> Path:
        """Where they go once all are there."""
        return self.out.with_suffix(".measured.json")

    @property
    def begun(self) -> bool:
        """Whether measuring was cut short: the same command then goes on, and writes the same prices again."""
        return self.alone and self.trials.is_file() and not self.measured.exists()


class PlanOptions(OfModel, IntoFile, frozen=True, kw_only=True):
    """Choose the sites to protect, by prices and a few measured plans, and write the plan.

    Attributes:
        stats: Stats from `qarat profile`.
        menu: Prices from `qarat damage`, the low scheme among them.
        out: Where the plan goes; its measurements go beside it, to NAME.protection.json.
        overwrite: Replace FILE if it is there.
    """

    METAVARS: ClassVar[dict[str, str]] = {"menu": "FILE"}
    HIDDEN: ClassVar[tuple[str, ...]] = ("ProtectRequest.prefix", "ProtectRequest.transforms")

    stats: Path = STATS
    menu: Path = Path("menu.json")
    out: Path = Path("plan.json")
    overwrite: bool = False
    planning: ProtectRequest = ProtectRequest(prefix="auto")  # as the stats have it
    transforms: Transforms = Transforms()
    runners: Runners = Runners()

    def check(self) -> None:
        """Refuse stats and prices that are not there."""
        super().check()
        check_given(self.stats, "profile")
        check_given(self.menu, "damage")


class QuantizeOptions(OfModel, frozen=True, kw_only=True):
    """Quantize a model by a plan, and write it as a folder.

    Attributes:
        plan: From `qarat plan`; may be edited by hand.
        stats: Stats from `qarat profile`; static scales come from them.
        tune: Steps by which what the plan leaves in float is tuned, on calibration text, to predict as the float model;
            what is low stays as it is rounded. (default: none)
        out: Folder to write.
        overwrite: Replace FOLDER if it is there.
    """

    METAVARS: ClassVar[dict[str, str]] = {"out": "FOLDER"}

    plan: Path = Path("plan.json")
    stats: Path = STATS
    tune: int = 0
    out: Path = Path("quantized")
    overwrite: bool = False
    transforms: Transforms = Transforms()

    def check(self) -> None:
        """Refuse a plan that is none, and stats that are not there."""
        super().check()
        check_given(self.plan, "plan")
        if self.tune < 0:
            raise UserError(f"`tune` {self.tune}: give a number of steps, or 0 for none")
        _check_stats(self.stats, [a.scheme for a in decode_record(self.plan, Plan).assignments])


def _check_stats(path: Path, schemes: Iterable[Scheme]) -> None:
    """Refuse stats that are not there: only schemes without static scales do without, where none are named."""
    if path != STATS or any(map(is_static, schemes)):
        check_given(path, "profile")

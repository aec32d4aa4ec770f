"""Options of the verbs that do one step each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from qarat.stages.prices import DEFAULT, METRICS
from qarat.surfaces.options.groups import OfModel, Transforms
from qarat.values.requests.protect import ProtectRequest
from qarat.values.schemes import LOW


class ProfileOptions(OfModel, frozen=True, kw_only=True):
    """Measure every activation stream in one pass, and say where the spikes are.

    Attributes:
        out: Where the stats go.
        low: Scheme under which the signal-to-noise ratio is shown.
        attention: Leave the operands of the attention products out.
        prefix: Leave so many tokens in front of each window out, to be kept in float; auto: as many as hold spikes.
    """

    out: Path = Path("stats.safetensors")
    low: str = LOW
    attention: bool = True
    prefix: int | Literal["auto"] = 0
    transforms: Transforms = Transforms()


class DamageOptions(OfModel, frozen=True, kw_only=True):
    """Predict what each scheme would cost at each site, in nats per token.

    Attributes:
        stats: Stats from `qarat profile`.
        out: Where the menu of prices goes.
        schemes: Schemes to price: 'w=... a=...' at projections, 'l=... r=...' at attention products.
        metrics: What prices come from, or all.
        check: Measure every site alone as well, under the first scheme, and say how well each metric predicts that.
    """

    LISTED: ClassVar[dict[str, Any]] = {"metrics": METRICS}

    stats: Path = Path("stats.safetensors")
    out: Path = Path("menu.json")
    schemes: tuple[str, ...] = (LOW,)
    metrics: tuple[str, ...] = (DEFAULT,)
    check: bool = False
    transforms: Transforms = Transforms()


class PlanOptions(OfModel, frozen=True, kw_only=True):
    """Choose the sites to protect, by prices and a few measured plans, and write the plan.

    Attributes:
        stats: Stats from `qarat profile`.
        menu: Prices from `qarat damage`, the low scheme among them.
        out: Where the plan goes; its measurements go beside it, to NAME.protection.json.
    """

    METAVARS: ClassVar[dict[str, str]] = {"menu": "FILE"}
    HIDDEN: ClassVar[tuple[str, ...]] = ("ProtectRequest.prefix", "ProtectRequest.transforms")

    stats: Path = Path("stats.safetensors")
    menu: Path = Path("menu.json")
    out: Path = Path("plan.json")
    planning: ProtectRequest = ProtectRequest(prefix="auto")  # as the stats have it
    transforms: Transforms = Transforms()


class QuantizeOptions(OfModel, frozen=True, kw_only=True):
    """Quantize a model by a plan, and write it as a folder.

    Attributes:
        plan: From `qarat plan`; may be edited by hand.
        stats: Stats from `qarat profile`; static scales come from them.
        out: Folder to write.
        overwrite: Replace FOLDER if it is there.
    """

    METAVARS: ClassVar[dict[str, str]] = {"out": "FOLDER"}

    plan: Path = Path("plan.json")
    stats: Path = Path("stats.safetensors")
    out: Path = Path("quantized")
    overwrite: bool = False
    transforms: Transforms = Transforms()

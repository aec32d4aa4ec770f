"""What a spike study is asked to compare, and how much of it.

Settings are bits × weights × inputs. The main one, with its twin of 6 bits, is where all arms are: one static scale per
input tensor is what engines compute fastest and what spikes hurt most. In the others the question is only whether
protection and its controls say the same.

| extent | settings | controls (seeds) | k in the order of a rule | methods |
| --- | --- | --- | --- | --- |
| quick | main and twin | 2 | 0, 1, 2 | main and twin |
| usual | all twelve | 5 at main and twin, 2 elsewhere | 0, 1, 2, 3, 4, 8 at main and twin | main and twin |
| full | all twelve | 5 | the same at every static setting | all twelve, clips and the prefix at the static ones |

One part alone low is where orders are.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.values.budgets import parse_loss_budget

Inputs = Literal["tensor/static", "tensor/dynamic", "token"]


class Setting(NamedTuple):
    """How the low sites are kept.

    Attributes:
        bits: Of weights and inputs.
        weights: What shares a weight's scale, ``tensor`` or ``channel``.
        inputs: What shares an input's scale, and when it is known.
    """

    bits: int
    weights: str = "channel"
    inputs: Inputs = "tensor/static"

    @property
    def low(self) -> str:
        """The low scheme's spelling."""
        return self.with_input("")

    @property
    def static(self) -> bool:
        """Whether the inputs' scales come from calibration."""
        return self.inputs == "tensor/static"

    @property
    def brief(self) -> str:
        """A word for it: ``8/channel/static``, ``6/tensor/token``."""
        return f"{self.bits}/{self.weights}/{self.inputs.removeprefix('tensor/')}"

    def with_input(self, more: str) -> str:
        """The low scheme with another word for the input, such as ``/mse``."""
        return f"w=int{self.bits}/{self.weights} a=int{self.bits}/{self.inputs}{more}"


MAIN, TWIN = Setting(8), Setting(6)
_EVERY = tuple(
    Setting(bits, weights, inputs)
    for bits in (8, 6)
    for weights in ("channel", "tensor")
    for inputs in ("tensor/static", "tensor/dynamic", "token")
)


class Extent(NamedTuple):
    """How much is measured.

    Attributes:
        settings: In which protection and its controls are.
        rich: Of those, in which orders and ablations are, and as many controls as ``seeds``.
        compared: Of those, in which methods are, where they fit (`Method.fits`).
        seeds: Random controls of a rich setting.
        few: Random controls of the others.
        counts: How many sites are protected in the order of a rule.
    """

    settings: tuple[Setting, ...]
    rich: tuple[Setting, ...]
    compared: tuple[Setting, ...]
    seeds: int
    few: int
    counts: tuple[int, ...]


EXTENTS = {
    "quick": Extent((MAIN, TWIN), (MAIN, TWIN), (MAIN, TWIN), 2, 2, (0, 1, 2)),
    "usual": Extent(_EVERY, (MAIN, TWIN), (MAIN, TWIN), 5, 2, (0, 1, 2, 3, 4, 8)),
    "full": Extent(_EVERY, tuple(s for s in _EVERY if s.static), _EVERY, 5, 5, (0, 1, 2, 3, 4, 8)),
}


class Method(NamedTuple):
    """A general-purpose method, or the prefix.

    Attributes:
        transform: Done to the float model before; empty for none.
        clip: What is added to the spelling of a static input.
        outliers: Inputs with a scale per token, or per tensor, whose outlier columns stay in float.
        prefix: Whether the tokens in front are computed in float.
        rounding: What is added to the spelling of the weight, such as ``/round-gptq``.
    """

    transform: str = ""
    clip: str = ""
    outliers: Inputs | None = None
    prefix: bool = False
    rounding: str = ""

    def fits(self, setting: Setting) -> bool:
        """Whether there is something to compare: clips and the prefix are for scales found in calibration."""
        return setting.static or not (self.clip or self.prefix)

    def scheme(self, setting: Setting) -> str:
        """What the low sites get in a setting."""
        if self.outliers is not None:
            return setting._replace(inputs=self.outliers).with_input("/outliers-6")
        weight, _, given = setting.with_input(self.clip).partition(" ")
        return f"{weight}{self.rounding} {given}"


METHODS = {
    "smooth": Method("smooth/auto"),  # SmoothQuant: inputs behind norms, as published
    "smooth-all": Method("smooth/auto/all"),  # inputs of o and down too
    "llm-int8": Method(outliers="token"),  # LLM.int8(): per token, outlier columns in float
    "llm-int8-tensor": Method(outliers="tensor/dynamic"),
    "hadamard": Method("hadamard"),  # a rotation in front of down
    "split": Method("split/64"),  # the largest inner channels copied
    "rewrite": Method("rewrite"),  # scales and copies fitted to damage, as `qarat run` does
    "clip-p99.9": Method(clip="/p99.9"),  # inputs clipped at 99.9 %
    "clip-p99.99": Method(clip="/p99.99"),
    "clip-mse": Method(clip="/mse"),  # by mean squared error
    "prefix": Method(prefix=True),  # first tokens in float
}
_ROUND = "round-"
ARMS = ("protection", "control", "order", "method", "ablation", "bos", "calibration")
"""Groups of arms beside naive."""
ORDERS = ("damage", "snr", "ratio", "maximum")
"""What sites are protected in the order of: Fisher damage per parameter, or a statistic of the stream they read."""


class SpikeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is compared, and how much of it.

    Attributes:
        extent: How much is measured: quick, usual or full.
        arms: Only these beside naive: protection, control, order, method, ablation (attention, the MLP or one kind of
            projection alone low), bos (other BOS rules, and a prefix under each where these windows can have none),
            calibration. (default: all)
        settings: Only these, such as 8/channel/static, 6/tensor/dynamic or 8/channel/token. (default: as many as the
            extent has)
        methods: Only these: smooth, smooth-all, llm-int8, llm-int8-tensor, hadamard, split, rewrite, clip-p99.9,
            clip-p99.99, clip-mse, prefix; or transforms, such as smooth/0.8/all; or roundings of weights,
            such as round-gptq. (default: all that have a name here)
        orders: Protect in the order of only these: damage, snr, ratio, maximum. (default: all)
        sites: Protect just these instead of what the planner chooses, such as 1.down.
        budget: What may be lost over float: a perplexity (ppl+1%) or nats per token (nats+0.05).
        most: Sites that the planner may protect, the dearest a parameter.
    """

    extent: str = "usual"
    arms: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    orders: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    budget: str = "ppl+1%"
    most: int = 3

    def check(self) -> None:
        """Check everything that can be checked without a model.

        Raises:
            UserError: Unknown words (all of them, with the nearest ones), or a malformed budget.
        """
        known = (
            ("extent", [self.extent], EXTENTS),
            ("arms", self.arms, ARMS),
            ("settings", self.settings, [setting.brief for setting in _EVERY]),
            ("methods", [m for m in self.methods if not m.startswith(_ROUND) and "/" not in m], METHODS),
            ("orders", self.orders, ORDERS),
        )
        unknown = [
            f"`{field}`: unknown {word!r}; {nearest_names(word, list(names))}"
            for field, given, names in known
            for word in given
            if word not in names
        ]
        if unknown:
            raise UserError("\n".join(unknown))
        if self.most < 1:
            raise UserError(f"`most` {self.most}: give at least 1")
        parse_loss_budget(self.budget)

    @property
    def asked_methods(self) -> dict[str, Method]:
        """The methods, by name, in the order of `METHODS`; then transforms, and roundings."""
        if not self.asks("method"):
            return {}
        known = {name: method for name, method in METHODS.items() if not self.methods or name in self.methods}
        rounded = {text: Method(rounding=f"/{text}") for text in self.methods if text.startswith(_ROUND)}
        return known | {text: Method(text) for text in self.methods if "/" in text} | rounded

    def asks(self, group: str) -> bool:
        """Whether arms of a group are to be measured."""
        return group == "naive" or not self.arms or group in self.arms

    @property
    def asked_extent(self) -> Extent:
        """How much is measured; of what is asked for by name, all there is."""
        extent = EXTENTS[self.extent]
        if not self.settings:
            return extent
        chosen = [setting for setting in _EVERY if setting.brief in self.settings]
        rich, compared = (tuple(s for s in chosen if s in where) for where in (extent.rich, extent.compared))
        return extent._replace(settings=tuple(chosen), rich=rich, compared=compared)

    @property
    def asked_orders(self) -> tuple[str, ...]:
        """The orders, in the order of `ORDERS`."""
        return tuple(order for order in ORDERS if not self.orders or order in self.orders)

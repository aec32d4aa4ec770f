"""A made-up model whose losses are known, so that every choice can be held against the truth."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, product

import numpy as np
import pytest
from msgspec.structs import replace

from qarat.stages.choose.space import Space, make_space
from qarat.stages.choose.trials import PlanMeter, TrialLog
from qarat.values.parsing import parse_scheme
from qarat.values.plans import Plan, assign
from qarat.values.records.origin import Provenance
from qarat.values.records.prices import Menu, MenuEntry
from qarat.values.records.scores import Evaluation, Failure
from qarat.values.schemes import LinearScheme
from qarat.values.sites import Site
from qarat.values.units import Option

LOW, MIDDLE = "w=int4/channel", "w=int8/channel"
PROVENANCE = Provenance("m", "t", "windows-11-bos", {})
PREDICTED, FLOAT_LOSS = 10, 2.0
BLANK = Evaluation("x", PROVENANCE, "", (), (PREDICTED,) * 5, tuple("aabbc"))
SHAPES = {"q_proj": (8, 8), "up_proj": (24, 8), "down_proj": (8, 24)}


class Fake:
    """Sites of some blocks; a low site costs a random amount, a middle one a tenth, and neighbours cost more together.

    Attributes:
        measured: How many plans were measured.
        broken: Site that cannot be measured low.
    """

    def __init__(
        self,
        seed: int = 0,
        together: float = 0.0,
        menu: Sequence[str] = (LOW, "float"),
        shapes: Mapping[str, tuple[int, int]] = SHAPES,
        blocks: int = 4,
    ) -> None:
        self.sites = [
            Site(f"model.layers.{b}.mlp.{leaf}", b, "projection", (f"model.layers.{b}.{leaf}_in",), shape)
            for b, (leaf, shape) in product(range(blocks), shapes.items())
        ]
        draw = np.random.default_rng(seed).lognormal(-4, 1, len(self.sites)).tolist()
        self.costs = dict(zip((s.name for s in self.sites), draw, strict=True))
        self.together, self.measured, self.broken = together, 0, ""
        self.menu = [parse_scheme(text) for text in menu]
        self.base = assign("m", 16, self.sites, menu[0])

    def space(self, *, layers: bool = False, axis: str = "") -> Space:
        options = [Option(scheme) for scheme in self.menu if isinstance(scheme, LinearScheme)]
        return make_space(self.base, options, layers=layers, axis=axis or ("ratio" if len(options) == 2 else "bits"))

    def price(self, name: str, scheme: object) -> float:
        return self.costs[name] * {LOW: 1.0, MIDDLE: 0.1, "float": 0.0}[str(scheme)]

    def prices(self) -> Menu:
        entries = [MenuEntry(s.name, str(x), self.price(s.name, x), 0.0) for s in self.sites for x in self.menu[:-1]]
        return Menu(PROVENANCE, "made-up", "", tuple(entries))

    def loss(self, plan: Plan) -> float:
        """Nats over float."""
        alone = [self.price(a.site.name, a.scheme) for a in plan.assignments]
        return sum(alone) + self.together * sum(x * y for x, y in pairwise(alone))

    def meter(self, log: TrialLog | None = None) -> PlanMeter:
        """Losses of plans, each measured once."""
        return PlanMeter(self.measure, log or TrialLog(None, {}), BLANK)

    def measure(self, plans: Sequence[Plan]) -> Iterator[tuple[int, Evaluation | Failure]]:
        for i, plan in enumerate(plans):
            self.measured += 1
            if self.broken and str(plan[self.broken]) == LOW:
                yield i, Failure("", "the loss of window 0 is nan")
                continue
            nats = tuple(PREDICTED * (FLOAT_LOSS + w / 8 + self.loss(plan) * (1 + w / 50)) for w in range(-2, 3))
            yield i, replace(BLANK, nats=nats)


@pytest.fixture
def fake() -> type[Fake]:
    return Fake

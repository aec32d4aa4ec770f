"""The recovery curve: what is lost with the first k candidates protected."""

from __future__ import annotations

from collections.abc import Sequence

from qarat.surfaces.page.figures.base import Figure
from qarat.surfaces.page.figures.curve import curve
from qarat.surfaces.page.figures.series import Axis, Dot, Series
from qarat.surfaces.tables.choices import added
from qarat.surfaces.tables.wording import fixed
from qarat.values.records.prices import Protection


def recovery(sweep: Protection, controls: Sequence[Series] = ()) -> Figure:
    """Loss over float against the number of protected candidates, with the budget.

    Args:
        sweep: Trial k protects the first k candidates.
        controls: The same for other orders or for random sites, in k and nats.
    """
    last = len(sweep.trials) - 1
    dots = tuple(
        Dot(k, t.damage.nats, y_range=t.damage.interval, label=label or "nothing protected")
        for k, (t, label) in enumerate(added(sweep))
    )
    naive, final = sweep.trials[0].damage.nats, sweep.trials[-1].damage.nats
    caption = (
        f"k = 0 protects nothing and loses {fixed(naive, 4)} nats; k = {last} loses {fixed(final, 4)}. Bars: 95 %, "
        f"paired with float on the selection tokens. Candidates in the order of {sweep.order}."
    )
    return curve(
        "recovery",
        "Loss with the first k candidates protected",
        caption,
        [Series("this plan's order", dots), *controls],
        Axis("protected candidates, k", ticks=tuple(range(0, last + 1, max(1, last // 12))), digits=0),
        Axis("loss over float (nats per token)", digits=4, zero=True),
        noun="adds",
        limit=(sweep.budget_nats, f"budget {sweep.budget}"),
    )

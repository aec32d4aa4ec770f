"""How spikes grow: `python reference/growth.py` draws `docs/spikes-*.svg` and prints two tables.

From what training recorded in `training.json` of every reference model that is there; nothing is measured, so run it
again when another model is finished. Every 50 steps training looks at the input of every block's `down_proj` on four
windows it never trains on: the maximum, r, and the position of the largest token (`train.watch`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt
import vl_convert

from qarat.ground.disk import write_whole
from qarat.model.reference_models import reference_models
from qarat.surfaces.page.figures.base import log_ticks
from qarat.surfaces.page.figures.curve import Axis, Dot, Series, curve
from qarat.surfaces.page.rendering import FILE_FONT, LIGHT, to_svg, vega_config

DOCS = Path(__file__).parents[1] / "docs"
SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)  # of training, at which the second table looks
PANEL, COLUMNS = (195, 130), 3  # pixels of a panel, and panels side by side
LARGEST, OTHERS = "the one that is the largest at the end", "those of the other blocks"


class Peak(NamedTuple):
    """The input of one block's `down_proj`: its maximum, r, and the position of the largest token."""

    maximum: float
    ratio: float
    position: int


@dataclass(frozen=True)
class Growth:
    """What the training of one model recorded.

    Attributes:
        parameters: Outside embedding and head.
        done, planned: Steps; fewer are done in a copy that was kept on the way.
        packed: Whether BOS stands only where a document begins, so that position 0 need not be BOS.
        ladder: Whether it differs from the others of the ladder in size alone, and in peak rate.
        loss: Step, mean training loss since the last entry.
        watched: Step, one peak a block.
    """

    name: str
    parameters: int
    done: int
    planned: int
    packed: bool
    ladder: bool
    loss: tuple[tuple[int, float], ...]
    watched: tuple[tuple[int, tuple[Peak, ...]], ...]

    @property
    def block(self) -> int:
        """The block whose input is the largest at the end."""
        final = self.watched[-1][1]
        return max(range(len(final)), key=lambda block: final[block].maximum)

    @property
    def site(self) -> str:
        """Its name, and the site of that block."""
        return f"{self.name}, {self.block}.down"

    @property
    def course(self) -> tuple[tuple[int, Peak], ...]:
        """Of that block, step by step."""
        return tuple((step, peaks[self.block]) for step, peaks in self.watched)


def read_growths(folders: Mapping[str, Path]) -> tuple[list[Growth], list[str]]:
    """The models by size, each training once; and of those left out, why.

    Of a model and the copies kept while it was trained, the one that was trained longest stands for all.
    """
    records = {name: json.loads((folder / "training.json").read_text()) for name, folder in folders.items()}
    longest: dict[str, str] = {}
    for name in sorted(records, key=lambda name: records[name]["steps_done"]):
        if records[name].get("spikes"):
            longest[json.dumps(records[name]["recipe"])] = name
    left = []
    for name, record in records.items():
        chosen = longest.get(json.dumps(record["recipe"]))
        if not record.get("spikes"):
            left.append(f"{name}: its training did not watch spikes")
        elif chosen != name:
            left.append(f"{name}: the same training as {chosen}")
    found = [_growth(name, records[name]) for name in longest.values()]
    return sorted(found, key=lambda growth: (growth.parameters, growth.name)), left


def _growth(name: str, record: dict[str, Any]) -> Growth:
    recipe = record["recipe"]
    return Growth(
        name,
        record["parameters_outside_embedding"],
        record["steps_done"],
        recipe["steps"],
        recipe["packed"],
        recipe["architecture"] == "llama" and not recipe["packed"],
        tuple((step, loss) for step, loss in record["curve"]),
        tuple((step, tuple(Peak(*peak) for peak in peaks)) for step, peaks in record["spikes"]),
    )


def summarize(growths: Sequence[Growth]) -> list[str]:
    """One line a model, in Markdown: where its largest spike is, since when, and how large."""
    columns = ["model", "parameters", "steps", "block", "largest at position", "there since step"]
    columns += ["half of the end's at step", "largest, at step", "at the end", "r at the end", "next block at the end"]
    return _table(columns, [_summary(growth) for growth in growths])


def _summary(growth: Growth) -> list[str]:
    course, (_, end) = growth.course, growth.course[-1]
    half = next(step for step, peak in course if peak.maximum > end.maximum / 2)
    moved = [step for step, peak in course if peak.position != end.position]
    since = next(step for step, _ in course if step > max(moved, default=0))
    step, top = max(course, key=lambda entry: entry[1].maximum)
    others = [(peak.maximum, block) for block, peak in enumerate(growth.watched[-1][1]) if block != growth.block]
    beside = "{:.1f} ({})".format(*max(others)) if others else ""
    steps = f"{growth.done}" + ("" if growth.done == growth.planned else f" of {growth.planned}")
    where = f"{end.position}" + (" (BOS)" if end.position == 0 and not growth.packed else "")
    row = [growth.name, f"{growth.parameters:,}", steps, f"{growth.block}", where, f"{since}", f"{half}"]
    return [*row, f"{top.maximum:.1f}, {step}", f"{end.maximum:.1f}", f"{end.ratio:.1f}", beside]


def follow(growths: Sequence[Growth]) -> list[str]:
    """Maximum and r of that block's input through training, in Markdown."""
    columns = ["maximum (r) after this share of training", *(f"{100 * share:g} %" for share in SHARES)]
    return _table(columns, [[growth.name, *(_at(growth, share) for share in SHARES)] for growth in growths])


def _at(growth: Growth, share: float) -> str:
    """The last that was seen up to a share of training; empty where training has not come so far."""
    asked = round(share * growth.planned)
    seen = [peak for step, peak in growth.course if step <= asked <= growth.done]
    return f"{seen[-1].maximum:.0f} ({seen[-1].ratio:.1f})" if seen else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def draw(growths: Sequence[Growth]) -> dict[str, str]:
    """The figures: file name to SVG."""
    return {
        "spikes-growth.svg": draw_growth(growths),
        "spikes-size.svg": draw_sizes([growth for growth in growths if growth.done == growth.planned]),
        "spikes-loss.svg": draw_losses([growth for growth in growths if growth.ladder]),
    }


def draw_growth(growths: Sequence[Growth]) -> str:
    """A panel a model: the largest input of each block's `down_proj` against the step."""
    rows = [row for growth in growths for row in _rows(growth)]
    heights = [row["maximum"] for row in rows]
    base = alt.Chart().encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickCount=4, format="d")),
        y=alt.Y(
            "maximum:Q",
            title=None,
            scale=alt.Scale(type="log", nice=False, padding=6),
            axis=alt.Axis(values=log_ticks(min(heights), max(heights)), format="~g"),
        ),
    )
    colour = alt.Color("what:N", scale=alt.Scale(domain=[OTHERS, LARGEST], range="ordinal"))
    lines = [
        base.transform_filter(alt.datum.what == what)
        .mark_line(strokeWidth=width)
        .encode(color=colour, detail="block:N")
        for what, width in ((OTHERS, 1), (LARGEST, 2))
    ]
    panels = alt.layer(*lines, data=alt.InlineData(values=rows)).properties(width=PANEL[0], height=PANEL[1])
    header = alt.Header(labelAnchor="start", labelFontSize=13)
    facet = alt.Facet("site:N", title=None, sort=[growth.site for growth in growths], header=header)
    chart = panels.facet(facet, columns=COLUMNS).properties(title="Largest input of each block's down_proj")
    config = {**vega_config(LIGHT, FILE_FONT), "background": LIGHT["paper"], "padding": 16}
    return vl_convert.vegalite_to_svg(chart.to_dict(), config=config)


def _rows(growth: Growth) -> list[dict[str, Any]]:
    """One row a step and block."""
    return [
        {
            "site": growth.site,
            "step": step,
            "block": block,
            "maximum": peak.maximum,
            "what": LARGEST if block == growth.block else OTHERS,
        }
        for step, peaks in growth.watched
        for block, peak in enumerate(peaks)
    ]


def draw_sizes(growths: Sequence[Growth]) -> str:
    """Maximum and r at the end against size."""
    ends = [(growth, growth.course[-1][1]) for growth in growths]
    figure = curve(
        "spikes-size",
        "The largest spike at the end of training, by size",
        "On four windows never trained on.",
        [
            Series(
                "maximum",
                tuple(Dot(g.parameters, end.maximum, label=g.site) for g, end in ends),
                line=False,
                named=True,
            ),
            Series("r", tuple(Dot(g.parameters, end.ratio, label=g.site) for g, end in ends), line=False, named=True),
        ],
        Axis("parameters outside the embedding", log=True, counts=True),
        Axis("largest input of a down_proj, and its r", log=True),
        noun="model",
    )
    return to_svg(figure)


def draw_losses(growths: Sequence[Growth]) -> str:
    """Training loss of the ladder against the step."""
    figure = curve(
        "spikes-loss",
        "Training loss, by size",
        "Mean over the 50 steps before.",
        [Series(g.name, tuple(Dot(step, loss) for step, loss in g.loss), marked=False) for g in growths],
        Axis("step", log=True),
        Axis("training loss (nats per token)"),
        ordered=True,
    )
    return to_svg(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--out", type=Path, default=DOCS, help="folder of the figures")
    out = parser.parse_args().out
    growths, left = read_growths(reference_models())
    if not growths:
        raise SystemExit("no reference model whose training watched spikes: python reference/train.py py-64")
    for name, svg in draw(growths).items():
        write_whole(out / name, svg)
    print("\n".join([*summarize(growths), "", *follow(growths)]))
    print("\n".join(f"left out: {line}" for line in left), file=sys.stderr)


if __name__ == "__main__":
    main()

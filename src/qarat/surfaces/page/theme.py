"""How marks look, light and dark: two Vega configs with the same names, over the colours that the page uses too.

Charts say what a mark is (``dot``, ``limit``, ``shade``), never what colour it has. The categories are blue,
vermilion, grey, green, purple, amber and sky, in the spirit of Okabe and Ito's palette: apart for every kind of colour
vision, and in lightness too. Blue is what the plan does, vermilion what naive quantization does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FILE_FONT = "Liberation Sans, Arial, sans-serif"  # vl-convert brings the first, so files are alike everywhere
PAGE_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'


@dataclass(frozen=True)
class Colours:
    """One theme's colours.

    Attributes:
        paper: Background.
        ink: Text and what is most important.
        quiet: Secondary text.
        line: Hairlines.
        faint: Areas that stand back.
        categories: Of things that are told apart; the first two mean plan and naive.
        heat: From nothing to extreme.
        ramp: From small to large.
    """

    paper: str
    ink: str
    quiet: str
    line: str
    faint: str
    categories: tuple[str, ...]
    heat: tuple[str, ...]
    ramp: tuple[str, ...]


LIGHT = Colours(
    paper="#ffffff",
    ink="#1b1f24",
    quiet="#59626c",
    line="#e2e5e9",
    faint="#c9ced4",
    categories=("#0b62b0", "#cc4f0a", "#6d7680", "#0c8565", "#a64a90", "#a87400", "#3791cf"),
    heat=("#f1f3f5", "#fad8b4", "#f0a062", "#cf5a17", "#7f2704"),
    ramp=("#a9cdea", "#5c9fd4", "#1f6fb5", "#0a4a88", "#052b54"),
)
DARK = Colours(
    paper="#15181c",
    ink="#e7eaed",
    quiet="#a3abb4",
    line="#2c3239",
    faint="#4a525b",
    categories=("#62adf2", "#f28d4f", "#a3abb4", "#43c69e", "#e294cb", "#e6b843", "#94d3f7"),
    heat=("#232930", "#54361f", "#99501d", "#e27f37", "#ffd9b0"),
    ramp=("#27507a", "#3576b3", "#5a9edd", "#93c5f2", "#d6ebff"),
)


def vega_config(colours: Colours, font: str) -> dict[str, Any]:
    """The Vega-Lite config of a theme."""
    return {
        "background": None,
        "font": font,
        "padding": 0,
        "view": {"stroke": None},
        "axis": _axis(colours),
        "axisX": {"grid": False, "titleAnchor": "end", "titleAlign": "right"},
        # The title of a vertical axis lies flat above it: nobody has to turn the head, and a phone keeps its width.
        "axisY": {
            "domain": False,
            "ticks": False,
            "titleAlign": "left",
            "titleAnchor": "end",
            "titleAngle": 0,
            "titleBaseline": "bottom",
            "titleX": 0,
            "titleY": -10,
        },
        "legend": _legend(colours),
        "title": {"anchor": "start", "color": colours.ink, "fontSize": 15, "frame": "group", "offset": 14},
        "range": {
            "category": list(colours.categories),
            "heatmap": list(colours.heat),
            # The first stands back: the scheme that most of a model has.
            "ordinal": [colours.faint, *colours.categories[:2], *colours.categories[3:]],
            "ramp": {"scheme": list(colours.ramp)},
        },
        "style": _styles(colours),
    }


def _axis(colours: Colours) -> dict[str, Any]:
    return {
        "domainColor": colours.faint,
        "gridColor": colours.line,
        "labelColor": colours.quiet,
        "labelFontSize": 12,
        "labelPadding": 6,
        "tickColor": colours.faint,
        "tickSize": 4,
        "titleColor": colours.quiet,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
    }


def _legend(colours: Colours) -> dict[str, Any]:
    return {
        "labelColor": colours.ink,
        "labelFontSize": 12,
        "labelLimit": 320,
        "orient": "top",
        "symbolSize": 90,
        "title": None,
        "titleColor": colours.quiet,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titleOrient": "left",
    }


def _styles(colours: Colours) -> dict[str, Any]:
    """What marks may say that they are."""
    plan = colours.categories[0]
    return {
        "bars": {"color": colours.faint},
        "cell": {"stroke": colours.paper, "strokeWidth": 1.5},
        "dot": {"filled": True, "opacity": 1, "size": 70, "stroke": colours.paper, "strokeWidth": 1},
        "error": {"strokeWidth": 2},
        "fit": {"strokeWidth": 2},
        # Behind a label, so that no line runs through it.
        "halo": {"color": colours.paper, "fontSize": 13, "stroke": colours.paper, "strokeWidth": 5},
        "halo-note": {"color": colours.paper, "fontSize": 12, "stroke": colours.paper, "strokeWidth": 4},
        "label": {"color": colours.ink, "fontSize": 13},
        "limit": {"color": colours.quiet, "strokeDash": [4, 3], "strokeWidth": 1},
        "name": {"color": colours.ink, "fontSize": 12},
        "note": {"color": colours.quiet, "fontSize": 12},
        "on-strong": {"color": colours.paper, "fontSize": 11},
        "on-weak": {"color": colours.ink, "fontSize": 11},
        "open": {"filled": False, "opacity": 1, "size": 70, "strokeWidth": 2},
        "peak": {"color": colours.categories[1]},
        "profile": {"color": plan, "strokeWidth": 1.5},
        "profile-area": {"color": plan, "fillOpacity": 0.12},
        "ring": {"color": colours.ink, "filled": False, "strokeWidth": 2},
        "rug": {"color": colours.ink, "opacity": 0.8, "strokeWidth": 1},
        "shade": {"color": colours.categories[1], "fillOpacity": 0.13},
        "zero": {"color": colours.quiet, "strokeWidth": 1},
    }

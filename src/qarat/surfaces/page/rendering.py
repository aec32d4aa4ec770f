"""How figures look, light and dark, and figures as files.

Charts say what a mark is (``dot``, ``limit``, ``shade``), never what colour it has; `theme.json` says that in two Vega
configs with the same names, over the colours that the page uses too. Those of things that are told apart are blue,
vermilion, grey, green, purple, amber and sky, in the spirit of Okabe and Ito's palette: apart for every kind of colour
vision, and in lightness too. Blue is what the plan does, vermilion what naive quantization does. Of the ordinal ones
the first stands back: the scheme that most of a model has. The title of a vertical axis lies flat above it: nobody has
to turn the head, and a phone keeps its width. A halo lies behind a label, so that no line runs through it.

Files are SVG and PNG of the very definition that the page draws. vl-convert runs Vega without a browser and brings its
own fonts, so the same figure has the same bytes; the script that draws figures in the page is Vega's too.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vl_convert

from qarat.ground.disk import write_whole
from qarat.surfaces.page.figures.base import Figure, filled

FILE_FONT = "Liberation Sans, Arial, sans-serif"  # vl-convert brings the first, so files are alike everywhere
PAGE_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
_WIDTH = 720  # pixels of a figure in a file
_SCALE = 2  # PNG pixels for each of those
_PADDING = 16
_COUNTED = re.compile(r"\b(gradient_|clip)(\d+)\b")

Colours = Mapping[str, Any]
"""One theme's colours by what they are for; ``heat`` runs from nothing to extreme, ``ramp`` from small to large."""

_THEME: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "theme.json").read_text("utf-8"))
LIGHT: Colours = _THEME["light"]
DARK: Colours = _THEME["dark"]


def vega_config(colours: Colours, font: str) -> dict[str, Any]:
    """The Vega-Lite config of a theme."""
    return {**filled(_THEME["config"], colours), "font": font}


def write_figure(figure: Figure, folder: Path) -> None:
    """Write ``KEY.svg`` and ``KEY.png``, both on white."""
    svg = to_svg(figure)
    write_whole(folder / f"{figure.key}.svg", svg)
    write_whole(folder / f"{figure.key}.png", vl_convert.svg_to_png(svg, scale=_SCALE))


def to_svg(figure: Figure) -> str:
    """A figure with its title as SVG."""
    config = {**vega_config(LIGHT, FILE_FONT), "background": LIGHT["paper"], "padding": _PADDING}
    whole: dict[str, Any] = {**figure.definition(), "width": _WIDTH, "title": figure.title}
    return _renumbered(vl_convert.vegalite_to_svg(whole, config=config))


def _renumbered(svg: str) -> str:
    """The SVG with its gradients and clips counted from its own first: Vega counts through a whole process."""
    counts: dict[str, int] = {}
    return _COUNTED.sub(lambda match: f"{match[1]}{counts.setdefault(match[0], len(counts))}", svg)


@functools.cache
def script() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; it makes ``vegaEmbed`` known to the page."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # Within a page, an end tag in a string would end the script.
    return re.sub(r"</(script)", r"<\\/\1", bundle, flags=re.IGNORECASE)

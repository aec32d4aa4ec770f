"""Figures as files: SVG and PNG of the very definition that the page draws, and the script that draws it there.

vl-convert runs Vega without a browser and brings its own fonts, so the same figure has the same bytes.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import vl_convert

from qarat.ground.disk import write_whole
from qarat.surfaces.page.figures.base import Figure
from qarat.surfaces.page.theme import FILE_FONT, LIGHT, vega_config

_WIDTH = 720  # pixels of a figure in a file
_SCALE = 2  # PNG pixels for each of those
_PADDING = 16
_COUNTED = re.compile(r"\b(gradient_|clip)(\d+)\b")


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

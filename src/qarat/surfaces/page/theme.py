"""How marks look, light and dark: two Vega configs with the same names, over the colours that the page uses too.

Charts say what a mark is (``dot``, ``limit``, ``shade``), never what colour it has; `theme.json` says that, and its
config names the colours. Those of things that are told apart are blue, vermilion, grey, green, purple, amber and sky,
in the spirit of Okabe and Ito's palette: apart for every kind of colour vision, and in lightness too. Blue is what the
plan does, vermilion what naive quantization does. Of the ordinal ones the first stands back: the scheme that most of a
model has. The title of a vertical axis lies flat above it: nobody has to turn the head, and a phone keeps its width. A
halo lies behind a label, so that no line runs through it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qarat.surfaces.page.figures.base import filled

FILE_FONT = "Liberation Sans, Arial, sans-serif"  # vl-convert brings the first, so files are alike everywhere
PAGE_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

Colours = Mapping[str, Any]
"""One theme's colours by what they are for; ``heat`` runs from nothing to extreme, ``ramp`` from small to large."""

_THEME: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "theme.json").read_text("utf-8"))
LIGHT: Colours = _THEME["light"]
DARK: Colours = _THEME["dark"]


def vega_config(colours: Colours, font: str) -> dict[str, Any]:
    """The Vega-Lite config of a theme."""
    return {**filled(_THEME["config"], colours), "font": font}

"""Figures: pure functions from records to a chart and the table of its data.

A chart names no colour: it says what a mark *is* (`qarat.surfaces.page.rendering`), so the same definition is drawn
light, dark and into files. Its tooltips show the columns of its table, so the two cannot disagree. `intervals`, `curve`
and `cells` are the general ones; most figures are a few lines on top of them.
"""

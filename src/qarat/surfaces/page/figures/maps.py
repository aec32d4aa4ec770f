"""Maps: every stream by its spike and every site by its scheme, blocks across; every calibration by its loss."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from qarat.stages.spikes import RATIO_LIMIT, Diagnosis, diagnose
from qarat.surfaces.page.figures.base import Figure, cells
from qarat.surfaces.tables.calibration_study import verdicts
from qarat.surfaces.tables.data import DataTable, numbers, table, texts
from qarat.surfaces.tables.wording import count, fixed, listed, with_error
from qarat.values.plans import Assignment, Plan
from qarat.values.records.calibration_study import CalibrationStudy
from qarat.values.records.streams import ActivationStats
from qarat.values.roles import Role
from qarat.values.schemes import TensorScheme
from qarat.values.sites import short_name

KINDS = tuple(role.value for role in Role)
"""Streams in the order in which data flow through a block."""

_LEGIBLE = 10  # blocks up to which r stands in its cell, also on a phone
_LEAST_MORE = 1e-3  # nats that the darkest colour stands for at least, so that noise does not look like an effect
_LEGEND = {"gradientLength": 180, "gradientThickness": 10}
_STRONG = 0.7  # share of the colour scale beyond which text has to be the paper's colour


def spike_map(stats: ActivationStats, low: TensorScheme | None) -> Figure:
    """Blocks across, streams down, coloured by log r; flagged streams are outlined.

    Args:
        stats: Of one observing pass.
        low: The low scheme's input, for the rules that ask for it.
    """
    diagnoses = sorted(diagnose(stats, low), key=lambda d: (d.block, KINDS.index(d.kind)))
    shown = _stream_table(diagnoses)
    # At least up to the limit of a rule, so that a model without spikes looks like one.
    top = max(RATIO_LIMIT, *(d.ratio for d in diagnoses))
    rows = [
        {
            **shown.details(i),
            "block": d.block,
            "row": d.kind,
            "ratio": max(d.ratio, 1.0),
            "shown": fixed(d.ratio, 0 if d.ratio >= 100 else 1),
            "strong": math.log(max(d.ratio, 1.0)) > _STRONG * math.log(top),
            "flagged": bool(d.flagged_by),
        }
        for i, d in enumerate(diagnoses)
    ]
    legible = rows if max(d.block for d in diagnoses) < _LEGIBLE else []
    colour = {
        "field": "ratio",
        "type": "quantitative",
        "scale": {"type": "log", "domain": [1, top], "range": "heatmap", "interpolate": "lab"},
        "legend": _LEGEND | {"title": "r", "values": _ticks(top), "format": "~g"},
    }
    drawn = {"cells": rows, "outlined": [row for row in rows if row["flagged"]], **_written(legible)}
    order = [kind for kind in KINDS if any(d.kind == kind for d in diagnoses)]
    return Figure(
        "spike-map", "Every stream of every block", _caption(diagnoses), cells(shown, drawn, order, colour), shown
    )


def _caption(diagnoses: list[Diagnosis]) -> str:
    worst = max(diagnoses, key=lambda d: d.ratio)
    rules = Counter(rule for d in diagnoses for rule in d.flagged_by)
    named = listed([f"{rule} ({n})" for rule, n in rules.items()] or ["none"])
    flags = f"An outline is a rule's flag, whatever r is: {named}." if rules else "No rule flags any."
    return (
        f"{len(diagnoses)} streams, blocks across, data flowing down. Colour is r, the largest token's maximum over "
        f"the median token's; the largest is {fixed(worst.ratio, 1)}, at {short_name(worst.stream)}. {flags}"
    )


def _stream_table(diagnoses: list[Diagnosis]) -> DataTable:
    sizes, places = numbers("r", "maximum", "SNR (dB)", "value"), numbers("position", "channel")
    rows = [
        (
            short_name(d.stream),
            fixed(d.ratio, 1),
            fixed(d.maximum, 1),
            "" if math.isnan(d.snr_db) else fixed(d.snr_db, 1),
            fixed(d.peak.value, 1, sign=True),
            repr(d.peak.text),
            str(d.peak.position),
            str(d.peak.channel),
            ", ".join(d.flagged_by),
        )
        for d in diagnoses
    ]
    return table((*texts("stream"), *sizes, *texts("token"), *places, *texts("flagged by")), rows)


def _ticks(top: float) -> list[float]:
    return [v for v in (1, 4, 16, 64, 256, 1024, 4096, 16384) if v <= top]


def strip(plan: Plan) -> Figure:
    """Blocks across, sites down, coloured by scheme; the low scheme stands back.

    Attention products are left out where all of them stay in float, and so are caches, which the caption says then.

    Args:
        plan: Of a whole model.
    """
    projections = [a for a in plan.assignments if a.site.kind == "projection"]
    inside = {
        name: [a for a in plan.assignments if a.site.kind == kind]
        for kind, name in (("product", "attention products"), ("cache", "caches of keys and values"))
    }
    idle = [name for name, sites in inside.items() if sites and all(a.is_float for a in sites)]
    shown = [*projections, *(a for name, sites in inside.items() if name not in idle for a in sites)]
    sites = _site_table(plan, shown)
    rows = [
        {**sites.details(i), "block": a.site.block, "row": _leaf(a), "scheme": str(a.scheme)}
        for i, a in enumerate(shown)
    ]
    schemes = Counter(str(a.scheme) for a in projections)
    # The low scheme takes the colour that stands back, whether anything has it or not.
    order = [plan.low, *(s for s, _ in schemes.most_common() if s != plan.low)]
    order += sorted({str(a.scheme) for a in shown} - set(order))
    colour = {
        "field": "scheme",
        "type": "nominal",
        "scale": {"domain": order, "range": "ordinal"},
        "legend": {"columns": 1, "symbolType": "square"},
    }
    chart = cells(sites, {"cells": rows}, list(dict.fromkeys(_leaf(a) for a in shown)), colour)
    parts = [f"{count(n, 'projection')} in {scheme}" for scheme, n in schemes.most_common()]
    caption = "; ".join(parts) + "."
    if idle:
        caption += f" The {' and the '.join(idle)} stay in float."
    return Figure("plan", "Every site by its scheme", caption, chart, sites)


def _leaf(a: Assignment) -> str:
    return a.site.leaf.removesuffix("_proj")


def _site_table(plan: Plan, shown: list[Assignment]) -> DataTable:
    rows = [
        (
            short_name(a.site.name),
            str(a.scheme),
            f"{a.site.parameters:,}" if a.site.parameters else "",
            fixed(plan.site_bits(a) / a.site.parameters, 3) if a.site.parameters else "",
            a.reason,
        )
        for a in shown
    ]
    return table((*texts("site", "scheme"), *numbers("parameters", "bits per weight"), *texts("reason")), rows)


def calibration_map(study: CalibrationStudy) -> Figure:
    """Tests across, calibrations down, coloured by how much more each loses than the least of its column.

    Args:
        study: With at least one arm.
    """
    pairs = [(arm, test) for arm in study.measured for test in study.tests]
    least = {test: min(study.over_float(arm, test).nats for arm in study.measured) for test in study.tests}
    more = {(arm.name, test): study.over_float(arm, test).nats - least[test] for arm, test in pairs}
    top = max(*more.values(), _LEAST_MORE)
    shown = table(
        (*texts("calibrated on", "measured on"), *numbers("loss over float (nats)", "more than the least (nats)")),
        (
            (arm.name, test.name, with_error(study.over_float(arm, test)), fixed(more[arm.name, test], 4))
            for arm, test in pairs
        ),
    )
    rows = [
        {
            **shown.details(i),
            "measured on": test.name,
            "row": arm.name,
            "more": more[arm.name, test],
            "shown": fixed(study.over_float(arm, test).nats, 4),
            "strong": more[arm.name, test] > _STRONG * top,
        }
        for i, (arm, test) in enumerate(pairs)
    ]
    colour = {
        "field": "more",
        "type": "quantitative",
        "scale": {"type": "linear", "domain": [0, top], "range": "heatmap", "interpolate": "lab"},
        "legend": _LEGEND | {"title": "more (nats)", "format": ".4~f"},
    }
    drawn = {"cells": rows, **_written(rows)}
    caption = (
        f"Calibrated on the rows, measured on the columns, under {study.low}. Written: the loss over float in nats per "
        f"token. Colour: how much more that is than the least of its column. "
        + " ".join(f"{line[:1].upper()}{line[1:]}." for line in verdicts(study))
    )
    order = [arm.name for arm in study.measured]
    chart = cells(shown, drawn, order, colour, across="measured on")
    return Figure("calibration", "Every calibration on every text", caption, chart, shown)


def _written(rows: Sequence[Mapping[str, object]]) -> dict[str, list[Mapping[str, object]]]:
    """The cells with a number in them, by the ground it stands on."""
    strong, weak = ([row for row in rows if row["strong"] == whether] for whether in (True, False))
    return {"on-strong": strong, "on-weak": weak}

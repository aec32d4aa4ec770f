"""The table that sets metrics beside measured losses."""

import math
from io import StringIO

import msgspec
from rich.console import Console, RenderableType

from qarat.surfaces.terminal import render
from qarat.values.records.origin import Difference, Provenance
from qarat.values.records.prices import NATS, ComparedSite, MetricCheck, SiteMeasurements, Trial

PROVENANCE = Provenance("0123456789abcdef" * 4, "t" * 64, "windows-8-bos", {})


def make_check(metric: str, rank: float, unit: str = NATS, scheme: str = "w=int4/channel") -> MetricCheck:
    sites = tuple(
        ComparedSite(f"model.layers.{i}.mlp.down_proj", 0.1 * (i + 1), 0.01, Difference(0.2 * (i + 1), 0.003, 9))
        for i in range(12)
    )
    return MetricCheck(PROVENANCE, metric, unit, scheme, sites, Difference(20.0, 0.5, 9), rank, 2.0)


def text(renderable: RenderableType) -> str:
    console = Console(file=StringIO(), width=100)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_metrics_stand_side_by_side_the_best_ranking_first():
    weak, best = make_check("weight-error", 0.3, "squared weight error"), make_check("fisher", 0.9)
    shown = text(render(weak, make_check("dull", math.nan), best))
    assert shown.index("fisher") < shown.index("weight-error") < shown.index("dull")
    (row,) = [line for line in shown.splitlines() if "fisher" in line]
    assert row.split()[:5] == ["fisher", "0.90", "2", "0.50", "0.39"]
    (row,) = [line for line in shown.splitlines() if "weight-error" in line]
    assert row.split()[:3] == ["weight-error", "0.30", "2"]
    assert "squared weight error" in row
    assert "12 sites, each alone, sum to 15.6000 nats" in shown
    assert "all together lose 20.0000 (95 %: 19.0200 to 20.9800)" in " ".join(shown.split())


def test_every_scheme_has_its_own_table():
    shown = text(render(make_check("fisher", 0.9), make_check("fisher", 0.8, scheme="w=int8/channel")))
    assert shown.index("w=int4/channel") < shown.index("0.90") < shown.index("w=int8/channel") < shown.index("0.80")


def test_a_single_check_lists_the_dearest_sites():
    shown = text(render(make_check("fisher", 0.9)))
    listed = [line.split()[0] for line in shown.splitlines() if ".down" in line]
    assert listed == [f"{i}.down" for i in range(11, 1, -1)]
    assert "and 2 sites that lose less" in shown


def test_measured_sites_are_listed_the_dearest_first_and_all_together_last():
    alone = tuple(Trial(f"only {i}.down low", (f"s{i}",), Difference(0.1 * i, 0.01, 9)) for i in range(12))
    record = SiteMeasurements(PROVENANCE, "w=int4/channel", alone, Trial("all low", (), Difference(9.0, 0.5, 9)))
    rows = [line.split() for line in text(render(record)).splitlines() if " low " in line]
    assert [row[1] for row in rows[:-1]] == [f"{i}.down" for i in range(11, 1, -1)]
    assert rows[-1] == ["all", "low", "9.0000", "0.5000"]


def test_ranks_of_the_clear_sites_are_told_where_others_are_noise():
    check = msgspec.structs.replace(make_check("fisher", 0.3), clear_sites=7, clear_correlation=0.95)
    shown = " ".join(text(render(check)).split())
    assert "among the 7 sites that lose more than two" in shown
    assert shown.count("fisher 0.95") == 1
    assert "among the" not in text(render(make_check("fisher", 0.9)))

"""Elementwise work of a plan, against figures counted by hand for one block of hidden 40, inner 72 and 24 keys."""

import pytest

from qarat.values.plans import assign
from qarat.values.sites import Site
from qarat.values.work import TokenWork, work_of

SHAPES = {
    "q": (40, 40),
    "k": (24, 40),
    "v": (24, 40),
    "o": (40, 40),
    "gate": (72, 40),
    "up": (72, 40),
    "down": (40, 72),
}
STREAMS = dict.fromkeys("qkv", "attn_in") | {"o": "o_in", "gate": "mlp_in", "up": "mlp_in", "down": "down_in"}
MACS = 40 * 40 + 2 * 24 * 40 + 40 * 40 + 2 * 72 * 40 + 40 * 72
OTHERS = 2 * 40 + 2 * 40 + 2 * 72  # two norms, two sums, activation and gate
OUTPUTS = 40 + 24 + 24 + 40 + 72 + 72 + 40
INPUTS = 40 + 40 + 40 + 72  # one stream for q, k, v, one for gate and up
GROUPS = (40 + 24 + 24 + 40 + 72 + 72) * 2 + 40 * 3  # of 32 in rows of 40 and of 72


def sites(leaves="q k v o gate up down", block=0):
    found = [
        Site(
            f"model.layers.{block}.x.{leaf}_proj",
            block,
            "projection",
            (f"model.layers.{block}.{STREAMS[leaf]}",),
            shape,
        )
        for leaf, shape in SHAPES.items()
        if leaf in leaves.split()
    ]
    streams = (f"model.layers.{block}.q", f"model.layers.{block}.k")
    return [*found, Site(f"model.layers.{block}.x.qk", block, "product", streams, width=40)]


@pytest.mark.parametrize(
    ("low", "scalings", "roundings"),
    [
        ("float", 0, 0),
        ("w=int8/channel", OUTPUTS, 0),
        ("w=int8/channel a=int8/tensor/static", OUTPUTS + INPUTS, INPUTS),
        ("w=int8/channel a=int8/token", OUTPUTS + INPUTS, 2 * INPUTS),
        ("w=int8/channel a=int8/token/asymmetric", 2 * OUTPUTS + INPUTS, 2 * INPUTS),
        ("w=int4/g32", GROUPS, 0),
        ("w=int4/g32/asymmetric", 2 * GROUPS, 0),
        ("w=int4/g32/scale-uint8", GROUPS + GROUPS, 0),  # a scale for every group
        ("w=int8/tensor/scale-uint8", OUTPUTS + 7, 0),
        ("w=int4/g32/scale-e4m3", GROUPS + OUTPUTS, 0),
        ("w=mxfp4 a=mxfp4", GROUPS + INPUTS, 2 * INPUTS),
        ("a=int8/g32/static", GROUPS + INPUTS, INPUTS),
    ],
)
def test_a_block_counted_by_hand(low, scalings, roundings):
    work = work_of(assign("m", 16, sites(), low))
    assert work == TokenWork(MACS, scalings, roundings, OTHERS)
    assert work.elementwise == scalings + roundings + OTHERS
    two = assign("m", 16, [*sites(), *sites(block=1)], low)
    assert work_of(two) == TokenWork(2 * MACS, 2 * scalings, 2 * roundings, 2 * OTHERS)


def test_readers_of_one_stream_under_two_schemes_round_it_twice():
    plan = assign("m", 16, sites(), "w=int8/channel a=int8/tensor/static", [("0.up", "w=int8/channel a=int8/token")])
    assert work_of(plan) == TokenWork(MACS, OUTPUTS + INPUTS + 40, INPUTS + 2 * 40, OTHERS)


def test_without_a_gate_there_is_no_product_with_it():
    work = work_of(assign("m", 16, sites("q k v o up down"), "float"))
    assert work == TokenWork(MACS - 72 * 40, 0, 0, OTHERS - 72)

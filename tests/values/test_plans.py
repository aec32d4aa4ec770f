"""Plans: bits counted from shapes are those of real tensors; a plan survives its file; what does not fit is named."""

import json
import re

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qarat.maths.scales import SCALE_DTYPES
from qarat.maths.tensors import quantize_tensor
from qarat.values.parsing import parse_scheme
from qarat.values.plan_files import decode_plan, encode_plan
from qarat.values.plans import Plan, PlanError, assign, match_sites
from qarat.values.schemes import LinearScheme, MatmulScheme, SchemeError
from qarat.values.sites import Site, short_name

LOW = "w=int8/channel a=int8/tensor/static"
MODEL = "0123456789abcdef" * 4
HIDDEN, INTERMEDIATE = 40, 72  # neither is a multiple of 32 or 16: last groups are short
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


def block_sites(index: int) -> list[Site]:
    prefix = f"model.layers.{index}"
    sites = []
    for leaf, shape in SHAPES.items():
        home = "self_attn" if leaf in "qkvo" else "mlp"
        stream = STREAMS[leaf]
        tie = stream if stream in ("attn_in", "mlp_in") else ""
        name = f"{prefix}.{home}.{leaf}_proj"
        sites.append(Site(name, index, "projection", (f"{prefix}.{stream}",), shape, tie, has_bias=leaf == "q"))
    for leaf, operands in (("qk", "qk"), ("av", "pv")):
        streams = tuple(f"{prefix}.{o}" for o in operands)
        sites.append(Site(f"{prefix}.self_attn.{leaf}", index, "product", streams, width=HIDDEN))
    return sites


SITES = tuple(block_sites(0) + block_sites(1))
WEIGHTS = sum(s.parameters for s in SITES)


def plan_of(*rules: tuple[str, str], low: str = LOW, float_bits: int = 16) -> Plan:
    return assign(MODEL, float_bits, SITES, low, rules)


def edited(plan: Plan, site: str, **fields: object) -> str:
    """The plan's JSON as a person might change it; a field given as None is left out."""
    tree = json.loads(encode_plan(plan))
    tree["sites"][site] = {k: v for k, v in (tree["sites"][site] | fields).items() if v is not None}
    return json.dumps(tree)


# ---------------------------------------------------------------- what a plan costs


@pytest.mark.parametrize(
    ("spelling", "element_bits"),
    [
        ("int8/channel", 8),
        ("int8/tensor", 8),
        ("int6/channel", 6),
        ("int4/g32", 4),
        ("int4/g32/scale-float16", 4),
        ("int4/g16/asymmetric", 4),
        ("int3/g7/scale-float16/asymmetric", 3),
        ("int8/16x16", 8),
        ("e4m3/tensor", 8),
        ("e2m3/channel", 6),
        ("mxint4", 4),
        ("mxfp4/g24", 4),
        ("nvfp4", 4),
        ("int4/g16/scale-uint8", 4),
        ("int3/g1/scale-uint8/asymmetric", 3),
    ],
)
def test_planned_bits_are_the_bits_of_the_real_tensors(spelling: str, element_bits: int) -> None:
    plan = plan_of(low=f"w={spelling}")
    expected = 0
    for site in SITES:
        if site.kind == "projection":
            scheme = plan[site.name]
            assert isinstance(scheme, LinearScheme)
            assert scheme.weight is not None
            stored = quantize_tensor(torch.randn(site.shape), scheme.weight)
            expected += stored.codes.numel() * element_bits
            expected += stored.scales.scale.numel() * SCALE_DTYPES[stored.scheme.scale].itemsize * 8
            expected += 0 if stored.scales.zero_point is None else stored.scales.zero_point.numel() * element_bits
            expected += 0 if stored.scales.tensor_scale is None else stored.scales.tensor_scale.numel() * 32
    assert plan.weight_bits() == expected
    assert plan.bits_per_weight() == expected / WEIGHTS


def test_a_short_last_group_has_a_scale_of_its_own() -> None:
    plan = plan_of(("1.down", "w=int4/g32/scale-float16"), low="float")
    (down,) = plan.exceptions()
    groups = sum(len(range(0, INTERMEDIATE, 32)) for _ in range(HIDDEN))  # 32 + 32 + 8 columns in each row
    assert plan.site_bits(down) == 40 * 72 * 4 + groups * 16


def test_float_sites_and_products_cost_what_they_are() -> None:
    assert plan_of(low="float", float_bits=16).weight_bits() == WEIGHTS * 16
    assert plan_of(low="float", float_bits=32).bits_per_weight() == 32
    quantized_products = plan_of(("*.qk", "l=int8/token r=int8/token"))
    assert quantized_products.weight_bits() == plan_of().weight_bits()


def test_ratio_counts_parameters_of_low_sites() -> None:
    assert plan_of().ratio() == 1.0
    assert plan_of(low="float").ratio() == 0.0
    protected = plan_of(("*.down_proj", "float"), ("0.q", "float"))
    assert protected.ratio() == 1 - (2 * 40 * 72 + 40 * 40) / WEIGHTS
    assert {a.site.name for a in protected.exceptions()} == {
        "model.layers.0.mlp.down_proj",
        "model.layers.1.mlp.down_proj",
        "model.layers.0.self_attn.q_proj",
    }


@pytest.mark.parametrize(
    ("spelling", "counts"),
    [("w=int4/g32", True), ("w=e4m3/tensor", True), ("w=int8/tensor", True), ("a=int8/token", False), ("float", False)],
)
def test_low_is_a_matter_of_weight_bits(spelling: str, counts: bool) -> None:
    """Weight bits at most those of the low scheme, whatever the format."""
    plan = plan_of(("1.down", spelling))
    assert plan.ratio() == (1.0 if counts else 1 - 40 * 72 / WEIGHTS)
    assert [short_name(a.site.name) for a in plan.exceptions()] == ["1.down"]


def test_more_bits_than_the_low_scheme_are_not_low() -> None:
    plan = plan_of(("*.0.*_proj", "w=int8/channel"), low="w=int4/g32")
    assert plan.ratio() == 0.5


def test_macs_of_a_window() -> None:
    macs = {s.leaf: s.macs(7) for s in SITES[:9]}
    assert macs["down_proj"] == 7 * 40 * 72
    assert macs["qk"] == macs["av"] == 7 * 7 * HIDDEN


def test_ratio_by_macs_counts_products_low_where_both_operands_are() -> None:
    assert plan_of().ratio() == 1.0
    projections, products = 7 * WEIGHTS, 4 * 7 * 7 * HIDDEN
    whole = projections + products
    assert plan_of().ratio("macs", 7) == projections / whole
    assert plan_of(("*.qk", "l=int8/token r=e4m3/token")).ratio("macs", 7) == (projections + products // 2) / whole
    assert plan_of(("*.qk", "l=int8/token")).ratio("macs", 7) == projections / whole
    assert plan_of(("*", "float")).ratio("macs", 7) == 0
    narrow = plan_of(("0.qk", "l=int8/token r=int4/token"), ("1.qk", "l=int4/token r=int4/token"), low="w=int4/g32")
    assert narrow.ratio("macs", 7) == (projections + products // 4) / whole
    assert narrow.ratio() == 1.0


def test_the_longer_the_window_the_more_products_weigh() -> None:
    ratios = [plan_of().ratio("macs", length) for length in (1, 64, 4096)]
    assert ratios == sorted(ratios, reverse=True)
    with pytest.raises(PlanError, match="at least one token"):
        plan_of().ratio("macs")


# ---------------------------------------------------------------- files

SPELLINGS = [LOW, "float", "w=int4/g32/scale-float16/asymmetric a=int8/token", "w=nvfp4 a=nvfp4", "a=int8/g32/static"]
PRODUCTS = ["float", "l=int8/token r=int8/g8/static", "r=e4m3/tensor/dynamic"]


@given(
    st.lists(st.sampled_from(SPELLINGS), min_size=14, max_size=14),
    st.lists(st.sampled_from(PRODUCTS), min_size=4, max_size=4),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.lists(st.integers(0, 2**31), max_size=4),
)
def test_a_plan_survives_its_file(projections: list[str], products: list[str], words: str, prefix: list[int]) -> None:
    schemes = {s.name: parse_scheme((projections if s.kind == "projection" else products).pop(), s.kind) for s in SITES}
    plan = msgspec.structs.replace(plan_of().with_schemes(schemes, words), note=words, stats="ab" * 32)
    plan = msgspec.structs.replace(plan, prefix=tuple(prefix), calibration=words and "cd" * 32)
    text = encode_plan(plan)
    again = decode_plan(text)
    assert again == plan
    assert encode_plan(again) == text
    assert decode_plan(text.encode()) == plan
    assert json.loads(text)["note"] == words  # plain JSON, to any reader


def test_a_plan_without_a_prefix_is_written_as_before_there_were_any() -> None:
    assert list(json.loads(encode_plan(plan_of()))) == ["qarat", "model", "low", "float_bits", "stats", "note", "sites"]


@pytest.mark.parametrize("prefix", ["[-1]", '["a"]', "[0.5]", "0", "null"])
def test_a_malformed_prefix_is_refused(prefix: str) -> None:
    text = encode_plan(plan_of()).replace(' "note"', f' "prefix": {prefix},\n "note"', 1)
    with pytest.raises(PlanError, match="prefix"):
        decode_plan(text)


def test_every_site_has_one_line() -> None:
    lines = encode_plan(plan_of()).splitlines()
    for site in SITES:
        assert sum(f'"{site.name}"' in line for line in lines) == 1


def test_a_hand_edit_counts() -> None:
    plan = plan_of()
    name = "model.layers.1.mlp.down_proj"
    assert decode_plan(edited(plan, name, scheme="float", reason="mine")) == plan.with_schemes(
        {name: LinearScheme()}, "mine"
    )
    shortened = decode_plan(edited(plan, name, reason=None, tie=None, has_bias=None))
    assert {a.site.name: a.reason for a in shortened.assignments}[name] == ""
    assert shortened.sites == plan.sites


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sheme": "float"}, "sheme"),
        ({"scheme": None}, "scheme"),
        ({"kind": "weight"}, "kind"),
        ({"shape": "40x72"}, "shape"),
    ],
)
def test_a_malformed_entry_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        decode_plan(edited(plan_of(), "model.layers.1.mlp.down_proj", **fields))


def test_a_plan_without_the_widths_of_products_is_refused() -> None:
    text = re.sub(r', "width": \d+', "", encode_plan(plan_of()))
    assert "width" not in text
    with pytest.raises(
        PlanError, match=r"0\.self_attn\.qk: a width of 0; products and caches have one, above 0[^$]*1\.self_attn\.av"
    ):
        decode_plan(text)


def test_a_width_that_is_none_is_refused() -> None:
    for name, width in (("model.layers.1.mlp.down_proj", 40), ("model.layers.1.self_attn.qk", -40)):
        with pytest.raises(PlanError, match=f"{name}: a width of {width}"):
            decode_plan(edited(plan_of(), name, width=width))
    other = decode_plan(edited(plan_of(), "model.layers.1.self_attn.qk", width=80))
    with pytest.raises(PlanError, match="width 80 in the plan, 40 in the model"):
        other.check(MODEL, SITES)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"qarat": "plan/1"}', b'{"qarat": "\xff"}'])
def test_what_is_no_plan_is_refused(text: str | bytes) -> None:
    with pytest.raises(PlanError, match="not a plan"):
        decode_plan(text)


def test_an_unknown_key_or_version_of_the_file_is_refused() -> None:
    tree = json.loads(encode_plan(plan_of()))
    with pytest.raises(PlanError, match="owner"):
        decode_plan(json.dumps(tree | {"owner": "me"}))
    with pytest.raises(PlanError, match="plan/2"):
        decode_plan(json.dumps(tree | {"qarat": "plan/2"}))


def test_every_malformed_scheme_is_named_with_its_site() -> None:
    tree = json.loads(encode_plan(plan_of()))
    tree["low"] = "w=int8"
    tree["sites"]["model.layers.0.mlp.up_proj"]["scheme"] = "w=int9/channel"
    tree["sites"]["model.layers.1.self_attn.qk"]["scheme"] = "l=int8/chanel"
    with pytest.raises(PlanError) as error:
        decode_plan(json.dumps(tree))
    for word in ("low", "granularity", "0.mlp.up_proj", "int9", "1.self_attn.qk", "chanel"):
        assert word in str(error.value)


def test_a_site_given_twice_is_refused() -> None:
    text = encode_plan(plan_of())
    line = next(line for line in text.splitlines() if "1.mlp.down_proj" in line)
    with pytest.raises(PlanError, match=r"1\.mlp\.down_proj.*twice"):
        decode_plan(text.replace(line, f"{line}\n{line}"))


# ---------------------------------------------------------------- patterns


def test_the_last_match_wins() -> None:
    wide, narrow = ("*.down_proj", "w=int4/g32"), ("1.down", "float")
    assert plan_of(wide, narrow)["model.layers.1.mlp.down_proj"] == LinearScheme()
    assert plan_of(wide, narrow)["model.layers.0.mlp.down_proj"] == parse_scheme("w=int4/g32")
    assert plan_of(narrow, wide)["model.layers.1.mlp.down_proj"] == parse_scheme("w=int4/g32")


def test_reasons_say_how_a_scheme_came_about() -> None:
    reasons = {a.site.name: a.reason for a in plan_of(("1.down", "float")).assignments}
    assert reasons["model.layers.1.mlp.down_proj"] == "matches 1.down"
    assert reasons["model.layers.0.mlp.down_proj"] == "low scheme"
    assert reasons["model.layers.0.self_attn.qk"] == "left in float"


@pytest.mark.parametrize(
    ("pattern", "leaves"),
    [
        ("model.layers.1.mlp.down_proj", ["down_proj"]),
        ("1.down", ["down_proj"]),
        ("1.[qkv]", ["q_proj", "k_proj", "v_proj"]),
        ("model.layers.1.mlp.*", ["gate_proj", "up_proj", "down_proj"]),
        ("1.?k", ["qk"]),
    ],
)
def test_patterns_match_full_and_short_names(pattern: str, leaves: list[str]) -> None:
    assert [(s.block, s.leaf) for s in match_sites(pattern, SITES)] == [(1, leaf) for leaf in leaves]


def test_a_pattern_that_matches_nothing_names_near_ones() -> None:
    with pytest.raises(PlanError, match=r"'\*\.dwn_proj' matches no site.*\*\.down_proj"):
        match_sites("*.dwn_proj", SITES)
    with pytest.raises(PlanError, match=r"layers\.1\.mlp\.down_proj"):
        plan_of(("model.layers.7.mlp.down_proj", "float"))


@pytest.mark.parametrize(
    ("pattern", "spelling"), [("*.down_proj", "l=int8/token"), ("1.qk", "w=int8/channel"), ("*", LOW)]
)
def test_a_scheme_of_the_wrong_kind_is_refused(pattern: str, spelling: str) -> None:
    with pytest.raises(PlanError, match="does not fit"):
        plan_of((pattern, spelling))


def test_float_fits_every_kind() -> None:
    plan = plan_of(("*", "float"))
    assert {type(a.scheme) for a in plan.assignments if a.site.kind == "product"} == {MatmulScheme}
    assert all(a.is_float for a in plan.assignments)


def test_malformed_spellings_are_refused() -> None:
    with pytest.raises(SchemeError, match="int9"):
        plan_of(("1.down", "w=int9/channel"))
    with pytest.raises(PlanError, match="low scheme belongs to projections"):
        plan_of(low="l=int8/token")


def test_changes_name_known_sites_only() -> None:
    with pytest.raises(PlanError, match=r"9\.down.*9\.up"):
        plan_of().with_schemes({"9.up": LinearScheme(), "9.down": LinearScheme()}, "why")


def test_blocks_are_equal_where_their_schemes_are() -> None:
    naive, other = plan_of(), plan_of(("1.down", "float"))
    assert naive.block(0) == other.block(0)
    assert naive.block(1) != other.block(1)
    assert len(naive.block(0)) == 9


# ---------------------------------------------------------------- against a model


def test_a_plan_fits_its_own_model() -> None:
    plan_of().check(MODEL, SITES)
    plan_of().check(MODEL, SITES[::-1])


def test_every_misfit_is_listed_at_once() -> None:
    other = [
        msgspec.structs.replace(s, shape=(40, 80)) if s.name.endswith("0.mlp.down_proj") else s
        for s in SITES
        if not s.name.endswith("1.mlp.up_proj")
    ]
    other += [msgspec.structs.replace(SITES[0], name="model.layers.2.self_attn.q_proj", block=2)]
    wrong_kind = plan_of().with_schemes({"model.layers.0.self_attn.qk": LinearScheme()}, "by hand")
    with pytest.raises(PlanError) as error:
        wrong_kind.check("f" * 64, other)
    message = str(error.value)
    assert len(message.splitlines()) == 1 + 5
    assert "0123456789ab" in message
    assert "ffffffffffff" in message
    assert "model.layers.1.mlp.up_proj: not in the model" in message
    assert "model.layers.2.self_attn.q_proj: missing from the plan" in message
    assert "model.layers.0.mlp.down_proj: shape (40, 72) in the plan, (40, 80) in the model" in message
    assert "model.layers.0.self_attn.qk: float does not fit a product" in message


@pytest.mark.parametrize(
    "fields", [{"block": 0}, {"tie": "mlp_in"}, {"streams": ["model.layers.0.down_in"]}, {"has_bias": True}]
)
def test_a_site_edited_into_another_is_refused(fields: dict[str, object]) -> None:
    plan = decode_plan(edited(plan_of(), "model.layers.1.mlp.down_proj", **fields))
    with pytest.raises(PlanError, match=rf"1\.mlp\.down_proj: {next(iter(fields))}"):
        plan.check(MODEL, SITES)


def test_ties_must_share_a_scheme() -> None:
    plan_of(("1.[qkv]", "float"), ("*.gate_proj", "float"), ("*.up_proj", "float"), ("*.o_proj", "float")).check_ties()
    with pytest.raises(PlanError) as error:
        plan_of(("1.q", "float"), ("0.up", "w=int4/g32")).check_ties()
    first, *broken = str(error.value).splitlines()
    assert "share" in first
    assert len(broken) == 2
    assert "block 0: gate_proj" in broken[0]
    assert "block 1: q_proj float, k_proj w=int8" in broken[1]


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "short"),
    [("model.layers.1.mlp.down_proj", "1.down"), ("model.layers.12.self_attn.qk", "12.qk"), ("lm_head", "?.lm_head")],
)
def test_short_names(name: str, short: str) -> None:
    assert short_name(name) == short

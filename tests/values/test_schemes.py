"""Schemes: spelling and value are inverse to each other, and a wrong spelling points at the character."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qarat.values.formats import FORMATS, LEARNED
from qarat.values.parsing import parse_scheme, parse_tensor_scheme
from qarat.values.schemes import PRESETS, SCALE_BITS, Granularity, LinearScheme, MatmulScheme, SchemeError, TensorScheme

SIZES = st.integers(1, 4096)
GROUPS = SIZES.map(lambda n: Granularity(1, n))
TILES = st.builds(Granularity, SIZES, SIZES)


CONTRADICTIONS = (
    "needs an integer format",
    "knows no zero point",
    "gives powers of two",
    "not for its groups",
    "needs the signs",
    "outlier columns are found",
    "would count the outlier columns",
)
MISPLACED = "belongs to a weight"
OF_WEIGHTS = {
    "kmeans4/tensor": "has a table a row",
    "kmeans4/g32/scale-float16": "no scale that could be chosen",
    "kmeans4/channel/mse": "no scale that could be chosen",
    "kmeans4/channel/asymmetric": "needs an integer format",
    "int4/g32/sparse-0": "more than 0 and at most 50",
    "int4/g32/sparse-51": "more than 0 and at most 50",
    "int4/g32/sparse-1/p99": "as zeros",
    "nvfp4/sparse-1": "all that an engine merges",
    "e4m3/tensor/sparse-1": "all that an engine merges",
}
"""What cannot go together in a weight's scheme alone."""


def tensor_schemes(role: str) -> st.SearchStrategy[TensorScheme]:
    """Every scheme that a weight (``w``) or an input can have."""
    whole = st.just(Granularity())
    rows = st.just(Granularity(1, None))
    static_groups = SIZES.map(lambda n: Granularity(None, n))
    places = st.one_of(whole, rows, GROUPS, TILES).map(lambda g: (g, False))
    if role != "w":
        places = st.one_of(places, st.one_of(whole, static_groups).map(lambda g: (g, True)))
    choices = st.one_of(
        st.sampled_from(["absmax", "mse", "mx-floor", "mx-even", *(["typical"] if role == "w" else [])]).map(
            lambda c: (c, 99.9)
        ),
        st.floats(50, 100).map(lambda p: ("percentile", p)),
    )
    outliers = st.none() | st.floats(0, 1000) if role == "a" else st.none()
    reach = st.just(1.0) | st.floats(0, 10, exclude_min=True)
    sparse = st.none() | st.floats(0, 50, exclude_min=True) if role == "w" else st.none()
    return st.builds(
        lambda name, place, scale, choice, symmetric, outliers, reach, sparse: TensorScheme(
            name, place[0], scale, choice[0], choice[1], symmetric, place[1], outliers, reach=reach, sparse=sparse
        ),
        st.sampled_from(sorted(FORMATS | LEARNED if role == "w" else FORMATS)),
        places,
        st.sampled_from(sorted(kind for kind in SCALE_BITS if role == "w" or kind != "uint8")),
        choices,
        st.booleans(),
        outliers,
        reach,
        sparse,
    ).filter(lambda scheme: not scheme.contradictions())


def test_the_readme_spelling() -> None:
    scheme = parse_scheme("w=int8/channel a=int8/tensor/static")
    weight = TensorScheme("int8", Granularity(1, None))
    assert scheme == LinearScheme(weight, TensorScheme("int8", Granularity(), static=True))
    assert str(scheme) == "w=int8/channel a=int8/tensor/static"


@given(st.none() | tensor_schemes("w"), st.none() | tensor_schemes("a"))
def test_projection_schemes_read_back_equal(weight: TensorScheme | None, given_input: TensorScheme | None) -> None:
    scheme = LinearScheme(weight, given_input)
    assert parse_scheme(str(scheme)) == scheme


@given(st.none() | tensor_schemes("l"), st.none() | tensor_schemes("r"))
def test_product_schemes_read_back_equal(left: TensorScheme | None, right: TensorScheme | None) -> None:
    scheme = MatmulScheme(left, right)
    assert parse_scheme(str(scheme), "product") == scheme


@pytest.mark.parametrize("name", [*FORMATS, *PRESETS])
def test_every_combination_of_words_has_one_canonical_spelling(name: str) -> None:
    """What is read prints as something that reads the same, for every word of every kind (weights and inputs)."""
    places = {"w": ["tensor", "channel", "g32", "1x16", "8x16"]}
    places["a"] = ["tensor/static", "tensor/dynamic", "token", "g32", "g32/static", "g32/dynamic", "8x16/static"]
    scales = ["", *(f"/scale-{kind}" for kind in SCALE_BITS)]
    choices = ["", "/absmax", "/mse", "/p99.99", "/p100", "/typical", "/mx-floor", "/mx-even"]
    refusals: list[str] = []
    for role in "wa":
        for words in itertools.product(places[role], scales, choices, ["", "/asymmetric"]):
            spelling = f"{name}/{''.join(words)}"
            try:
                scheme = parse_tensor_scheme(spelling, role)
            except SchemeError as error:
                refusals.append(str(error))
                continue
            assert not scheme.contradictions()
            assert parse_tensor_scheme(scheme.spell(role), role) == scheme
    assert all(any(why in refusal for why in (*CONTRADICTIONS, MISPLACED)) for refusal in refusals)


def test_words_that_cannot_go_together_are_refused_when_read() -> None:
    for spelling, why in zip(
        (
            "e4m3/tensor/dynamic/asymmetric",
            "int4/g32/mx-floor/asymmetric",
            "sint4/g32/mx-even/scale-e4m3",
            "int8/g32/static/mse",
            "int8/tensor/static/mse/asymmetric",
            "int8/tensor/static/outliers-6",
            "int8/token/mse/outliers-6",
        ),
        CONTRADICTIONS,
        strict=True,
    ):
        with pytest.raises(SchemeError, match=why):
            parse_tensor_scheme(spelling, "a")


@pytest.mark.parametrize("spelling", OF_WEIGHTS)
def test_words_that_cannot_go_together_in_a_weight_are_refused_when_read(spelling: str) -> None:
    with pytest.raises(SchemeError, match=OF_WEIGHTS[spelling]):
        parse_tensor_scheme(spelling, "w")


def test_tables_and_sparse_parts_are_of_weights() -> None:
    spelling = "w=kmeans3/channel/sparse-0.45/round-squeezellm"
    assert str(parse_scheme(spelling)) == spelling
    assert str(parse_scheme("w=mxfp4/g16/sparse-1/round-gwq")) == "w=mxfp4/g16/sparse-1/round-gwq"
    with pytest.raises(SchemeError, match="kmeans3 is for weights"):
        parse_scheme("a=kmeans3/token")
    with pytest.raises(SchemeError, match="'sparse-1' belongs to a weight"):
        parse_scheme("a=int8/token/sparse-1")
    with pytest.raises(SchemeError, match="unknown number format 'kmeans5'; did you mean kmeans"):
        parse_scheme("w=kmeans5/channel")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_stand_for_themselves_and_take_another_block_size(name: str) -> None:
    assert parse_tensor_scheme(name, "w") == PRESETS[name]
    assert PRESETS[name].spell("w") == name
    other = parse_tensor_scheme(f"{name}/g64", "w")
    assert other.granularity == Granularity(1, 64)
    assert other.spell("w") == f"{name}/g64"


def test_static_groups_span_all_tokens() -> None:
    scheme = parse_tensor_scheme("int8/g128/static", "a")
    assert (scheme.granularity, scheme.static) == (Granularity(None, 128), True)


@pytest.mark.parametrize("text", ["float", " float ", "w=float", "w=float a=float"])
def test_float_is_no_scheme_at_all(text: str) -> None:
    assert parse_scheme(text) == LinearScheme()
    assert str(parse_scheme(text)) == "float"


@pytest.mark.parametrize(
    ("text", "mark", "why"),
    [
        ("", 0, "empty"),
        ("int8/channel", 0, "expected `float`"),
        ("x=int8/channel", 0, "expected `float`"),
        ("w=int8/channel w=int8/channel", 15, "given twice"),
        ("w=int8/channel l=int8/token", 0, "one kind"),
        ("w=int9/channel", 2, "did you mean int"),
        ("w=int8/chanel", 7, "did you mean channel"),
        ("w=int8/channel/g128", 15, "sets the granularity a second time"),
        ("w=int8/channel/mse/p99", 19, "sets the choice a second time"),
        ("w=int8/token", 7, "use channel"),
        ("a=int8/channel", 7, "use token"),
        ("w=int8", 6, "granularity is missing"),
        ("w=int8/channel/static", 2, "a weight's scales are always fixed"),
        ("a=int8/tensor", 2, "say static or dynamic"),
        ("a=int8/token/static", 2, "cannot be static"),
        ("w=/int8", 2, "expected FORMAT/GRANULARITY"),
        ("w=int8//channel", 2, "expected FORMAT/GRANULARITY"),
        ("w=int8/g0", 7, "unknown word"),
        ("w=int8/channel/p49", 15, "unknown word"),
        ("w=int8/channel/outliers-6", 15, "belongs to the input of a projection"),
        ("l=int8/token/outliers-6", 13, "belongs to the input of a projection"),
        ("w=int8/channel/reach-1.2", 15, "belongs to an input"),
        ("a=int8/token/reach-1.2", 2, "goes with static and absmax"),
        ("a=int8/tensor/static/reach-0", 2, "clips everything"),
        ("a=int8/token/outliers", 13, "did you mean outliers-6"),
        ("w=int8/channel/scale-e4m4", 15, "did you mean scale-e4m3"),
    ],
)
def test_a_wrong_spelling_points_at_the_character(text: str, mark: int, why: str) -> None:
    with pytest.raises(SchemeError) as error:
        parse_scheme(text)
    message, shown, pointer = str(error.value).split("\n")
    assert why in message
    assert (shown, pointer) == (f"  {text}", f"  {' ' * mark}^")


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [
        (Granularity(), (1, 1)),
        (Granularity(1, None), (10, 1)),
        (Granularity(1, 32), (10, 3)),
        (Granularity(4, 32), (3, 3)),
        (Granularity(None, 32), (1, 3)),
        (Granularity(4, None), (3, 1)),
        (Granularity(128, 128), (1, 1)),
    ],
)
def test_a_last_tile_may_be_shorter(granularity: Granularity, shape: tuple[int, int]) -> None:
    assert granularity.scale_shape(10, 70) == shape


@pytest.mark.parametrize(
    ("spelling", "bits"),
    [
        ("int8/tensor", 64 * 96 * 8 + 32),
        ("int4/channel/asymmetric", 64 * 96 * 4 + 64 * (32 + 4)),
        ("int4/g32/scale-float16", 64 * 96 * 4 + 64 * 3 * 16),
        ("mxint4", 64 * 96 * 4 + 64 * 3 * 8),
        ("nvfp4", 64 * 96 * 4 + 64 * 6 * 8 + 32),
    ],
)
def test_bits_count_elements_scales_and_zero_points(spelling: str, bits: int) -> None:
    assert parse_tensor_scheme(spelling, "w").bits(64, 96) == bits

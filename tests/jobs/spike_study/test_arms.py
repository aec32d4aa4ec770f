"""Arms before they are measured: controls are drawn from what is not protected, orders rank as they say."""

from pathlib import Path

import pytest

from qarat.jobs.spike_study.arms import (
    ALONE,
    ANY_KIND,
    ATTENTION,
    EVERY_DOWN,
    MLP,
    SAME_KIND,
    ablation_arms,
    control_arms,
    method_arms,
    order_arms,
    protection_arms,
)
from qarat.jobs.spike_study.published import PUBLISHED, published_of
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.testing import tiny_checkpoint
from qarat.values.parsing import parse_scheme
from qarat.values.requests.spike_study import EXTENTS, MAIN, METHODS, TWIN, Setting, SpikeRequest
from qarat.values.sites import Site, short_name

DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> list[Site]:
    model: Model = open_model(str(tiny_checkpoint(tmp_path_factory.mktemp("m") / "tiny", blocks=4)))
    return [s for s in model.sites() if s.kind == "projection"]


def test_controls_are_as_much_of_the_same_kind_or_any_and_never_protected_elsewhere(every: list[Site]) -> None:
    sites = (DOWN, "model.layers.0.self_attn.o_proj")
    arms = list(control_arms(MAIN, sites, every, seeds=5))
    leaves = {s.name: s.leaf for s in every}
    parameters = {s.name: s.parameters for s in every}
    least = sum(parameters[n] for n in sites)
    same, some = ([a for a in arms if a.label.startswith(words)] for words in (SAME_KIND, ANY_KIND))
    assert len(same) == len(some) == 5
    assert len({frozenset(a.protected) for a in same + some}) == 10
    assert all(not set(a.protected) & set(sites) for a in same + some)
    assert all(sorted(leaves[n] for n in a.protected) == ["down_proj", "o_proj"] for a in same)
    for a in some:
        *rest, last = (parameters[n] for n in a.protected)
        assert sum(rest) < least <= sum(rest) + last
        assert "of at least as many parameters" in a.label
    downs = next(a for a in arms if a.label == EVERY_DOWN)
    assert [short_name(n) for n in downs.protected] == ["0.down", "1.down", "2.down", "3.down"]
    ends = arms[-1]
    assert {s.block for s in every if s.name in ends.protected} == {0, 3}
    assert len(ends.protected) == 14


def test_an_ablation_lowers_one_part_of_every_block(every: list[Site]) -> None:
    low = {
        arm.label.removesuffix(ALONE): {s.leaf for s in every if s.name not in arm.protected}
        for arm in ablation_arms(TWIN, every)
    }
    attention, mlp = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
    assert low == {ATTENTION: attention, MLP: mlp, **{leaf: {leaf} for leaf in attention | mlp}}
    assert all((a.group, a.scheme, a.protection) == ("ablation", TWIN.low, "float") for a in ablation_arms(TWIN, every))
    kept = {a.label: len(a.protected) for a in ablation_arms(MAIN, every)}
    assert kept[f"{ATTENTION}{ALONE}"] == 4 * 3
    assert kept[f"{MLP}{ALONE}"] == 4 * 4


def test_an_ablation_knows_a_family_without_an_mlp_module(tmp_path: Path) -> None:
    model = open_model(str(tiny_checkpoint(tmp_path / "opt", architecture="opt")))
    every = [s for s in model.sites() if s.kind == "projection"]
    (mlp,) = (a for a in ablation_arms(MAIN, every) if a.label == f"{MLP}{ALONE}")
    assert {s.leaf for s in every if s.name not in mlp.protected} == {"fc1", "fc2"}


def test_draws_of_the_same_kind_are_those_of_older_records(every: list[Site]) -> None:
    arms = control_arms(MAIN, (DOWN, "model.layers.0.self_attn.o_proj"), every, seeds=3)
    drawn = [list(map(short_name, a.protected)) for a in arms if a.label.startswith(SAME_KIND)]
    assert drawn == [["2.down", "2.o"], ["0.down", "3.o"], ["0.down", "1.o"]]


def test_there_are_no_more_controls_than_different_draws(every: list[Site]) -> None:
    arms = list(control_arms(MAIN, (DOWN,), every, seeds=5))
    assert sum(a.label.startswith(SAME_KIND) for a in arms) == 3  # the other three blocks'


def test_a_choice_of_the_same_kind_is_not_drawn_again_among_those_of_any(every: list[Site]) -> None:
    downs = [s for s in every if s.leaf == "down_proj"]
    drawn = [a.label for a in control_arms(MAIN, (DOWN,), downs, seeds=5) if a.label.startswith((SAME_KIND, ANY_KIND))]
    assert len(drawn) == 3
    assert all(words.startswith(SAME_KIND) for words in drawn)


def test_what_is_left_of_a_model_that_is_mostly_protected_is_a_control_of_fewer_parameters(every: list[Site]) -> None:
    *sites, left = (s.name for s in every)
    drawn = [a for a in control_arms(MAIN, tuple(sites), every, seeds=5) if a.label.startswith((SAME_KIND, ANY_KIND))]
    assert [a.protected for a in drawn] == [(left,)]
    assert "of fewer parameters" in drawn[0].label


def test_without_sites_there_is_only_naive(every: list[Site]) -> None:
    assert [a.label for a in protection_arms(MAIN, ())] == ["naive"]
    assert not list(control_arms(MAIN, (), every, 5))
    assert len(list(method_arms(MAIN, "hadamard", MAIN.low, "hadamard", ()))) == 1


def test_freeing_the_input_keeps_the_weight_low() -> None:
    freed = list(protection_arms(Setting(6, "tensor", "token"), (DOWN,)))[-1]
    assert freed.protection == "w=int6/tensor"
    assert parse_scheme(freed.protection).input is None  # type: ignore[union-attr]


def test_orders_take_the_first_k_and_no_more_than_there_are(every: list[Site]) -> None:
    names = [s.name for s in every][:3]
    assert [a.protected for a in order_arms(MAIN, "snr", names, (0, 1, 3, 8))] == [tuple(names[:1]), tuple(names)]


def test_every_scheme_of_every_extent_can_be_read() -> None:
    assert len(EXTENTS["usual"].settings) == 12
    for setting in EXTENTS["full"].settings:
        parse_scheme(setting.low)
    for setting in EXTENTS["full"].compared:
        for method in METHODS.values():
            if method.fits(setting):
                parse_scheme(method.scheme(setting))
    assert METHODS["llm-int8"].scheme(TWIN) == "w=int6/channel a=int6/token/outliers-6"
    assert SpikeRequest(methods=("prefix", "smooth")).asked_methods.keys() == {"smooth", "prefix"}


def test_methods_are_where_they_fit() -> None:
    token = Setting(8, "channel", "token")
    fitting = {name for name, method in METHODS.items() if method.fits(token)}
    assert fitting == {"smooth", "smooth-all", "llm-int8", "llm-int8-tensor", "hadamard", "split", "rewrite"}
    assert all(method.fits(MAIN) for method in METHODS.values())
    assert EXTENTS["full"].compared == EXTENTS["full"].settings
    assert EXTENTS["usual"].compared == EXTENTS["usual"].rich == (MAIN, TWIN)


@pytest.mark.parametrize(
    ("name", "models"),
    [
        ("meta-llama/Llama-2-7b-hf", {"Llama-2-7B"}),
        ("/models/llama_2_70b", {"Llama-2-70B"}),
        ("Meta-Llama-3-8B", {"Llama-3-8B"}),
        ("mistralai/Mistral-7B-v0.1", {"Mistral-7B-v0.1", "Mistral-7B"}),
        ("py-128", set()),
    ],
)
def test_published_figures_go_by_the_model_s_name(name: str, models: set[str]) -> None:
    assert {row.model for row in published_of(name).rows} == models
    assert models <= {row.model for row in PUBLISHED.rows}


def test_a_path_is_no_name(tmp_path: Path) -> None:
    assert not published_of("/llama-2-7b/finetunes/py-128").rows

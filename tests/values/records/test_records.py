"""Records: equal content is equal bytes, what comes back is what was saved, and strangers are never combined."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from qarat.ground.errors import UserError
from qarat.values.plans import Plan, assign
from qarat.values.records import files
from qarat.values.records.advice import Advice, AdvisedScheme, EngineAnswer, LeftOut
from qarat.values.records.files import Record, content_hash, decode_record, describe_record, encode_record
from qarat.values.records.origin import Difference, Provenance
from qarat.values.records.prices import NATS, Menu, MenuEntry, Protection, Trial
from qarat.values.records.scores import Continuations, Evaluation, TaskScore, ZeroShot, paired_difference
from qarat.values.records.streams import ActivationStats, Peak, StreamStats
from qarat.values.sites import Site

PROVENANCE = Provenance("m" * 64, "t" * 64, "windows-8-bos", {"qarat": "0", "torch": "2"}, seed=7)


def make_stats() -> ActivationStats:
    generator = torch.Generator().manual_seed(0)
    peak = Peak(-3.5, 1, 0, 0, "<s>", 2)
    streams = {}
    for kind, width in (("down_in", 5), ("p", 3)):
        arrays = {key: torch.randint(9, (4,), generator=generator) for key in ("histogram", "token_maxima")}
        if kind != "p":
            arrays["channel_min"] = torch.randn(width, generator=generator)
        name = f"model.layers.0.{kind}"
        streams[name] = StreamStats(name, 0, kind, width, 16, 2.5, 3.5, 1.25, 0.1, 0.3, (peak, peak), arrays)
    edges = torch.tensor([0.0, 0.5, 1.0, 2.0, 4.0])
    return ActivationStats(PROVENANCE, 2, 8, 2, edges, streams)


def make_evaluation(**fields: object) -> Evaluation:
    whole = Evaluation("float", PROVENANCE, "", (20.0, 0.1 + 0.2, 1e-300), (7, 7, 7), ("a.txt", "a.txt", "b.txt"))
    return msgspec.structs.replace(whole, **fields)


def make_menu() -> Menu:
    entries = (
        MenuEntry("model.layers.0.mlp.down_proj", "w=int8/channel", 0.1, 0.01),
        MenuEntry("model.layers.0.mlp.down_proj", "w=int4/g32", 0.7, 0.01),
        MenuEntry("model.layers.0.mlp.up_proj", "w=int8/channel", 0.2, 0.01),
    )
    return Menu(PROVENANCE, "fisher", "s" * 64, entries)


def make_protection() -> Protection:
    trials = tuple(Trial(f"{k} protected", ("a", "b")[:k], Difference(0.5 - 0.2 * k, 0.01, 3)) for k in range(3))
    budget, predicted = math.log1p(0.01), (0.4, 0.2, 0.0)
    return Protection(PROVENANCE, "Fisher damage", "ppl+1%", budget, trials, predicted, ("a", "b"), "2 protected")


def make_plan() -> Plan:
    name = "model.layers.0.mlp.down_proj"
    return assign("m" * 64, 16, [Site(name, 0, "projection", ("model.layers.0.down_in",), (4, 5))], "w=int8/channel")


def make_continuations() -> Continuations:
    return Continuations(PROVENANCE, "Once", {"float": "upon", "plan": 'upon ☃ "a"\n'})


def make_zero_shot() -> ZeroShot:
    scores = (
        TaskScore("code_continuation", "1.0", "acc", 0.5, 0.25, (1.0, 0.0)),
        TaskScore("wikitext", "2", "word_perplexity", 1e300, 0.5, ()),
    )
    return ZeroShot("float", PROVENANCE, "", scores)


def make_advice() -> Advice:
    engine = EngineAnswer("vllm", "0.27 and later", "int8", "GPUs")
    request = {"low": "w=int8/channel", "budget": "ppl+1%"}
    advised = AdvisedScheme(
        "W8A16", "w=int8/channel", 0.1, "rewrite/0", 0.05, 0.01, ("a",), 0.25, 8.5, 1000, (engine,), request
    )
    left, lost = LeftOut("W4A16 g128", "w=int4/g128", "rows of 64"), Difference(0.01, 0.001, 3)
    return Advice(PROVENANCE, "ppl+1%", math.log1p(0.01), 1.5, (), (advised,), {"W8A16": lost}, (left,), 4096, 9.5)


MAKERS: dict[str, Callable[[], Any]] = {
    "stats": make_stats,
    "advice": make_advice,
    "evaluation": make_evaluation,
    "menu": make_menu,
    "protection": make_protection,
    "plan": make_plan,
    "continuations": make_continuations,
    "zero-shot": make_zero_shot,
}


def test_only_stats_need_torch() -> None:
    """Reading any other record must not wait for it."""
    folder = Path(files.__file__).parent
    names = [path.stem for path in folder.glob("[a-z]*.py") if path.stem != "streams"]
    lines = [f"import qarat.values.records.{name}" for name in names] + [
        "import sys",
        "assert 'torch' not in sys.modules",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def saved(folder: Path, record: Record) -> Path:
    path = folder / ("record.safetensors" if isinstance(record, ActivationStats) else "record.json")
    path.write_bytes(encode_record(record))
    return path


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("kind", MAKERS)
def test_a_record_survives_its_file(kind: str, tmp_path: Path) -> None:
    record = MAKERS[kind]()
    path = saved(tmp_path, record)
    for again in (decode_record(path), decode_record(path, type(record))):
        assert type(again) is type(record)
        assert encode_record(again) == path.read_bytes()
        assert content_hash(again) == content_hash(record)
        if kind != "stats":
            assert again == record


def test_stats_come_back_with_their_arrays(tmp_path: Path) -> None:
    stats = make_stats()
    again = decode_record(saved(tmp_path, stats), ActivationStats)
    torch.testing.assert_close(again.edges, stats.edges, rtol=0, atol=0)
    assert list(again.streams) == list(stats.streams)
    for name, stream in stats.streams.items():
        assert again.stream(name).arrays.keys() == stream.arrays.keys()
        for key, array in stream.arrays.items():
            torch.testing.assert_close(again.stream(name).arrays[key], array, rtol=0, atol=0)
        bare = [msgspec.structs.replace(s, arrays={}) for s in (stream, again.stream(name))]
        assert bare[0] == bare[1]


@pytest.mark.parametrize("kind", MAKERS)
def test_equal_content_has_equal_bytes_and_hash(kind: str) -> None:
    assert encode_record(MAKERS[kind]()) == encode_record(MAKERS[kind]())
    assert content_hash(MAKERS[kind]()) == content_hash(MAKERS[kind]())
    assert len({content_hash(make()) for make in MAKERS.values()}) == len(MAKERS)


@pytest.mark.parametrize("kind", [k for k in MAKERS if k != "plan"])
def test_other_provenance_is_other_content(kind: str) -> None:
    record = MAKERS[kind]()
    for fields in ({"seed": 8}, {"tokens": "u" * 64}, {"versions": {"qarat": "1", "torch": "2"}}):
        other = msgspec.structs.replace(record, provenance=msgspec.structs.replace(PROVENANCE, **fields))
        assert content_hash(other) != content_hash(record)


def test_one_changed_element_of_an_array_is_other_content() -> None:
    stats, other = make_stats(), make_stats()
    other.streams["model.layers.0.p"].arrays["histogram"][3] += 1
    assert content_hash(stats) != content_hash(other)


def test_arrays_are_kept_whatever_their_strides() -> None:
    stats = make_stats()
    spread = torch.stack([stats.edges, stats.edges], 1)[:, 0]
    assert not spread.is_contiguous()
    assert content_hash(msgspec.structs.replace(stats, edges=spread)) == content_hash(stats)


def test_one_cluster_has_no_standard_error_in_a_file_either(tmp_path: Path) -> None:
    """JSON has no NaN; a record that holds one must still be read."""
    alone = Trial("nothing protected", (), Difference(0.5, math.nan, 1))
    sweep = msgspec.structs.replace(make_protection(), trials=(alone,), predicted=(0.4,))
    menu = Menu(PROVENANCE, "fisher", "", (MenuEntry("a", "w=int8/channel", 0.1, math.nan),))
    for number, record in enumerate((sweep, menu)):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = saved(folder, record)
        json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
        assert encode_record(decode_record(path)) == path.read_bytes()
    (trial,) = decode_record(tmp_path / "0" / "record.json", Protection).trials
    assert math.isnan(trial.damage.standard_error)


def test_a_menu_that_names_no_unit_is_in_nats(tmp_path: Path) -> None:
    path = saved(tmp_path, make_menu())
    assert "unit" not in json.loads(path.read_text())["record"]
    assert decode_record(path, Menu).unit == NATS


def test_a_description_is_the_file_without_arrays() -> None:
    for record in (make_menu(), make_plan()):
        assert json.loads(json.dumps(describe_record(record))) == json.loads(encode_record(record))
    text = json.dumps(describe_record(make_stats()))
    assert "model.layers.0.p" in text
    assert describe_record(PROVENANCE) == msgspec.to_builtins(PROVENANCE)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_wrong_kind_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = saved(tmp_path, MAKERS[kind]())
    wanted = Menu if kind == "protection" else Protection
    with pytest.raises(UserError, match=rf"is of kind {kind}; {wanted.__name__.lower()} is needed here"):
        decode_record(path, wanted)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: .*nothing\.json"):
        decode_record(tmp_path / "nothing.json")


@pytest.mark.parametrize("kind", MAKERS)
def test_a_truncated_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = saved(tmp_path, MAKERS[kind]())
    whole = path.read_bytes()
    for length in {0, 1, 7, 8, 9, len(whole) // 3, len(whole) // 2, len(whole) - 3}:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"record|damaged|plan"):
            decode_record(path)


@pytest.mark.parametrize("name", ["record.json", "record.safetensors"])
@pytest.mark.parametrize(
    "data", [b"\xff\xfe\x00", b'{"qarat": "\xff"}', b"null", b"[1]", b"{}", b'{"qarat": 3}', b"PK\x03"]
)
def test_garbage_is_refused(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=name):
        decode_record(tmp_path / name)


def test_a_record_of_a_former_kind_is_refused_with_a_way_to_a_new_one(tmp_path: Path) -> None:
    path = saved(tmp_path, make_protection())
    path.write_text(path.read_text().replace("protection/2", "sweep/1"))
    with pytest.raises(UserError, match=r"record\.json is a sweep of qarat 0\.1, now a protection; run `qarat"):
        decode_record(path)


def test_a_protection_of_the_first_version_is_refused_with_a_way_to_a_new_one(tmp_path: Path) -> None:
    path = saved(tmp_path, make_protection())
    path.write_text(path.read_text().replace("protection/2", "protection/1"))
    with pytest.raises(
        UserError, match="protection of version 1; this qarat reads version 2; make it again with `qarat p"
    ):
        decode_record(path)


def test_another_version_is_refused_with_its_number(tmp_path: Path) -> None:
    path = saved(tmp_path, make_menu())
    path.write_text(path.read_text().replace("menu/1", "menu/2"))
    with pytest.raises(UserError, match="menu of version 2; this qarat reads version 1"):
        decode_record(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"record"', '"rekord"'),
        ('"metric"', '"metrik"'),
        ('"damage": 0.1', '"damage": "much"'),
        ('"damage": 0.1,', ""),
        ('"metric": "fisher"', '"metric": null'),
        ("menu/1", "table/1"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(old: str, new: str, tmp_path: Path) -> None:
    path = saved(tmp_path, make_menu())
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=r"record\.json"):
        decode_record(path)


def test_damaged_stats_are_refused(tmp_path: Path) -> None:
    stats = make_stats()
    path = saved(tmp_path, stats)
    arrays = load(path.read_bytes())
    text = json.dumps(describe_record(stats))
    lost = {k: v for k, v in arrays.items() if k != "model.layers.0.p/histogram"}
    for tensors, header in [
        (lost, {"qarat": text}),
        ({k: v for k, v in arrays.items() if k != "edges"}, {"qarat": text}),
        (arrays | {"stranger": torch.zeros(1)}, {"qarat": text}),
        (arrays, {"qarat": text[:-2]}),
        (arrays, {"qarat": '{"qarat": "stats/1", "record": []}'}),
        (arrays, {"format": "pt"}),
    ]:
        path.write_bytes(save(tensors, header))
        with pytest.raises(UserError, match=r"record\.safetensors"):
            decode_record(path)


def test_stats_name_a_stream_they_lack() -> None:
    with pytest.raises(UserError, match=r"no stream model\.layers\.9\.down_in; profile"):
        make_stats().stream("model.layers.9.down_in")


# ---------------------------------------------------------------- values


def test_loss_is_the_mean_over_tokens_not_windows() -> None:
    evaluation = make_evaluation(nats=(10.0, 1.0, 4.0), predicted=(2, 1, 2))
    assert evaluation.loss == 3.0
    assert evaluation.perplexity == math.exp(3.0)
    assert make_evaluation(nats=(1e5, 1e5, 1e5)).perplexity == math.inf


def test_damages_are_of_one_scheme() -> None:
    assert make_menu().damages("w=int8/channel") == {
        "model.layers.0.mlp.down_proj": 0.1,
        "model.layers.0.mlp.up_proj": 0.2,
    }
    assert make_menu().damages("w=int2/channel") == {}


# ---------------------------------------------------------------- paired differences


def pair(seed: int, sources: int, *, lengths: bool = True) -> tuple[Evaluation, Evaluation]:
    """Two evaluations whose differences are shared within a source."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, 5, sources)
    names = tuple(f"file-{i}" for i, count in enumerate(counts) for _ in range(count))
    shared = np.repeat(generator.normal(0.02, 0.03, sources), counts)
    predicted = generator.integers(50, 150, len(names)) if lengths else np.full(len(names), 100)
    plain = predicted * generator.normal(2, 0.3, len(names))
    harmed = plain + predicted * (shared + generator.normal(0, 0.01, len(names)))
    order = generator.permutation(len(names))
    fields = {"predicted": tuple(predicted[order].tolist()), "sources": tuple(names[i] for i in order)}
    return (
        make_evaluation(label="plan", nats=tuple(harmed[order].tolist()), **fields),
        make_evaluation(nats=tuple(plain[order].tolist()), **fields),
    )


def by_cluster(a: Evaluation, b: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """Nats of difference and tokens of each source."""
    names = sorted(set(a.sources))
    index = np.array([names.index(s) for s in a.sources])
    nats = np.bincount(index, np.array(a.nats) - np.array(b.nats))
    return nats, np.bincount(index, np.array(a.predicted))


@pytest.mark.parametrize("seed", range(5))
def test_standard_error_is_the_cluster_robust_one(seed: int) -> None:
    """As of a least-squares fit of the differences on the tokens, weighted by one over the tokens."""
    a, b = pair(seed, 12)
    found = paired_difference(a, b)
    x, y = np.array(a.predicted, float), np.array(a.nats) - np.array(b.nats)
    weight = 1 / x
    slope = (weight * x * y).sum() / (weight * x * x).sum()
    scores = weight * x * (y - slope * x)
    meat = sum(scores[np.array(a.sources) == s].sum() ** 2 for s in set(a.sources))
    error = math.sqrt(meat * 12 / 11) / (weight * x * x).sum()
    assert found.clusters == 12
    assert found.nats == pytest.approx(slope, rel=1e-9)
    assert found.standard_error == pytest.approx(error, rel=1e-9)
    low, high = found.interval
    assert high - low == pytest.approx(2 * 1.96 * error, rel=1e-9)


def test_standard_error_agrees_with_a_bootstrap_over_sources() -> None:
    a, b = pair(3, 120)
    nats, tokens = by_cluster(a, b)
    generator = np.random.default_rng(0)
    draws = generator.integers(0, 120, (4000, 120))
    resampled = nats[draws].sum(1) / tokens[draws].sum(1)
    found = paired_difference(a, b)
    assert found.standard_error == pytest.approx(resampled.std(), rel=0.06)
    # Windows taken as independent would look surer than they are.
    alone = [msgspec.structs.replace(e, sources=tuple(map(str, range(len(e.nats))))) for e in (a, b)]
    assert paired_difference(*alone).standard_error < 0.85 * found.standard_error


def test_windows_of_their_own_sources_have_the_classical_standard_error() -> None:
    a, b = pair(1, 9, lengths=False)
    sources = tuple(map(str, range(len(a.nats))))
    found = paired_difference(msgspec.structs.replace(a, sources=sources), msgspec.structs.replace(b, sources=sources))
    each = (np.array(a.nats) - np.array(b.nats)) / 100
    assert found.nats == pytest.approx(each.mean(), rel=1e-9)
    assert found.standard_error == pytest.approx(each.std(ddof=1) / math.sqrt(len(each)), rel=1e-9)


def test_differences_are_antisymmetric_and_nothing_differs_from_itself() -> None:
    a, b = pair(2, 7)
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there.nats == -back.nats
    assert there.standard_error == pytest.approx(back.standard_error, rel=1e-12)
    assert paired_difference(a, a) == Difference(0.0, 0.0, 7)


def test_windows_of_one_source_count_as_one() -> None:
    """Cutting a source into more windows brings no certainty."""
    a, b = pair(4, 8)
    merged = []
    for evaluation in (a, b):
        names = sorted(set(evaluation.sources))
        index = [names.index(s) for s in evaluation.sources]
        nats, predicted = np.bincount(index, evaluation.nats), np.bincount(index, evaluation.predicted)
        merged.append(
            msgspec.structs.replace(
                evaluation,
                nats=tuple(nats.tolist()),
                predicted=tuple(predicted.astype(int).tolist()),
                sources=tuple(names),
            )
        )
    assert paired_difference(*merged).standard_error == pytest.approx(paired_difference(a, b).standard_error, rel=1e-9)


def test_one_source_has_no_standard_error() -> None:
    one = make_evaluation(sources=("a", "a", "a"))
    assert math.isnan(paired_difference(one, make_evaluation(sources=("a", "a", "a"), nats=(1, 1, 1))).standard_error)


@pytest.mark.parametrize("field", ["model", "tokens", "convention", "dtype"])
def test_strangers_are_refused_with_what_differs(field: str) -> None:
    other = make_evaluation(label="plan", provenance=msgspec.structs.replace(PROVENANCE, **{field: "another"}))
    with pytest.raises(UserError) as error:
        paired_difference(other, make_evaluation())
    message = str(error.value)
    assert message.startswith("plan and float do not belong together")
    assert f"{field}: another against {getattr(PROVENANCE, field)[:40]}" in message
    assert sum(f"{f}:" in message for f in ("model", "tokens", "convention", "dtype")) == 1


def test_every_difference_between_strangers_is_named() -> None:
    strange = msgspec.structs.replace(PROVENANCE, model="x", tokens="y", seed=99, versions={})
    with pytest.raises(UserError, match=r"model: x against m+; tokens: y against t+$"):
        paired_difference(make_evaluation(provenance=strange), make_evaluation())


@pytest.mark.parametrize("fields", [{"predicted": (7, 7, 6)}, {"sources": ("a.txt", "b.txt", "b.txt")}])
def test_evaluations_of_one_token_set_have_the_same_windows(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="windows"):
        paired_difference(make_evaluation(label="plan", **fields), make_evaluation())

"""What the translations share, and that each refuses, with every site at once, what its tool cannot say."""

from pathlib import Path

import pytest

from qarat.ground.errors import UserError
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.stages.export import EXPORTERS
from qarat.stages.export.recipes import UnsayableError, by_entry, float_sites, translate
from qarat.testing import tiny_checkpoint
from qarat.values.plans import Plan, assign

TRANSLATIONS = ("llmcompressor", "torchao", "modelopt", "autoround", "llama-cpp")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(str(tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", hidden=64, intermediate=96)))


def plan_of(model: Model, low: str, *rules: tuple[str, str]) -> Plan:
    return assign(model.fingerprint, model.source_bits, model.sites(), low, rules)


def test_every_low_site_is_said_once_and_float_ones_are_not(model: Model) -> None:
    plan = plan_of(model, "w=int8/channel", ("1.down", "float"), ("*.o_proj", "w=int4/g32"))
    said = translate(plan, "it", lambda site, scheme: str(scheme), "")
    assert "model.layers.1.mlp.down_proj" not in said
    assert len(said) == 13
    assert float_sites(plan) == ["model.layers.1.mlp.down_proj"]
    groups = by_entry(said)
    assert [entry for entry, _ in groups] == ["w=int8/channel", "w=int4/g32"]
    assert sorted(name for _, names in groups for name in names) == sorted(said)


def test_all_offenders_are_listed_with_reason_and_alternatives(model: Model) -> None:
    plan = plan_of(model, "w=int8/channel", ("0.qk", "l=int8/token"))

    def say(site: object, scheme: object) -> str:
        raise UnsayableError("not today")

    with pytest.raises(UserError, match="it cannot hold this plan") as error:
        translate(plan, "it", say, "try tomorrow")
    text = str(error.value)
    assert text.count("not today") == 1
    assert text.endswith("try tomorrow")
    assert "attention products" in text
    assert "model.layers.0.self_attn.qk" in text
    assert all(site.name in text for site in plan.sites if site.kind == "projection")


@pytest.mark.parametrize("format", TRANSLATIONS)
@pytest.mark.parametrize(
    ("scheme", "refusing"),
    [
        ("w=int8/channel a=int8/tensor/static", ()),
        ("w=int8/channel a=int8/token", ()),
        ("w=int8/tensor", ()),
        ("w=int4/g32", ()),
        ("w=e4m3/channel a=e4m3/token", ()),
        ("w=int4/g24", ("llmcompressor", "torchao", "modelopt", "autoround")),  # no whole number of groups
        ("w=int8/channel a=int8/g32", ("torchao", "autoround")),
        ("w=int8/channel a=int8/tensor/static/p99.9", ("llmcompressor", "torchao", "modelopt", "autoround")),
        ("w=int8/channel/mse", ("torchao", "modelopt", "autoround")),
        ("w=int8/channel/typical", ("llmcompressor", "torchao", "modelopt", "autoround")),
        ("w=nvfp4/typical", ("llmcompressor", "torchao", "modelopt", "autoround")),
        ("w=int8/channel/scale-uint8", ("llmcompressor", "torchao", "modelopt", "autoround")),
        ("w=int8/channel/asymmetric", ("modelopt",)),
        ("w=e3m2/channel", ("llmcompressor", "torchao", "modelopt", "autoround")),
        ("w=sint8/channel", ("llmcompressor", "torchao", "modelopt", "autoround")),
        ("a=int8/token", ("llmcompressor", "torchao", "autoround")),
        ("w=e4m3/32x32", ("torchao", "modelopt", "autoround")),
        ("w=mxfp4", ("llmcompressor", "torchao")),  # llm-compressor rounds MX scales to even
        ("w=mxfp4/mx-even", ("torchao",)),
        ("w=mxint4", ("llmcompressor", "torchao", "modelopt")),
        ("w=nvfp4", ("torchao",)),
    ],
)
def test_what_each_holds(model: Model, format: str, scheme: str, refusing: tuple[str, ...]) -> None:
    plan = plan_of(model, "w=int8/channel", ("1.o", scheme), ("0.down", "float"))
    exporter = EXPORTERS.load(format)
    if format not in refusing:
        exporter.check(model, plan)
        return
    with pytest.raises(UserError, match=r"model\.layers\.1\.self_attn\.o_proj") as error:
        exporter.check(model, plan)
    assert "`rules`" in str(error.value)
    assert "q_proj" not in str(error.value)


def test_files_need_no_weights(model: Model, tmp_path: Path) -> None:
    plan = plan_of(model, "w=int8/channel a=int8/token", ("0.down", "float"))
    before = dict(model._kept)
    for format in TRANSLATIONS:
        folder = tmp_path / format
        folder.mkdir()
        notes = EXPORTERS.load(format).write(model, plan, folder, progress=lambda *_: None)
        assert notes
        assert any(folder.iterdir())
    assert model._kept == before  # no block was brought in

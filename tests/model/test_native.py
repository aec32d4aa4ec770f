"""The native folder: what is written is what was quantized, to the last bit and the last byte."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.model.model import Model
from qarat.model.native import is_native, read_native, write_native
from qarat.model.native_tensors import site_bytes
from qarat.model.opening import open_model
from qarat.model.prefixes import leading_tokens
from qarat.model.tokens import TokenSet
from qarat.stages.export.base import export_model
from qarat.stages.observe import observe
from qarat.stages.quantize import quantize
from qarat.testing import tiny_checkpoint
from qarat.values.parsing import parse_scheme
from qarat.values.plans import Plan, assign
from qarat.values.records.files import content_hash
from qarat.values.schemes import LinearScheme

NAIVE = "w=int8/channel a=int8/tensor/static"
STATIC_PRODUCTS = {f"*.{p}": "l=int8/tensor/static r=int8/tensor/static" for p in ("qk", "av")}
LENGTH = 24

# Name to checkpoint, low scheme and overrides.
CASES: dict[str, tuple[dict[str, Any], str, dict[str, str]]] = {
    "int8/channel": ({}, "w=int8/channel", {}),
    "int4/g8": ({}, "w=int4/g8", {}),
    "int3/g8/asymmetric": ({}, "w=int3/g8/asymmetric", {}),
    "int8/channel/asymmetric": ({}, "w=int8/channel/asymmetric", {}),
    "int5/g7 with a short last group": ({}, "w=int5/g7", {}),
    "float16 scales": ({}, "w=int4/g16/scale-float16", {}),
    "float16 scales in bfloat16": ({"dtype": torch.bfloat16}, "w=int4/g16/scale-float16", {}),
    "e4m3/tensor": ({}, "w=e4m3/tensor", {}),
    "e5m2/channel": ({}, "w=e5m2/channel", {}),
    "mxfp4": ({}, "w=mxfp4", {}),
    "mxfp6": ({}, "w=mxfp6/g16", {}),
    "nvfp4": ({}, "w=nvfp4", {}),
    "scales under a float32": ({}, "w=int4/g16/scale-uint8", {}),
    "scales under several float32": ({}, "w=int3/g4/scale-uint8/asymmetric", {}),
    "mxint4/g16": ({}, "w=mxint4/g16", {}),
    "16x16 tiles": ({}, "w=int4/16x16", {}),
    "tiles that do not fit": ({}, "w=int6/5x7/asymmetric", {}),
    "everything in float": ({}, "float", {}),
    "some in float": ({}, "w=int4/g8", {"*.down": "float", "0.q": "w=int8/channel"}),
    "static inputs": ({}, NAIVE, {}),
    "static asymmetric groups": ({}, "w=int8/channel a=int8/g8/static/asymmetric", {}),
    "static inputs with other scales": ({}, "w=int4/g8 a=e4m3/tensor/static/scale-e8m0", {"*.layers.0.*_proj": NAIVE}),
    "inputs alone": ({}, "a=int8/tensor/static", {}),
    "nvfp4 static groups": ({}, "w=nvfp4 a=nvfp4/static", {}),
    "dynamic inputs": ({}, "w=int4/g8 a=int8/token", {}),
    "dynamic products": ({}, "float", {"*.qk": "l=int8/g4 r=int8/token"}),
    "static products": ({}, NAIVE, STATIC_PRODUCTS),
    "one operand static": ({}, "float", {"0.qk": "r=int8/g4/static", "1.av": "l=int8/tensor/static"}),
    "biases": ({"architecture": "qwen2"}, NAIVE, {"1.k": "float"}),
    "biases, inputs alone": ({"architecture": "qwen2"}, "a=int8/token", {}),
    "norms on queries and keys": ({"architecture": "qwen3"}, NAIVE, STATIC_PRODUCTS),
    "soft caps": ({"architecture": "gemma2", "sliding_window": 8}, NAIVE, STATIC_PRODUCTS),
    "no gate": ({"architecture": "opt"}, NAIVE, STATIC_PRODUCTS),
    "tied": ({"tied": True}, NAIVE, {}),
    "bfloat16": ({"dtype": torch.bfloat16}, NAIVE, {"1.down": "float"}),
    "float16 and tied": ({"dtype": torch.float16, "tied": True}, "w=int4/g8", {"*.o": "a=int8/token"}),
    "sharded": ({"max_shard_size": "40KB"}, "w=int8/channel", {}),
}


def token_set() -> TokenSet:
    ids = torch.randint(2, 98, (4, LENGTH), generator=torch.Generator().manual_seed(7))
    ids[:, :2] = torch.tensor([0, 9])
    return TokenSet("calibration", f"windows-{LENGTH}-nobos", ids, ("text",) * 4, ("0" * 64,), ("text",))


def quantized(folder: Path, low: str, rules: dict[str, str], prefix: int = 0) -> tuple[Model, Plan]:
    model = open_model(str(folder))
    needs_stats = "static" in " ".join([low, *rules.values()])
    stats = observe(model, token_set(), prefix=prefix) if needs_stats else None
    digest = content_hash(stats) if stats else ""
    front = leading_tokens(token_set(), prefix)
    plan = assign(model.fingerprint, model.source_bits, model.sites(), low, list(rules.items()), digest, front)
    return quantize(model, plan, stats), plan


@torch.no_grad()
def logits(model: Model) -> Tensor:
    hidden = model.embed(token_set().windows)
    for index, block in model.walk():
        hidden = model.run_block(index, block, hidden)
    return model.logits(hidden)


def tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


@pytest.fixture(scope="module")
def written(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bit of everything, which no test may change."""
    low = "w=int4/g8/asymmetric a=int8/tensor/static"
    model, plan = quantized(tiny_llama, low, {"1.down": "float", "0.o": "w=nvfp4", **STATIC_PRODUCTS})
    folder = tmp_path_factory.mktemp("native") / "model"
    write_native(model, plan, folder)
    return folder


# ---------------------------------------------------------------- round trip


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_is_what_was_written(case: str, tmp_path: Path):
    options, low, rules = CASES[case]
    model, plan = quantized(tiny_checkpoint(tmp_path / "source", **options), low, rules)
    write_native(model, plan, tmp_path / "out")
    again, plan_again = read_native(tmp_path / "out")
    assert plan_again == plan
    assert again.fingerprint == model.fingerprint
    assert torch.equal(logits(again), logits(model))
    assert str(again.module()) == str(model.module())
    assert again.sites() == model.sites()


@pytest.mark.parametrize("case", ["static products", "some in float", "biases", "bfloat16", "everything in float"])
def test_a_prefix_is_read_as_it_was_written(case: str, tmp_path: Path):
    options, low, rules = CASES[case]
    model, plan = quantized(tiny_checkpoint(tmp_path / "source", **options), low, rules, prefix=2)
    write_native(model, plan, tmp_path / "out")
    again, plan_again = read_native(tmp_path / "out")
    assert (plan_again, plan_again.prefix) == (plan, (0, 9))
    assert torch.equal(logits(again), logits(model))
    assert str(again.module()) == str(model.module())
    text: Any = again.module()
    prompt = token_set().windows[:1, :5]
    assert text.generate(prompt, max_new_tokens=4, do_sample=False).shape == (1, 9)
    stored = load_file(tmp_path / "out" / "prefix.safetensors")
    module: Any = open_model(str(tmp_path / "source")).module()
    cache = module(prompt[:, :2]).past_key_values
    assert len(stored) == 3 * len(cache.layers)
    for index, layer in enumerate(cache.layers):
        for name in ("keys", "values"):  # what an engine's cache would begin with
            torch.testing.assert_close(stored[f"model.layers.{index}.prefix_{name}"], getattr(layer, name)[0])


def test_a_prefix_that_is_missing_or_of_another_shape_is_refused(tiny_llama: Path, tmp_path: Path):
    model, plan = quantized(tiny_llama, "w=int8/channel", {}, prefix=1)
    write_native(model, plan, tmp_path / "out")
    path = tmp_path / "out" / "prefix.safetensors"
    stored = load_file(path)
    stored["model.layers.1.prefix_keys"] = stored["model.layers.1.prefix_keys"][:1].contiguous()
    save_file(stored, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.layers\.1\.prefix_keys"):
        read_native(tmp_path / "out")
    path.unlink()
    with pytest.raises(UserError):
        read_native(tmp_path / "out")


def test_norms_kept_wider_than_the_weights_stay_so(tmp_path: Path):
    source = tiny_checkpoint(tmp_path / "source", dtype=torch.bfloat16)
    state = load_file(source / "model.safetensors")
    wide = {n: t.float() + 1e-4 if n.endswith("norm.weight") else t for n, t in state.items()}
    save_file(wide, source / "model.safetensors", {"format": "pt"})
    model, plan = quantized(source, NAIVE, {"0.q": "float"})
    write_native(model, plan, tmp_path / "out")
    assert torch.equal(logits(read_native(tmp_path / "out")[0]), logits(model))
    kept = tensors(tmp_path / "out")
    assert all(torch.equal(kept[n], t) and kept[n].dtype == t.dtype for n, t in wide.items() if n in kept)


def test_a_second_generation_is_the_first(written: Path, tmp_path: Path):
    model, plan = read_native(written)
    write_native(model, plan, tmp_path / "again")
    assert sorted(p.name for p in written.iterdir()) == sorted(p.name for p in (tmp_path / "again").iterdir())
    for path in written.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_the_same_bytes_whatever_the_memory(tiny_llama: Path, tmp_path: Path):
    digests = []
    for memory in (1, 1 << 30):
        model = open_model(str(tiny_llama), Runtime(memory=memory))
        plan = assign(model.fingerprint, 32, model.sites(), "w=int4/g8")
        write_native(quantize(model, plan), plan, tmp_path / str(memory))
        files = sorted((tmp_path / str(memory)).iterdir())
        digests.append([(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files])
    assert digests[0] == digests[1]


def test_it_reads_in_another_dtype(written: Path):
    model, _ = read_native(written, Runtime(dtype="bfloat16"))
    wide, _ = read_native(written)
    assert 0 < (logits(model) - logits(wide)).square().mean() < 0.01 * logits(wide).square().mean()
    assert {p.dtype for p in model.block(0).parameters()} == {torch.bfloat16}


def test_what_was_rounded_when_it_was_read_is_not_written(tiny_llama: Path, tmp_path: Path):
    model = open_model(str(tiny_llama), Runtime(dtype="bfloat16"))
    plan = assign(model.fingerprint, model.source_bits, model.sites(), "w=int8/channel", [("1.down", "float")])
    for write in (write_native, partial(export_model, format="compressed-tensors")):
        with pytest.raises(UserError, match="opened in bfloat16, which rounds it"):
            write(quantize(model, plan), plan, tmp_path / "out")
    write_native(quantize(model.in_float32(), plan), plan, tmp_path / "out")
    name = "model.layers.1.mlp.down_proj.weight"
    source = load_file(tiny_llama / "model.safetensors")[name]
    assert not source.equal(source.bfloat16().float())
    assert load_file(tmp_path / "out" / "block-001.safetensors")[name].equal(source)
    # A checkpoint in bfloat16 loses nothing that way.
    narrow = open_model(str(tiny_checkpoint(tmp_path / "narrow", dtype=torch.bfloat16)), Runtime(dtype="bfloat16"))
    plan = assign(narrow.fingerprint, narrow.source_bits, narrow.sites(), "w=int8/channel")
    write_native(quantize(narrow, plan), plan, tmp_path / "out")


def test_generation_goes_on_alike(written: Path, tiny_llama: Path):
    low = "w=int4/g8/asymmetric a=int8/tensor/static"
    model, _ = quantized(tiny_llama, low, {"1.down": "float", "0.o": "w=nvfp4", **STATIC_PRODUCTS})
    prompt = token_set().windows[:2, :5]
    one, other = (
        m.module().generate(prompt, max_new_tokens=12, do_sample=False)  # type: ignore[operator]
        for m in (model, read_native(written)[0])
    )
    assert torch.equal(one, other)


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize("case", CASES)
def test_bytes_on_disk_are_the_planned_ones(case: str, tmp_path: Path):
    """Site by site: codes, scales and zero points are `site_bytes`; everything else is the source's float tensors."""
    options, low, rules = CASES[case]
    source = tiny_checkpoint(tmp_path / "source", **options)
    model, plan = quantized(source, low, rules)
    write_native(model, plan, tmp_path / "out")
    found = {name: value.nbytes for name, value in tensors(tmp_path / "out").items()}
    floats = {name: value.nbytes for name, value in tensors(source).items()}
    for a in plan.assignments:
        if not isinstance(a.scheme, LinearScheme):
            continue
        parts = [found.pop(f"{a.site.name}.{x}", 0) for x in ("codes", "scale", "zero_point", "tensor_scale")]
        float_bytes = floats.pop(f"{a.site.name}.weight")
        if a.scheme.weight is None:
            assert sum(parts) == 0
            assert found.pop(f"{a.site.name}.weight") == float_bytes == plan.site_bits(a) // 8
            continue
        rows, cols = a.site.shape
        assert sum(parts) == site_bytes(a.scheme.weight, rows, cols)
        # The plan counts bits. A file rounds a row of codes up to whole bytes, and keeps a zero point in a byte.
        bits = a.scheme.weight.number_format.bits
        tall, wide = a.scheme.weight.granularity.scale_shape(rows, cols)
        spare = rows * (-cols * bits % 8) + (0 if a.scheme.weight.symmetric else tall * wide * (8 - bits))
        assert sum(parts) * 8 == plan.site_bits(a) + spare
        if cols * bits % 8 == 0 and (a.scheme.weight.symmetric or bits == 8):
            assert spare == 0
    scales = {name for name in found if (".input_" in name and "norm" not in name) or ".products." in name}
    assert {name: size for name, size in found.items() if name not in scales} == floats
    assert bool(scales) == ("static" in " ".join([low, *rules.values()]))


def test_site_bytes_of_shapes_worked_out_by_hand():
    def size(spelling: str, rows: int, cols: int) -> int:
        scheme = parse_scheme(f"w={spelling}")
        assert isinstance(scheme, LinearScheme)
        assert scheme.weight is not None
        return site_bytes(scheme.weight, rows, cols)

    assert size("int8/channel", 10, 64) == 10 * 64 + 10 * 4
    assert size("int4/g8", 10, 64) == 10 * 32 + 10 * 8 * 4
    assert size("int3/g8/asymmetric", 10, 64) == 10 * 24 + 80 * 4 + 80
    assert size("int3/tensor", 10, 7) == 10 * 3 + 4  # 21 bits a row
    assert size("mxfp4", 10, 64) == 10 * 32 + 20
    assert size("nvfp4", 10, 64) == 10 * 32 + 40 + 4
    assert size("int4/16x16", 20, 40) == 20 * 20 + 2 * 3 * 4


def test_codes_are_twos_complement_with_the_first_in_the_low_bits(tiny_llama: Path, tmp_path: Path):
    """What another program would do with the file."""
    model, plan = quantized(tiny_llama, "w=int4/channel", {})
    write_native(model, plan, tmp_path / "out")
    found, name = tensors(tmp_path / "out"), "model.layers.1.mlp.up_proj"
    codes, scale = found[f"{name}.codes"].int(), found[f"{name}.scale"]
    nibbles = torch.stack([codes & 15, codes >> 4], -1).flatten(1)
    value = torch.where(nibbles > 7, nibbles - 16, nibbles) * scale
    assert torch.equal(value, model.block(1).get_submodule("mlp.up_proj").value)  # type: ignore[arg-type]
    source = tensors(tiny_llama)[f"{name}.weight"]
    assert ((value - source).abs() <= scale / 2 * 1.0001).all()


# ---------------------------------------------------------------- what lies beside


def test_config_tokenizer_and_generation_config_come_along(tiny_llama: Path, tmp_path: Path):
    source = Path(shutil.copytree(tiny_llama, tmp_path / "source"))
    GenerationConfig(max_new_tokens=7, bos_token_id=0).save_pretrained(source)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "training.json").write_text("{}")
    (source / "README.md").write_text("no")
    model, plan = quantized(source, "w=int8/channel", {})
    write_native(model, plan, tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    blocks = {"block-000.safetensors", "block-001.safetensors", "outside.safetensors"}
    beside = {p.name for p in source.iterdir()} - {"model.safetensors", "training.json", "README.md"}
    assert {"config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"} <= beside
    assert names == beside | blocks | {"plan.json", "qarat.index.json"}
    for name in beside:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    text = "the same tokenizer"
    ids = [AutoTokenizer.from_pretrained(f)(text)["input_ids"] for f in (source, tmp_path / "out")]
    assert ids[0] == ids[1]
    again, _ = read_native(tmp_path / "out")
    assert again.module().generate(token_set().windows[:1, :5]).shape == (1, 12)  # type: ignore[operator]


def test_no_index_of_a_sharded_source_comes_along(tmp_path: Path):
    model, plan = quantized(tiny_checkpoint(tmp_path / "source", max_shard_size="40KB"), "w=int8/channel", {})
    write_native(model, plan, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "qarat.index.json").read_text())
    assert set(index["weight_map"].values()) == {p.name for p in (tmp_path / "out").glob("*.safetensors")}
    assert index["weight_map"].keys() == tensors(tmp_path / "out").keys()


def test_what_a_native_folder_is(written: Path, tiny_llama: Path):
    assert is_native(written)
    assert not is_native(tiny_llama)
    with pytest.raises(UserError, match="no quantized folder"):
        read_native(tiny_llama)


def test_a_float_model_cannot_be_opened_from_it(written: Path):
    with pytest.raises(UserError, match="is quantized already, by qarat"):
        open_model(str(written))


def test_transformers_does_not_load_it_with_projections_drawn_at_random(written: Path):
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(written)


def test_a_folder_with_the_index_of_earlier_versions_is_refused(written: Path, tmp_path: Path):
    old = Path(shutil.copytree(written, tmp_path / "old"))
    (old / "qarat.index.json").rename(old / "model.safetensors.index.json")
    with pytest.raises(UserError, match=r"written by an earlier qarat.*quantize again"):
        read_native(old)


def test_licences_templates_and_the_head_of_the_card_come_along(tiny_llama: Path, tmp_path: Path):
    source = Path(shutil.copytree(tiny_llama, tmp_path / "hub" / "models--org--name" / "snapshots" / "0"))
    along = ("LICENSE", "NOTICE.txt", "USE_POLICY.md", "additional_chat_templates/tools.jinja")
    (source / "additional_chat_templates").mkdir()
    for name in along:
        (source / name).write_text(name)
    (source / "README.md").write_text("---\nlicense: llama3.2\nlanguage: [en]\nwidget: []\n---\n# It\n")
    model, plan = quantized(source, "w=int8/channel", {})
    write_native(model, plan, tmp_path / "out")
    for name in along:
        assert (tmp_path / "out" / name).read_text() == name
    assert not (tmp_path / "out" / "README.md").exists()  # which is not of this folder
    again, _ = read_native(tmp_path / "out")
    for checkpoint in (model.checkpoint, again.checkpoint):
        assert checkpoint.origin == "org/name"
        assert checkpoint.card == {"license": "llama3.2", "language": ["en"]}


# ---------------------------------------------------------------- damage

Damage = Callable[[Path], object]


def edit(file: str, change: Callable[[dict[str, Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        state = load_file(folder / file)
        change(state)
        save_file(state, folder / file, {"format": "pt"})

    return damage


def replace(name: str, value: Tensor, file: str = "block-000.safetensors") -> Damage:
    return edit(file, lambda state: state.update({name: value}))


def truncate(file: str) -> Damage:
    def damage(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[:-5])

    return damage


def rewrite(file: str, old: str, new: str) -> Damage:
    def damage(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return damage


def claim_another_plan(old: str, new: str) -> Damage:
    """The plan and its hash in the index changed together, so that only the tensors can tell."""

    def damage(folder: Path) -> None:
        before = (folder / "plan.json").read_bytes()
        rewrite("plan.json", old, new)(folder)
        digests = [hashlib.sha256(data).hexdigest() for data in (before, (folder / "plan.json").read_bytes())]
        rewrite("qarat.index.json", *digests)(folder)

    return damage


L0 = "model.layers.0"
Q_LINE = f'"{L0}.self_attn.q_proj": {{"scheme": "w=int4/g8/asymmetric a=int8/tensor/static"'


def another_scheme(spelling: str) -> Damage:
    return claim_another_plan(Q_LINE, f'"{L0}.self_attn.q_proj": {{"scheme": "{spelling}"')


DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing codes": (
        edit("block-000.safetensors", lambda s: s.pop(f"{L0}.mlp.up_proj.codes")),
        r"layers\.0\.mlp\.up_proj\.codes: missing",
    ),
    "missing scale": (
        edit("block-001.safetensors", lambda s: s.pop("model.layers.1.mlp.up_proj.scale")),
        r"layers\.1\.mlp\.up_proj\.scale: missing",
    ),
    "missing zero point": (
        edit("block-000.safetensors", lambda s: s.pop(f"{L0}.mlp.up_proj.zero_point")),
        r"up_proj\.zero_point: missing",
    ),
    "missing tensor scale": (
        edit("block-000.safetensors", lambda s: s.pop(f"{L0}.self_attn.o_proj.tensor_scale")),
        r"o_proj\.tensor_scale: missing",
    ),
    "missing input scale": (
        edit("block-000.safetensors", lambda s: s.pop(f"{L0}.mlp.up_proj.input_scale")),
        r"up_proj\.input_scale: missing",
    ),
    "missing scale of a product": (
        edit("block-000.safetensors", lambda s: s.pop(f"{L0}.self_attn.products.v_scale")),
        r"products\.v_scale: missing",
    ),
    "missing float weight": (
        edit("block-001.safetensors", lambda s: s.pop("model.layers.1.mlp.down_proj.weight")),
        r"layers\.1\.mlp\.down_proj\.weight: missing",
    ),
    "missing norm": (
        edit("block-001.safetensors", lambda s: s.pop("model.layers.1.input_layernorm.weight")),
        r"input_layernorm\.weight: missing",
    ),
    "missing embedding": (
        edit("outside.safetensors", lambda s: s.pop("model.embed_tokens.weight")),
        r"embed_tokens\.weight: missing",
    ),
    "extra in a block": (replace(f"{L0}.mlp.extra", torch.zeros(3)), r"layers\.0\.mlp\.extra: not in the plan"),
    "extra outside": (replace("more", torch.zeros(3), "outside.safetensors"), r"more: not in the plan"),
    "extra float weight beside codes": (
        replace(f"{L0}.mlp.up_proj.weight", torch.zeros(64, 32)),
        r"up_proj\.weight: not in the plan",
    ),
    "codes of another shape": (
        replace(f"{L0}.mlp.up_proj.codes", torch.zeros(64, 15, dtype=torch.uint8)),
        r"up_proj\.codes: \('U8', \(64, 15\)\) in the file, \('U8', \(64, 16\)\) by the plan",
    ),
    "codes with fewer rows": (
        replace(f"{L0}.mlp.up_proj.codes", torch.zeros(32, 16, dtype=torch.uint8)),
        r"up_proj\.codes: \('U8', \(32, 16\)\)",
    ),
    "a scale that would broadcast": (
        replace(f"{L0}.mlp.up_proj.scale", torch.ones(1, 1)),
        r"up_proj\.scale: \('F32', \(1, 1\)\) in the file, \('F32', \(64, 4\)\) by the plan",
    ),
    "an input scale that would broadcast": (
        replace(f"{L0}.mlp.up_proj.input_scale", torch.ones(1, 4)),
        r"up_proj\.input_scale: \('F32', \(1, 4\)\)",
    ),
    "a scale of another dtype": (
        replace(f"{L0}.mlp.up_proj.scale", torch.ones(64, 4, dtype=torch.float16)),
        r"up_proj\.scale: \('F16', \(64, 4\)\) in the file, \('F32', \(64, 4\)\)",
    ),
    "a norm of another shape": (
        replace(f"{L0}.input_layernorm.weight", torch.ones(31)),
        r"input_layernorm\.weight: \('F32', \(31,\)\)",
    ),
    "an embedding of another shape": (
        replace("model.embed_tokens.weight", torch.ones(127, 32), "outside.safetensors"),
        r"embed_tokens\.weight: \('F32', \(127, 32\)\)",
    ),
    "a truncated block": (truncate("block-001.safetensors"), r"block-001\.safetensors is truncated or damaged"),
    "truncated outside": (truncate("outside.safetensors"), r"outside\.safetensors is truncated or damaged"),
    "a missing block": (lambda f: (f / "block-001.safetensors").unlink(), r"missing: block-001\.safetensors"),
    "a truncated plan": (truncate("plan.json"), r"not a record"),
    "a missing plan": (lambda f: (f / "plan.json").unlink(), r"plan\.json or config\.json is missing"),
    "a missing index": (lambda f: (f / "qarat.index.json").unlink(), r"index\.json is missing or damaged"),
    "a truncated index": (truncate("qarat.index.json"), r"index\.json is missing or damaged"),
    "a later format": (
        rewrite("qarat.index.json", "qarat-native/1", "qarat-native/2"),
        r"written as qarat-native/2, this qarat reads qarat-native/1",
    ),
    "a plan edited to a scheme of the same size": (
        rewrite("plan.json", '"w=nvfp4"', '"w=nvfp4 a=int8/token"'),
        r"plan\.json is not the plan that these tensors were written under",
    ),
    "a plan edited to another granularity": (another_scheme("w=int4/g16/asymmetric"), r"q_proj\.scale: .*\(32, 4\)"),
    "a plan edited to another format": (another_scheme("w=int8/g8/asymmetric"), r"q_proj\.codes: .*\(32, 16\)"),
    "a plan edited to symmetric": (another_scheme("w=int4/g8"), r"q_proj\.zero_point: not in the plan"),
    "a plan edited to float": (another_scheme("float"), r"q_proj\.weight: missing"),
    "a plan edited to dynamic": (
        another_scheme("w=int4/g8/asymmetric a=int8/token"),
        r"q_proj\.input_scale: not in the plan",
    ),
    "a plan of other shapes": (
        claim_another_plan('"shape": [32, 32]', '"shape": [32, 16]'),
        r"q_proj\.codes: .*\(32, 16\).*\(32, 8\)",
    ),
    "a plan with a site renamed": (
        claim_another_plan(f'"{L0}.mlp.up_proj"', f'"{L0}.mlp.up_prog"'),
        r"up_prog\.codes: missing",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_folder_is_refused_when_it_is_opened(kind: str, written: Path, tmp_path: Path):
    damage, message = DAMAGES[kind]
    folder = Path(shutil.copytree(written, tmp_path / "model"))
    damage(folder)
    with pytest.raises(UserError, match=message):
        read_native(folder)


def test_every_offender_is_listed_at_once(written: Path, tmp_path: Path):
    folder = Path(shutil.copytree(written, tmp_path / "model"))
    for kind in ("missing codes", "missing scale", "extra outside", "a norm of another shape"):
        DAMAGES[kind][0](folder)
    with pytest.raises(UserError) as caught:
        read_native(folder)
    assert str(caught.value).count("\n  ") == 4


def test_a_code_that_is_no_number_is_refused(tiny_llama: Path, tmp_path: Path):
    model, plan = quantized(tiny_llama, "w=e4m3/tensor", {})
    write_native(model, plan, tmp_path / "out")
    edit("block-001.safetensors", lambda s: s["model.layers.1.mlp.up_proj.codes"].fill_(0x7F))(tmp_path / "out")
    again, _ = read_native(tmp_path / "out")
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj is damaged: 2048 codes are no e4m3 number"):
        logits(again)


# ---------------------------------------------------------------- writing that fails


def failing(monkeypatch: pytest.MonkeyPatch, file: str, error: BaseException) -> None:
    """Writing that file fails halfway."""
    write = Path.write_bytes

    def broken(self: Path, data: bytes) -> int:
        if self.name == file:
            write(self, data[: len(data) // 2])
            raise error
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", broken)


@pytest.mark.parametrize("file", ["outside.safetensors", "block-001.safetensors"])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_what_was_there(
    file: str, old: bool, error: BaseException, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nothing remains of the new folder; the old one is untouched."""
    out = tmp_path / "out"
    if old:
        model, plan = quantized(tiny_llama, "w=int8/channel", {})
        write_native(model, plan, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()} if old else {}
    model, plan = quantized(tiny_llama, "w=int4/channel", {})
    failing(monkeypatch, file, error)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        write_native(model, plan, out)
    assert not isinstance(error, OSError) or "no space left" in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["out"] * old
    assert not old or {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_an_old_folder_is_replaced_whole(tiny_llama: Path, tmp_path: Path):
    for low in ("w=int8/channel", "w=int4/channel"):
        model, plan = quantized(tiny_llama, low, {})
        write_native(model, plan, tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
    assert torch.equal(logits(read_native(tmp_path / "out")[0]), logits(model))


def test_a_stale_partial_folder_does_not_come_along(tiny_llama: Path, tmp_path: Path):
    """What a kill left: it begins with the plan, and so is known as ours."""
    stale = tmp_path / "out.partial"
    stale.mkdir()
    (stale / "plan.json").write_text("{}")
    (stale / "block-007.safetensors").write_bytes(b"junk")
    model, plan = quantized(tiny_llama, "w=int8/channel", {})
    write_native(model, plan, tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
    assert not (tmp_path / "out" / "block-007.safetensors").exists()


def test_a_folder_that_is_not_ours_is_left_alone(tiny_llama: Path, tmp_path: Path):
    precious = tmp_path / "out"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years")
    model, plan = quantized(tiny_llama, "w=int8/channel", {})
    with pytest.raises(UserError):
        write_native(model, plan, precious)
    assert os.listdir(tmp_path) == ["out"]
    assert (precious / "thesis.txt").read_text() == "years"


def test_progress_is_told_of_every_block(tiny_llama: Path, tmp_path: Path):
    model, plan = quantized(tiny_llama, "w=int8/channel", {})
    calls: list[tuple[str, int, int]] = []
    write_native(model, plan, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert calls == [("write", 0, 2), ("write", 1, 2), ("write", 2, 2)]


def test_headers_are_those_of_plain_safetensors(written: Path):
    index = json.loads((written / "qarat.index.json").read_text())
    for path in sorted(written.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            names = list(file.keys())
        assert {index["weight_map"][name] for name in names} == {path.name}
        size = sum(math.prod(t.shape) * t.element_size() for t in load_file(path).values())
        header = int.from_bytes(path.read_bytes()[:8], "little")
        assert path.stat().st_size == 8 + header + size

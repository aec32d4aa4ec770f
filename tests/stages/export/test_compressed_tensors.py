"""Exports in compressed-tensors' format: what is on disk is what was quantized, and transformers computes just that."""

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization.lifecycle import forward as library
from compressed_tensors.utils.match import match_targets
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.maths.packing import from_wire, to_wire, unpack_bits
from qarat.maths.rounding import decode
from qarat.maths.static_scales import static_operands
from qarat.model.attention import transformers_attention
from qarat.model.layers import QuantLinear
from qarat.model.model import Model
from qarat.model.native import read_native, write_native
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages import export as exporters
from qarat.stages.export import compressed_tensors as exporter
from qarat.stages.export.base import MARK, check_export, export_model
from qarat.stages.export.compressed_tensors.schemes import group_of
from qarat.stages.export.compressed_tensors.shards import ShardWriter
from qarat.stages.export.compressed_tensors.tensors import WHOLE_BYTES
from qarat.stages.observe import observe
from qarat.stages.quantize import quantize
from qarat.testing import check_exporter, tiny_checkpoint
from qarat.values.parsing import parse_scheme
from qarat.values.plan_files import decode_plan
from qarat.values.plans import Plan, assign
from qarat.values.records.files import content_hash
from qarat.values.schemes import LinearScheme, TensorScheme

NAIVE = "w=int8/channel a=int8/tensor/static"
FP8 = "w=e4m3/channel a=e4m3/token"
LENGTH = 24


class Case(NamedTuple):
    """A scheme, the format it comes to, and by how many bits a site's tensors are longer than the plan says."""

    low: str
    format: str
    extra: int = 0


SHAPE = 128  # weight_shape, two int64
CASES = {
    c.low: c
    for c in (
        Case(NAIVE, "int-quantized", 32),
        Case("w=int8/tensor a=int8/tensor/static", "int-quantized", 32),
        Case("w=int8/channel/asymmetric a=int8/tensor/static/asymmetric", "int-quantized", 40),
        Case("w=int8/channel a=e4m3/token", "int-quantized"),
        Case("w=int8/g32/mse", "pack-quantized", SHAPE),
        Case("w=int4/g32", "pack-quantized", SHAPE),
        Case("w=int4/g32/asymmetric", "pack-quantized", SHAPE),
        Case("w=int4/channel/asymmetric", "pack-quantized", SHAPE),
        Case("w=int3/g16/scale-float16", "pack-quantized", SHAPE),
        Case("w=int6/channel", "pack-quantized", SHAPE),
        Case("w=e4m3/tensor a=e4m3/tensor/static", "float-quantized", 32),
        Case("w=e4m3/tensor a=e4m3/tensor/dynamic", "float-quantized"),
        Case(FP8, "float-quantized"),
        Case("w=e4m3/32x32 a=e4m3/g32", "float-quantized"),
        Case("w=e4m3/channel", "naive-quantized"),
        Case("w=mxfp4", "mxfp4-pack-quantized"),
        Case("w=mxfp4 a=mxfp4/mx-even", "mxfp4-pack-quantized"),
        Case("w=mxfp4 a=int8/tensor/static", "mxfp4-pack-quantized", 32),
        Case("w=mxfp6", "mxfp6-pack-quantized"),
        Case("w=mxfp8", "mxfp8-quantized"),
        Case("w=mxfp8 a=mxfp8/mx-even", "mxfp8-quantized"),
        Case("w=nvfp4", "nvfp4-pack-quantized"),
    )
}
# What has no format of its own and yet fits into another's: ±7 in groups of 32 with powers of two, as int4.
CASES["w=mxint4"] = Case("w=mxint4", "pack-quantized")

# The library unpacks these to bfloat16 whatever the model's dtype, so a float32 model runs only once they are widened.
UNPACKED_TO_BFLOAT16 = ("mxfp4-pack-quantized", "mxfp6-pack-quantized", "mxfp8-quantized", "nvfp4-pack-quantized")


class Exported(NamedTuple):
    model: Model
    plan: Plan
    folder: Path
    notes: list[str]


def token_set() -> TokenSet:
    ids = torch.randint(2, 98, (4, LENGTH), generator=torch.Generator().manual_seed(7))
    return TokenSet("calibration", f"windows-{LENGTH}-nobos", ids, ("text",) * 4, ("0" * 64,), ("text",))


def quantized(folder: Path, low: str, rules: dict[str, str] | None = None) -> tuple[Model, Plan]:
    model = open_model(str(folder))
    rules = rules or {}
    stats = observe(model, token_set()) if "static" in " ".join([low, *rules.values()]) else None
    digest = content_hash(stats) if stats else ""
    plan = assign(model.fingerprint, model.source_bits, model.sites(), low, list(rules.items()), digest)
    return quantize(model, plan, stats), plan


def exported(source: Path, out: Path, low: str, rules: dict[str, str] | None = None) -> Exported:
    model, plan = quantized(source, low, rules)
    return Exported(model, plan, out, list(export_model(model, plan, out, "compressed-tensors")))


def tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def ours(model: Model) -> Tensor:
    with torch.no_grad():
        return cast(Any, model.module())(input_ids=token_set().windows[:1]).logits


def theirs(folder: Path, *, widen: bool = False) -> Tensor:
    """Logits of transformers and the compressed-tensors library in float32, on the CPU."""
    options: dict[str, Any] = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if widen else {}
    options["attn_implementation"] = transformers_attention(AutoConfig.from_pretrained(folder))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    with torch.no_grad():
        return (model.float() if widen else model)(input_ids=token_set().windows[:1]).logits


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def projections(model: Model) -> dict[str, QuantLinear]:
    found: dict[str, QuantLinear] = {}
    for index, block in model.walk():
        for name, module in block.named_modules(prefix=f"{model.family.blocks}.{index}"):
            if isinstance(module, QuantLinear):
                found[name] = module
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("source") / "model", hidden=64, intermediate=96)


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """The export of a case with block 1's down in float, made once; no test may change it."""
    kept: dict[str, Exported] = {}

    def make(name: str) -> Exported:
        if name not in kept:
            out = tmp_path_factory.mktemp("exports") / "out"
            kept[name] = exported(source, out, CASES[name].low, {"1.down": "float"})
        return kept[name]

    return make


# ---------------------------------------------------------------- what is on disk


def stored_codes(found: dict[str, Tensor], name: str, scheme: TensorScheme, cols: int) -> Tensor:
    """Table indices as the files have them, read without the library."""
    fmt = scheme.number_format
    if f"{name}.weight_packed" in found:
        packed = found[f"{name}.weight_packed"]
        data = packed.view(torch.uint8)
        bits = unpack_bits(data[:, : -(-cols * fmt.bits // 8)].contiguous(), fmt.bits, cols)
        if packed.dtype == torch.int32:  # offset by half
            return (bits.int() - 2 ** (fmt.bits - 1) + fmt.zero).to(torch.uint8)
        return from_wire(bits, fmt)
    weight = found[f"{name}.weight"]
    if weight.dtype == torch.int8:
        return (weight.int() + fmt.zero).to(torch.uint8)
    return from_wire(weight.view(torch.uint8), fmt)


@pytest.mark.parametrize("name", CASES)
def test_codes_and_scales_are_ours_to_the_last_bit(name: str, made: Callable[[str], Exported]):
    model, plan, folder, _ = made(name)
    found = tensors(folder)
    for site, module in projections(model).items():
        mine = module.quantized
        assert mine is not None
        cols = module.in_features
        assert torch.equal(stored_codes(found, site, mine.scheme, cols), mine.codes), site
        scale = found[f"{site}.weight_scale"]
        if scale.dtype == torch.uint8:
            assert torch.equal(scale, mine.scales.scale.to(torch.float8_e8m0fnu).view(torch.uint8))
        else:
            assert torch.equal(scale.float().flatten(), mine.scales.scale.flatten())
        if mine.scales.tensor_scale is not None:
            above = found[f"{site}.weight_global_scale"]
            assert torch.equal(above, 1 / mine.scales.tensor_scale.reshape(1))
        if mine.scales.zero_point is not None:
            stored = found[f"{site}.weight_zero_point"]
            if stored.dtype == torch.int32:  # packed along the rows
                bits, rows = mine.scheme.number_format.bits, module.out_features
                data = stored.T.contiguous().view(torch.uint8)[:, : -(-rows * bits // 8)].contiguous()
                stored = (unpack_bits(data, bits, rows).int() - 2 ** (bits - 1)).T
            assert torch.equal(stored.float(), mine.scales.zero_point.reshape(stored.shape))
        if module.input_scales is not None:
            assert torch.equal(found[f"{site}.input_scale"], module.input_scales.scale.reshape(1))
    floats = tensors(model.folder)
    kept = [n for n in found if n in floats and found[n].dtype == floats[n].dtype]
    assert "model.layers.1.mlp.down_proj.weight" in kept
    assert all(torch.equal(found[n], floats[n]) for n in kept)
    assert decode_plan((folder / MARK).read_bytes()) == plan


@pytest.mark.parametrize("name", [c.low for c in CASES.values() if c.format in WHOLE_BYTES])
def test_whole_bytes_are_what_the_library_makes(name: str, made: Callable[[str], Exported]):
    model, _, folder, _ = made(name)
    stored = tensors(folder)
    for site, module in projections(model).items():
        group = group_of(module.scheme)
        state: dict[str, Tensor | None] = {"weight": module.value, "weight_scale": stored[f"{site}.weight_scale"]}
        state["weight_zero_point"] = stored.get(f"{site}.weight_zero_point")
        compressed = BaseCompressor.get_value_from_registry(str(group.format)).compress(state, group)["weight"]
        assert compressed is not None
        assert compressed.dtype == stored[f"{site}.weight"].dtype
        assert torch.equal(compressed.view(torch.uint8), stored[f"{site}.weight"].view(torch.uint8))


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_the_plans_and_the_layouts(name: str, made: Callable[[str], Exported]):
    """The plan's bits, what is outside all sites, and what the layout adds, which is known exactly."""
    model, plan, folder, _ = made(name)
    found = tensors(folder)
    total = sum(t.nbytes for t in found.values())
    assert total == exporter.tensor_bytes(model, plan)
    sites = {site.name for site in plan.sites}
    outside = sum(t.nbytes for n, t in found.items() if n.rpartition(".")[0] not in sites)
    low = [a for a in plan.assignments if a.site.kind == "projection" and not a.is_float]
    extra = CASES[name].extra * len(low)
    if name == "w=mxint4":  # exponents of 8 bits become bfloat16, and the shape is kept
        extra += sum(SHAPE + 8 * (a.site.parameters // 32) for a in low)
    assert 8 * (total - outside) == plan.weight_bits() + extra
    for path in folder.glob("*.safetensors"):
        header = int.from_bytes(path.read_bytes()[:8], "little")
        assert path.stat().st_size == 8 + header + sum(t.nbytes for t in load_file(path).values())


@pytest.mark.parametrize("name", CASES)
def test_every_projection_is_named_once_and_means_its_scheme(name: str, made: Callable[[str], Exported]):
    _, plan, folder, _ = made(name)
    written = config(folder)
    assert written["quant_method"] == "compressed-tensors"
    assert written["quantization_status"] == "compressed"
    assert written["format"] == CASES[name].format
    (group,) = written["config_groups"].values()
    assert group["format"] == CASES[name].format
    named = [*group["targets"], *written["ignore"]]
    assert sorted(named) == sorted(["lm_head", *(s.name for s in plan.sites if s.kind == "projection")])
    assert written["ignore"] == ["model.layers.1.mlp.down_proj", "lm_head"]
    schemes = [a.scheme for a in plan.assignments if isinstance(a.scheme, LinearScheme) and a.scheme.weight]
    bits = {scheme.weight.number_format.bits for scheme in schemes if scheme.weight}
    assert {group["weights"]["num_bits"]} == bits


# ---------------------------------------------------------------- what transformers makes of it


@pytest.mark.parametrize("name", [n for n in CASES if n != "w=nvfp4"])
def test_transformers_computes_the_simulation(name: str, made: Callable[[str], Exported]):
    model, _, folder, notes = made(name)
    assert not notes
    assert distance(theirs(folder, widen=CASES[name].format in UNPACKED_TO_BFLOAT16), ours(model)) < 1e-5


@pytest.mark.parametrize("name", ["w=mxfp4", "w=nvfp4"])
def test_transformers_unpacks_four_bit_floats_to_bfloat16(name: str, made: Callable[[str], Exported]):
    """A limit of the library that docs/exporting.md states: should it go, this test says so."""
    with pytest.raises(RuntimeError, match="same dtype"):
        theirs(made(name).folder)


def test_nvfp4_is_exact_until_transformers_rounds_it_to_bfloat16(made: Callable[[str], Exported]):
    model, _, folder, notes = made("w=nvfp4")
    assert "rounds its last bit" in notes[0]
    found = tensors(folder)
    for site, module in projections(model).items():
        scales = found[f"{site}.weight_scale"].float() / found[f"{site}.weight_global_scale"]
        codes = stored_codes(found, site, parse_weight("w=nvfp4"), module.in_features)
        values = decode(codes, parse_weight("w=nvfp4").number_format) * scales.repeat_interleave(16, dim=1)
        assert ((values - module.value).abs() <= 2**-22 * module.value.abs()).all()
    assert distance(theirs(folder, widen=True), ours(model)) < 0.05


def parse_weight(spelling: str) -> TensorScheme:
    scheme = parse_scheme(spelling)
    assert isinstance(scheme, LinearScheme)
    assert scheme.weight is not None
    return scheme.weight


@pytest.mark.parametrize("low", ["w=int8/channel a=int8/token", "w=int8/channel a=int8/tensor/dynamic"])
def test_dynamic_integer_inputs_differ_by_the_librarys_divisor_alone(
    low: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """compressed-tensors divides the maximum by 127.5, engines' kernels and the simulation by 127."""
    model, _, folder, notes = exported(source, tmp_path / "out", low)
    assert "divides the maximum by 127.5" in notes[0]
    assert distance(theirs(folder), ours(model)) > 1e-4
    compute = library.compute_dynamic_scales_and_zp

    def by_127(**arguments: Any) -> tuple[Tensor, Tensor]:
        scale, zero_point = compute(**arguments)
        return scale * 127.5 / 127, zero_point

    monkeypatch.setattr(library, "compute_dynamic_scales_and_zp", by_127)
    # 127.5/127 costs a rounding of the scale, which may move a value that lies at a tie.
    assert distance(theirs(folder), ours(model)) < 1e-3


MIXED = {"*.down": FP8, "*.o": "w=int4/g32", "1.down": "float", "*.gate": "w=mxfp8", "*.up": "w=mxfp8"}


@pytest.fixture(scope="module")
def mixed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(source, tmp_path_factory.mktemp("mixed") / "out", NAIVE, MIXED)


def test_a_mixed_folder_names_a_format_for_each_group(mixed: Exported):
    written = config(mixed.folder)
    assert written["format"] == "mixed-precision"
    groups = list(written["config_groups"].values())
    assert [g["format"] for g in groups] == ["int-quantized", "pack-quantized", "mxfp8-quantized", "float-quantized"]
    named = [*written["ignore"], *(t for g in groups for t in g["targets"])]
    assert sorted(named) == sorted(["lm_head", *(s.name for s in mixed.plan.sites if s.kind == "projection")])
    assert distance(theirs(mixed.folder, widen=True), ours(mixed.model)) < 1e-5


def test_the_library_resolves_every_module_to_its_scheme(mixed: Exported):
    model: Any = AutoModelForCausalLM.from_pretrained(mixed.folder, dtype=torch.float32)
    targets = [t for g in config(mixed.folder)["config_groups"].values() for t in g["targets"]]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            scheme = mixed.plan.schemes.get(name, LinearScheme())
            assert match_targets(name, module, targets) == ([name] if scheme != LinearScheme() else [])
            found: Any = getattr(module, "quantization_scheme", None)
            theirs_bits = found and found.weights.num_bits
            weight = scheme.weight if isinstance(scheme, LinearScheme) else None
            assert theirs_bits == (weight and weight.number_format.bits)


def test_int8_and_fp8_mixed_with_float_sites(source: Path, tmp_path: Path):
    model, plan, folder, _ = exported(source, tmp_path / "out", NAIVE, {"*.down": FP8, "1.o": "float"})
    assert config(folder)["format"] == "mixed-precision"
    assert distance(theirs(folder), ours(model)) < 1e-5
    assert plan.ratio() == 1 - sum(s.parameters for s in plan.sites if s.name.endswith("1.self_attn.o_proj")) / sum(
        s.parameters for s in plan.sites
    )


CHECKPOINTS: dict[str, dict[str, Any]] = {
    "biases": {"architecture": "qwen2"},
    "norms on queries and keys": {"architecture": "qwen3"},
    "norms that add to one": {"architecture": "gemma2"},
    "local and global layers": {"architecture": "gemma3_text"},
    "no gate, learned positions": {"architecture": "opt"},
    "tied": {"tied": True},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16 and tied": {"dtype": torch.float16, "tied": True},
    "sharded": {"max_shard_size": "60KB"},
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_every_kind_of_checkpoint(kind: str, tmp_path: Path):
    source = tiny_checkpoint(tmp_path / "source", hidden=64, intermediate=96, **CHECKPOINTS[kind])
    # What OPT's MLP reads has no windows, and the library takes each value of it for a token: no dynamic inputs there.
    rules = {"1.fc2": "float"} if CHECKPOINTS[kind].get("architecture") == "opt" else {"1.down": "float", "0.down": FP8}
    model, _, folder, _ = exported(source, tmp_path / "out", NAIVE, rules)
    assert distance(theirs(folder), ours(model)) < 1e-5
    before, after = tensors(source), tensors(folder)
    assert ("lm_head.weight" in after) == (not CHECKPOINTS[kind].get("tied", False))
    for name in before.keys() & after.keys():
        quantized = after[name].dtype in (torch.int8, torch.float8_e4m3fn)
        assert quantized or torch.equal(before[name], after[name])
    assert AutoTokenizer.from_pretrained(folder).encode("abc") == AutoTokenizer.from_pretrained(source).encode("abc")


def test_shards_are_those_of_the_source(tmp_path: Path):
    source = tiny_checkpoint(tmp_path / "source", max_shard_size="40KB")
    model, plan = quantized(source, NAIVE)
    write_native(model, plan, tmp_path / "native")
    again, _ = read_native(tmp_path / "native", Runtime(memory=1))
    for number, opened in enumerate((model, again)):
        folder = tmp_path / f"out{number}"
        export_model(opened, plan, folder, "compressed-tensors")
        home = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert {n: f for n, f in index["weight_map"].items() if n in home} == home
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors(folder).values())
        for path in folder.glob("*.safetensors"):
            assert {n for n, f in index["weight_map"].items() if f == path.name} == load_file(path).keys()
    for path in (tmp_path / "out0").iterdir():
        assert path.read_bytes() == (tmp_path / "out1" / path.name).read_bytes()


def test_the_bundled_model_loads_and_computes_the_simulation(tmp_path: Path):
    model = open_model("py-128")
    stats = observe(model, token_set())
    rules = [("1.down", "float"), ("0.down", FP8)]
    plan = assign(model.fingerprint, model.source_bits, model.sites(), NAIVE, rules, content_hash(stats))
    small = quantize(model, plan, stats)
    export_model(small, plan, tmp_path / "out", "compressed-tensors")
    assert distance(theirs(tmp_path / "out"), ours(small)) < 1e-5
    source = sum(p.stat().st_size for p in model.folder.glob("*.safetensors"))
    assert sum(p.stat().st_size for p in (tmp_path / "out").glob("*.safetensors")) < 0.8 * source


# ---------------------------------------------------------------- what is refused, and what is said

REFUSED = {
    "w=e5m2/channel": "no such weights",
    "w={-1,0,1}/channel": "no such weights",
    "w=e2m1/channel": "mxfp4 (g32, scale-e8m0) or nvfp4",
    "w=mxfp4/g16": "mxfp4 (g32, scale-e8m0) or nvfp4",
    "w=e2m3/g32": "e2m3 is held as mxfp6",
    "w=int4/g16/scale-e4m3": "use scale-float16",
    "w=int4/g16/scale-uint8": "use scale-float16",
    "w=int4/g48": "no whole number of groups of 48",
    "w=int4/16x16": "tiles are for e4m3",
    "w=e4m3/32x48": "no whole number of groups of 48",
    "a=int8/token": "quantize the weight too",
    "w=int8/channel a=e5m2/token": "no such inputs",
    "w=int8/channel a=sint8/token": "use int8",
    "w=int8/channel a=int8/g32/static": "one scale per tensor",
    "w=nvfp4 a=nvfp4": "use mxfp4/mx-even",
    "w=mxfp4 a=mxfp4": "add /mx-even",
    "w=int8/channel a=int8/token/mse": "drop mse, or make it static",
    "w=int8/channel a=int8/g32/scale-e8m0": "mxfp4, mxfp6 or mxfp8",
    "w=int8/channel a=e4m3/4x32": "a scale per tensor, token or gN",
    "w=int8/channel a=e4m3/token/scale-float16": "drop scale-float16",
    "w=e4m3/channel a=mxfp4/static/g32": "one scale per tensor",
}


@pytest.mark.parametrize("low", REFUSED)
def test_what_the_format_cannot_hold_is_refused_site_by_site(low: str, source: Path):
    model = open_model(str(source))
    plan = assign(model.fingerprint, 32, model.sites(), low)
    with pytest.raises(UserError, match=re.escape(REFUSED[low])) as caught:
        check_export(model, plan, "compressed-tensors")
    lines = str(caught.value).splitlines()
    sites = [s.name for s in plan.sites if s.kind == "projection" and (s.shape[1] % 48 or "48" not in low)]
    assert [line.partition(":")[0].strip() for line in lines[1:-1]] == sites
    assert "`rules`" in lines[-1]


def test_quantized_attention_products_are_refused(source: Path):
    model = open_model(str(source))
    plan = assign(model.fingerprint, 32, model.sites(), NAIVE, [("0.qk", "l=int8/token r=int8/token")])
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.qk: .*attention products have no place"):
        check_export(model, plan, "compressed-tensors")


def test_a_plan_in_float_is_no_export(source: Path):
    model = open_model(str(source))
    with pytest.raises(UserError, match="quantizes no projection"):
        check_export(model, assign(model.fingerprint, 32, model.sites(), "float"), "compressed-tensors")


def test_broken_ties_are_said(source: Path, tmp_path: Path):
    made = exported(source, tmp_path / "out", "w=int8/channel", {"0.q": "w=int4/g32"})
    assert "vLLM will refuse this folder" in made.notes[0]
    assert distance(theirs(made.folder), ours(made.model)) < 1e-5


def test_different_scales_of_one_stream_are_refused(source: Path, tmp_path: Path):
    model, plan = quantized(source, NAIVE)

    def damaged(index: int) -> nn.Module:
        module = cast(Any, model.block(index))
        if index == 1:
            module.mlp.up_proj.input_scales.scale.mul_(2)
        return module

    with pytest.raises(UserError, match=r"1\.mlp\.gate_proj and .*1\.mlp\.up_proj read the same input"):
        export_model(model.with_blocks(damaged), plan, tmp_path / "out", "compressed-tensors")
    assert os.listdir(tmp_path) == []


def test_shared_inputs_have_one_scale(mixed: Exported):
    found = tensors(mixed.folder)
    by_stream: dict[tuple[str, str], set[float]] = {}
    for a in mixed.plan.assignments:
        for stream, static in static_operands(a.site.streams, a.scheme):
            by_stream.setdefault((stream, str(static)), set()).add(float(found[f"{a.site.name}.input_scale"]))
    assert by_stream
    assert all(len(scales) == 1 for scales in by_stream.values())


# ---------------------------------------------------------------- the registry


@pytest.mark.parametrize("name", exporters.EXPORTERS.names())
def test_every_exporter_says_what_it_is(name: str):
    module: Any = exporters.EXPORTERS.load(name)
    assert callable(module.check)
    assert callable(module.write)
    assert isinstance(module.EXTRA, str)
    assert isinstance(module.NEEDS, tuple)
    assert bool(module.EXTRA) == bool(module.NEEDS)
    assert 10 < len(exporters.EXPORTERS.describe()[name]) <= 120


def test_an_unknown_format_names_the_nearest():
    with pytest.raises(UserError, match="did you mean compressed-tensors"):
        exporters.EXPORTERS.load("compresed-tensors")


def test_a_missing_extra_is_said_with_its_install_line(source: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exporter, "NEEDS", ("no_such_package",))
    monkeypatch.setattr(exporter, "EXTRA", "something")
    model, plan = quantized(source, "w=int8/channel")
    with pytest.raises(UserError, match=r'no_such_package.*pip install "qarat\[something\]"'):
        check_export(model, plan, "compressed-tensors")


# ---------------------------------------------------------------- writing that fails


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), OSError(errno.EROFS, "read-only"), KeyboardInterrupt(), RuntimeError("x")]
)
@pytest.mark.parametrize("after", [0, 5])
def test_an_export_that_fails_leaves_what_was_there(
    after: int, error: BaseException, old: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    if old:
        exported(source, out, "w=int8/channel")
    before = {p.name: p.read_bytes() for p in out.iterdir()} if old else {}
    put, calls = ShardWriter.put, [0]

    def broken(self: ShardWriter, some: dict[str, Tensor]) -> None:
        calls[0] += 1
        if calls[0] > after:
            raise error
        put(self, some)

    monkeypatch.setattr(ShardWriter, "put", broken)
    model, plan = quantized(source, "w=int4/g32")
    with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
        export_model(model, plan, out, "compressed-tensors", overwrite=True)
    assert os.listdir(tmp_path) == ["out"] * old
    assert not old or {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_what_is_there_is_not_replaced_unasked(source: Path, tmp_path: Path):
    out = tmp_path / "out"
    first = exported(source, out, "w=int8/channel")
    with pytest.raises(UserError, match="`overwrite`"):
        export_model(first.model, first.plan, out, "compressed-tensors")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="not from this command"):
        export_model(first.model, first.plan, tmp_path / "mine", "compressed-tensors", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_names_in_a_folder_cannot_lead_out_of_it(source: Path, tmp_path: Path):
    """Files are named here, not there; tensors and sites must be the model's own."""
    model, plan = quantized(source, "w=int8/channel")
    native = tmp_path / "deep" / "native"
    write_native(model, plan, native)
    index = native / "qarat.index.json"
    known = json.loads(index.read_text())
    known["source_map"] = {n: f"../../evil-{i % 2}.safetensors" for i, n in enumerate(known["source_map"])}
    index.write_text(json.dumps(known))
    again, _ = read_native(native)
    export_model(again, plan, tmp_path / "deep" / "out", "compressed-tensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep"]
    assert sorted(p.name for p in (tmp_path / "deep" / "out").glob("*.safetensors")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert distance(theirs(tmp_path / "deep" / "out"), ours(model)) < 1e-5
    evil = "../../x"
    text = (native / "plan.json").read_text().replace("model.layers.0.mlp.up_proj", evil)
    (native / "plan.json").write_text(text)
    with pytest.raises(UserError):
        read_native(native)


def test_the_writer_holds_the_exporter_to_what_it_announced(tmp_path: Path):
    writer = ShardWriter(tmp_path, {"a": (torch.int8, (2,)), "b": (torch.float32, (1, 1))}, {"a": "x", "b": "x"})
    with pytest.raises(ValueError, match="announced"):
        writer.put({"a": torch.zeros(3, dtype=torch.int8)})
    with pytest.raises(ValueError, match="announced"):
        writer.put({"c": torch.zeros(1)})
    writer.put({"a": torch.tensor([1, -2], dtype=torch.int8)})
    with pytest.raises(ValueError, match="announced"):
        writer.put({"a": torch.zeros(2, dtype=torch.int8)})
    with pytest.raises(ValueError, match="not made: b"):
        writer.finish()
    writer.put({"b": torch.ones(1, 1)})
    writer.finish()
    assert {n: t.tolist() for n, t in load_file(tmp_path / "x").items()} == {"a": [1, -2], "b": [[1.0]]}


def test_wire_codes_are_the_librarys_for_every_value():
    """Every e4m3 and e2m1 value packs to the byte the library would write (sign and magnitude)."""
    scheme = parse_weight("w=e4m3/tensor").number_format
    values = torch.tensor(scheme.values)
    codes = torch.arange(len(values), dtype=torch.uint8)
    assert torch.equal(to_wire(codes, scheme), values.to(torch.float8_e4m3fn).view(torch.uint8))


def test_it_keeps_what_every_exporter_promises(tiny_model: Model, tmp_path: Path):
    plan = assign(tiny_model.fingerprint, tiny_model.source_bits, tiny_model.sites(), "w=int4/g16")
    product = plan.with_schemes({"model.layers.0.self_attn.qk": parse_scheme("l=int8/token r=int8/token")}, "tried")
    check_exporter(
        exporters.EXPORTERS.load("compressed-tensors"), quantize(tiny_model, plan), plan, tmp_path, refused=product
    )

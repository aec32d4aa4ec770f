"""What a folder asks of engines besides its projections, by engine and version; what is not followed is no pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from torch import Tensor

from qarat.ground.runtime import Runtime
from qarat.jobs.verify import AgainstRun, verify
from qarat.maths.tensors import QuantizedTensor
from qarat.stages.read_back.folders import open_folder
from qarat.stages.read_back.matching import match_modules
from qarat.stages.read_back.simulation import open_stored, weight_of
from qarat.values.engines import ENGINES
from qarat.values.records.verification import Finding, Verification

HEAD, EMBEDDING, O_PROJ = "lm_head", "model.embed_tokens", "model.layers.0.self_attn.o_proj"
FP8_CACHE = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
Config = dict[str, Any]
State = dict[str, Tensor]


def grave(verification: Verification) -> list[Finding]:
    return [f for f in verification.findings if f.severity != "note"]


def the_one(verification: Verification, *texts: str) -> Finding:
    found = [f for f in verification.findings if all(text in f.what for text in texts)]
    assert len(found) == 1, [f.what for f in verification.findings]
    return found[0]


# ---------------------------------------------------------------- the KV cache


def with_cache(broken: Any, scheme: Config, scales: bool = True) -> Any:
    def add(state: State) -> None:
        for block in range(3):
            for leaf in ("k_scale", "v_scale"):
                state[f"model.layers.{block}.self_attn.{leaf}"] = torch.tensor([0.5])

    broken.config(lambda config: config.update(kv_cache_scheme=scheme))
    return broken.tensors(add).path if scales else broken.path


def test_an_fp8_cache_passes_where_it_is_read_and_is_computed(made: Any, broken: Any) -> None:
    folder = with_cache(broken, FP8_CACHE)
    for engine in ("vllm", "vllm-0.18", "sglang", "transformers"):
        verification = verify(folder, [engine])
        assert verification.verdict == "passes", engine
        assert grave(verification) == []
        assert "keys and values are kept in float8/tensor" in the_one(verification, "keys and values").what
    compared = verify(folder, ["vllm"], against=AgainstRun(made.run, made.plan, made.tokens))
    unplanned = the_one(compared, "the folder keeps c=e4m3/tensor/static, the plan says float")
    assert unplanned.severity == "error"
    assert len(unplanned.modules) == 6
    assert compared.weights[0].equal == 21  # the rest is compared all the same
    assert compared.logits[0].relative > compared.logits[0].limit


def test_a_cache_whose_words_have_no_scheme_is_not_judged(made: Any, broken: Any) -> None:
    folder = with_cache(broken, FP8_CACHE, scales=False)
    compared = verify(folder, ["vllm"], against=AgainstRun(made.run, made.plan, made.tokens))
    assert the_one(compared, "with the KV cache in float").severity == "not judged"
    assert compared.weights[0].equal == 21
    assert compared.verdict == "not judged"
    assert not compared.passed


@pytest.mark.parametrize(
    ("change", "vllm", "older", "sglang"),
    [
        ({"num_bits": 8, "type": "int"}, "fails", "passes", "passes"),  # with warnings: see the next test
        ({"num_bits": 4, "type": "float"}, "fails", "passes", "passes"),
        ({"strategy": "attn_head"}, "passes", "fails", "passes"),
        ({"symmetric": False}, "fails", "fails", "passes"),
    ],
)
def test_other_caches_are_refused_or_left_aside(
    broken: Any, change: Config, vllm: str, older: str, sglang: str
) -> None:
    folder = with_cache(broken, FP8_CACHE | change)
    assert verify(folder, ["vllm"]).verdict == vllm
    assert verify(folder, ["vllm-0.18"]).verdict == older
    verification = verify(folder, ["sglang"])
    assert verification.verdict == sglang
    assert the_one(verification, "is left aside").severity == "warning"


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({"num_bits": 8, "type": "int"}, {"vllm-0.23", "vllm-0.18"}),
        ({"num_bits": 4, "type": "float"}, {"vllm-0.23", "vllm-0.18"}),
        ({"dynamic": True}, {"vllm", "vllm-0.26", "vllm-0.23", "vllm-0.18"}),
        ({"strategy": "attn_head", "dynamic": True}, {"vllm", "vllm-0.26", "vllm-0.23"}),
        ({"num_bits": 4, "type": "int"}, set()),
    ],
)
def test_caches_that_vllm_takes_for_static_fp8(broken: Any, change: Config, taken: set[str]) -> None:
    folder = with_cache(broken, FP8_CACHE | change)
    for engine in ("vllm", "vllm-0.26", "vllm-0.23", "vllm-0.18"):
        verification = verify(folder, [engine])
        found = [f.severity for f in verification.findings if "is taken for static FP8" in f.what]
        assert found == (["warning"] if engine in taken else []), engine
        assert verification.passed == (engine in taken), engine


def test_scales_of_a_cache_for_each_head(broken: Any) -> None:
    folder = with_cache(broken, FP8_CACHE | {"strategy": "attn_head"})
    assert verify(folder, ["vllm"]).passed  # one for all heads is spread
    name = "model.layers.1.self_attn.k_scale"
    broken.tensors(lambda state: state.update({name: torch.full((2, 1, 1), 0.5)}))
    assert verify(folder, ["vllm"]).passed
    broken.config(lambda config: config.update(kv_cache_scheme=FP8_CACHE))
    assert the_one(verify(folder, ["vllm"]), f"{name} of 2 scales, where tensor asks for 1").severity == "error"


def test_sglang_left_the_cache_of_every_folder_aside_before(broken: Any) -> None:
    verification = verify(with_cache(broken, FP8_CACHE), ["sglang-2026-08"])
    found = the_one(verification, "kv_cache_scheme float8/tensor is left aside")
    assert "35455" in found.remedy


def test_scales_of_a_cache_that_are_missing_or_none(broken: Any) -> None:
    folder = with_cache(broken, FP8_CACHE, scales=False)
    found = the_one(verify(folder, ["vllm"]), "model.layers.0.self_attn.v_scale and 4 more missing")
    assert found.what.startswith("the tensors model.layers.0.self_attn.k_scale, ")
    assert found.severity == "warning"
    broken.tensors(lambda state: state.update({"model.layers.1.self_attn.k_scale": torch.zeros(1)}))
    assert the_one(verify(folder, ["vllm"]), "k_scale: 1 of 1 scales are zero").severity == "error"


def test_scales_of_a_cache_without_a_scheme_are_to_be_kept(broken: Any) -> None:
    broken.tensors(lambda s: s.update({f"model.layers.{b}.self_attn.k_proj.k_scale": torch.ones(1) for b in range(3)}))
    verification = verify(broken.path, ["vllm", "sglang"])
    found = the_one(verification, "scales of a quantized KV cache")
    assert (found.severity, found.remedy.partition(":")[0]) == ("note", "keep them")
    assert verification.passed


# ---------------------------------------------------------------- sparsity, transforms, outputs


def test_sparse_weights_by_engine_with_one_finding_for_one_cause(broken: Any) -> None:
    def bitmasks(state: State) -> None:
        weight = state.pop(f"{O_PROJ}.weight")
        state |= {f"{O_PROJ}.compressed": weight[:, ::2].contiguous(), f"{O_PROJ}.bitmask": torch.ones(4, 4)}

    sparse = {"format": "sparse-24-bitmask", "sparsity_structure": "2:4", "targets": ["Linear"]}
    folder = broken.config(lambda config: config.update(sparsity_config=sparse)).tensors(bitmasks).path
    verdicts = dict.fromkeys(("vllm", "vllm-0.23", "transformers"), "fails")
    for engine, verdict in (verdicts | dict.fromkeys(("vllm-0.18", "sglang"), "not judged")).items():
        verification = verify(folder, [engine])
        assert verification.verdict == verdict, engine
        assert len(verification.findings) == 1, engine
    assert "36799" in verify(folder, ["vllm"]).errors[0].remedy


def test_a_format_of_2_to_4_weights_alone_says_that_they_are_sparse(broken: Any) -> None:
    folder = broken.config(lambda config: config["config_groups"]["group_0"].update(format="marlin-24")).path
    assert the_one(verify(folder, ["vllm"]), "weights are sparse (marlin-24)").severity == "error"


def test_a_dense_sparsity_config_with_targets_is_refused_by_vllm_since_0_24(broken: Any) -> None:
    dense = {"format": "dense", "targets": ["model.layers.0.mlp.up_proj"]}
    folder = broken.config(lambda config: config.update(sparsity_config=dense)).path
    verdicts = {engine: verify(folder, [engine]).verdict for engine in ("vllm", "vllm-0.26", "vllm-0.23", "sglang")}
    assert verdicts == {"vllm": "fails", "vllm-0.26": "fails", "vllm-0.23": "passes", "sglang": "passes"}


@pytest.mark.parametrize("kind", ["transforms", "outputs"])
def test_what_is_not_followed_is_not_judged(made: Any, broken: Any, kind: str) -> None:
    def change(config: Config) -> None:
        if kind == "transforms":
            config["transform_config"] = {"config_groups": {"u": {"type": "hadamard", "apply": []}}}
        else:
            config["config_groups"]["group_1"]["output_activations"] = {**FP8_CACHE, "type": "int"}

    folder = broken.config(change).path
    verification = verify(folder, ["vllm"])
    assert the_one(verification, "qarat does not follow").severity == "not judged"
    assert verification.verdict == "not judged"
    compared = verify(folder, ["vllm"], against=AgainstRun(made.run, made.plan, made.tokens))
    assert the_one(compared, "not computed: ").severity == "not judged"
    assert compared.weights == compared.logits == ()


def test_parts_of_the_config_that_do_nothing(broken: Any) -> None:
    empty = {"kv_cache_scheme": None, "sparsity_config": {"format": "dense"}, "transform_config": {"config_groups": {}}}
    assert grave(verify(broken.config(lambda c: c.update(empty)).path, ["vllm"])) == []
    empty = {"sparsity_config": {}, "transform_config": {}}
    assert grave(verify(broken.config(lambda c: c.update(empty)).path, ["vllm"])) == []


# ---------------------------------------------------------------- the head and the embedding


def pack(name: str, *, group: int = 16, order: Tensor | None = None, zero: bool = False) -> Callable[[State], None]:
    """A weight in int4 under group scales, as pack-quantized holds it."""

    def change(state: State) -> None:
        weight = state.pop(f"{name}.weight").float()
        for leaf in ("weight_scale", "input_scale"):
            state.pop(f"{name}.{leaf}", None)
        rows, cols = weight.shape
        of = torch.arange(cols) // group if order is None else order.long()
        scale = torch.stack([weight[:, of == g].abs().amax(1) for g in range(cols // group)], 1) / 7
        codes = (weight / scale[:, of]).round().clamp(-8, 7).to(torch.int8)
        state |= {f"{name}.weight_packed": pack_to_int32(codes, 4), f"{name}.weight_scale": scale}
        state[f"{name}.weight_shape"] = torch.tensor([rows, cols])
        if order is not None:
            state[f"{name}.weight_g_idx"] = order.int()
        if zero:
            zeros = torch.full((rows, cols // group), 3, dtype=torch.int8)
            state[f"{name}.weight_zero_point"] = pack_to_int32(zeros, 4, packed_dim=0)

    return change


def packed_group(*targets: str, **more: Any) -> Callable[[Config], None]:
    """The config group that goes with it; whatever named the targets before does no more."""

    def change(config: Config) -> None:
        for group in config["config_groups"].values():
            group["targets"] = [t for t in group["targets"] if t not in targets]
        config["ignore"] = [entry for entry in config["ignore"] if entry not in targets]
        weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 16}
        config["config_groups"]["packed"] = {
            "format": "pack-quantized",
            "targets": list(targets),
            "weights": weights | more,
        }

    return change


def test_a_quantized_head_by_engine_and_version(made: Any, broken: Any) -> None:
    folder = broken.tensors(pack(HEAD)).config(packed_group(HEAD)).path
    for engine in ("transformers", "vllm", "vllm-0.23", "sglang"):
        assert verify(folder, [engine]).verdict == "passes", engine
    note = the_one(verify(folder, ["sglang"]), "the head is stored quantized")
    assert "before, it drops the head's tensors without a word" in note.remedy
    for engine, source in (("vllm-0.18", "37291"), ("sglang-2026-08", "35228"), ("sglang-old", "35228")):
        found = the_one(verify(folder, [engine]), "the head is stored quantized, and its tensors are dropped")
        assert found.severity == "error"
        assert source in found.remedy
    # And it is computed as it is stored: that run has another head, and nothing else that differs.
    verification = verify(folder, ["vllm"], against=AgainstRun(made.run, made.plan, made.tokens))
    assert verification.weights[0].equal == 21
    assert [f.what.partition(" ")[0] for f in verification.errors] == ["lm_head.weight", "logits"]


def test_a_quantized_head_is_its_codes_times_its_scales(broken: Any) -> None:
    folder = open_folder(broken.tensors(pack(HEAD)).config(packed_group(HEAD)).path)
    matches = match_modules(ENGINES["vllm"], folder.config, folder.modules)
    model = open_stored(folder, matches, Runtime())
    stored = folder.checkpoint.read_raw(f"{HEAD}.", "cpu")
    group = matches[HEAD].group
    assert group is not None
    expected = weight_of(stored, group, "pack-quantized")
    assert isinstance(expected, QuantizedTensor)
    assert model.outside()[f"{HEAD}.weight"].equal(expected.dequantize())


def test_a_head_whose_input_is_quantized_is_not_judged_but_resolved(made: Any, broken: Any) -> None:
    def fp8(state: State) -> None:
        weight = state.pop(f"{HEAD}.weight").float()
        scale = weight.abs().amax(1, keepdim=True) / 448
        state |= {f"{HEAD}.weight": (weight / scale).to(torch.float8_e4m3fn), f"{HEAD}.weight_scale": scale}

    def change(config: Config) -> None:
        config["config_groups"]["group_1"]["targets"].append("re:.*lm_head")
        config["ignore"].remove(HEAD)

    folder = broken.tensors(fp8).config(change).path
    assert verify(folder, ["vllm", "sglang", "transformers"]).passed
    compared = verify(folder, ["vllm"], against=AgainstRun(made.run, made.plan, made.tokens))
    assert the_one(compared, "the input of lm_head is quantized").severity == "not judged"


def test_a_quantized_embedding_is_found_by_its_class_alone(broken: Any) -> None:
    folder = broken.tensors(pack(EMBEDDING)).config(packed_group(EMBEDDING)).path
    assert verify(folder, ["transformers"]).passed
    by_name = the_one(verify(folder, ["vllm"]), "loading stops: it is looked up by its class")
    assert (by_name.severity, by_name.modules) == ("error", (EMBEDDING,))
    assert the_one(verify(folder, ["sglang"]), "the embedding is stored quantized, and its tensors are dropped")
    broken.config(lambda config: config["config_groups"]["packed"].update(targets=["Embedding"]))
    assert verify(folder, ["vllm"]).passed
    assert not verify(folder, ["vllm-0.23"]).passed


# ---------------------------------------------------------------- columns in another order, zero points


def shuffled(cols: int = 32) -> Tensor:
    order = torch.empty(cols, dtype=torch.int32)
    place = torch.randperm(cols, generator=torch.Generator().manual_seed(1))
    order[place] = torch.arange(cols, dtype=torch.int32) // 16
    return order


def test_columns_belong_to_groups_as_the_file_says(broken: Any) -> None:
    order = shuffled()
    broken.tensors(pack(O_PROJ, order=order)).config(packed_group(O_PROJ, actorder="group"))
    folder = open_folder(broken.path)
    (group,) = [g for g in folder.config.groups if g.name == "packed"]
    stored = folder.checkpoint.read_raw(f"{O_PROJ}.", "cpu")
    weight = weight_of(stored, group, "pack-quantized")
    plain = weight_of({k: v for k, v in stored.items() if k != "weight_g_idx"}, group, "pack-quantized")
    assert isinstance(weight, Tensor)
    codes = plain.dequantize() / stored["weight_scale"].repeat_interleave(16, 1)
    assert weight.allclose(codes * stored["weight_scale"][:, order.long()], rtol=1e-6)
    assert not weight.allclose(plain.dequantize(), rtol=1e-2)


def test_an_order_that_engines_do_not_follow_is_an_error(broken: Any) -> None:
    broken.tensors(pack(O_PROJ, order=shuffled())).config(packed_group(O_PROJ, actorder="group"))
    assert verify(broken.path, ["vllm"]).passed
    never = the_one(verify(broken.path, ["transformers"]), "columns belong to groups as weight_g_idx says")
    assert "pull/840" in never.remedy
    broken.config(lambda config: config["config_groups"]["packed"]["weights"].update(actorder="static"))
    assert the_one(verify(broken.path, ["vllm"]), "it reads none under actorder static").severity == "error"


@pytest.mark.parametrize("order", [torch.full((32,), -1), torch.arange(32) // 16])
def test_an_order_that_is_none(broken: Any, order: Tensor) -> None:
    def add(state: State) -> None:
        pack(O_PROJ)(state)
        state[f"{O_PROJ}.weight_g_idx"] = order.int()

    verification = verify(broken.tensors(add).config(packed_group(O_PROJ)).path, ["vllm", "transformers"])
    assert verification.passed
    assert the_one(verification, "weight_g_idx is there and says nothing").severity == "note"


def test_groups_that_there_are_not(broken: Any) -> None:
    order = shuffled()
    order[3] = 9
    broken.tensors(pack(O_PROJ, order=shuffled())).tensors(lambda s: s.update({f"{O_PROJ}.weight_g_idx": order}))
    verification = verify(broken.config(packed_group(O_PROJ, actorder="group")).path, ["vllm"])
    assert the_one(verification, "1 of 32 columns belong to none of the 2 groups").severity == "error"


def test_zero_points_are_read_since_some_version(broken: Any) -> None:
    folder = broken.tensors(pack(O_PROJ, zero=True)).config(packed_group(O_PROJ, symmetric=False)).path
    verification = verify(folder, ["transformers", "vllm", "sglang"])
    assert verification.passed
    assert ["25292" in f.remedy for f in verification.findings if f.engines == ("sglang",)].count(True) == 1

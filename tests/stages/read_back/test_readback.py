"""Reading back: a folder is its run to the last bit, and whatever differs is named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.jobs.verify import LOGITS_LIMIT, AgainstRun, verify
from qarat.model.opening import open_model
from qarat.stages.export.base import export_model
from qarat.stages.observe import observe
from qarat.stages.quantize import quantize
from qarat.stages.read_back.readback import relative_difference
from qarat.testing import tiny_checkpoint
from qarat.values.plans import assign
from qarat.values.records.files import content_hash
from qarat.values.records.verification import Verification

DOWN = "model.layers.0.mlp.down_proj"
STRANGER = Path(__file__).parents[2] / "data" / "llmcompressor-int8-fp8"


def verified(made: Any, folder: Path, **more: Any) -> Verification:
    return verify(folder, ["transformers", "vllm"], against=AgainstRun(made.run, made.plan, made.tokens), **more)


def errors(verification: Verification) -> list[str]:
    return [f.what for f in verification.errors]


def test_the_good_folder_is_its_run(made: Any) -> None:
    verification = verified(made, made.folder)
    assert errors(verification) == []
    (weights,) = verification.weights
    assert (weights.sites, weights.equal, weights.largest) == (21, 21, 0.0)
    ours, theirs, short = verification.logits
    assert ours.relative == 0.0
    assert ours.limit == LOGITS_LIMIT
    assert theirs.relative <= LOGITS_LIMIT  # transformers computes static INT8 and FP8 per token just so
    assert 1e-3 < short.relative < 1
    assert verification.against == "run"
    assert verification.provenance.tokens == made.tokens.fingerprint


def change_code(state: dict[str, Tensor]) -> None:
    state[f"{DOWN}.weight"][3, 5] ^= 1


def change_scale(state: dict[str, Tensor]) -> None:
    scale = state[f"{DOWN}.weight_scale"]
    scale[3] = torch.nextafter(scale[3], torch.ones(1))


def change_input_scale(state: dict[str, Tensor]) -> None:
    state[f"{DOWN}.input_scale"] *= 1 + 2**-20


def change_norm(state: dict[str, Tensor]) -> None:
    state["model.layers.1.input_layernorm.weight"][0] += 1e-6


def change_embedding(state: dict[str, Tensor]) -> None:
    state["model.embed_tokens.weight"][0, 0] += 1e-6


def change_float_weight(state: dict[str, Tensor]) -> None:
    state["model.layers.1.mlp.down_proj.weight"][0, 0] += 1e-6


CHANGES = {
    change_code: (DOWN, "its weight differs from the run's"),
    change_scale: (DOWN, "its weight differs from the run's"),
    change_input_scale: (DOWN, "its static input scales differ from the run's"),
    change_norm: (None, "model.layers.1.input_layernorm.weight differs from the run's"),
    change_embedding: (None, "model.embed_tokens.weight differs from the run's"),
    change_float_weight: ("model.layers.1.mlp.down_proj", "its weight differs from the run's"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_smallest_difference_is_named(made: Any, broken: Any, change: Any) -> None:
    module, text = CHANGES[change]
    verification = verified(made, broken.tensors(change).path)
    found = [f for f in verification.errors if f.what == text]
    assert len(found) == 1, errors(verification)
    assert found[0].modules == (() if module is None else (module,))
    assert verification.weights[0].equal == (21 if module is None else 20)


def test_another_scheme_than_planned(made: Any, broken: Any) -> None:
    def change(config: dict[str, Any]) -> None:
        inputs = config["config_groups"]["group_1"]["input_activations"]
        inputs |= {"strategy": "tensor", "dynamic": True}

    # FP8 with a scale per tensor at run time: both engines take it, but nobody planned it.
    verification = verified(made, broken.config(change).path)
    assert any("the folder runs w=e4m3/channel a=e4m3/tensor/dynamic, the plan says" in e for e in errors(verification))


def test_nothing_is_computed_of_a_broken_folder(made: Any, broken: Any) -> None:
    def drop(state: dict[str, Tensor]) -> None:
        del state[f"{DOWN}.input_scale"]

    verification = verified(made, broken.tensors(drop).path)
    assert verification.weights == verification.logits == ()
    assert any("nothing was computed" in f.what for f in verification.findings)


def test_a_kernel_that_is_missing_somewhere_keeps_nothing_from_being_compared(made: Any) -> None:
    verification = verified(made, made.folder, generation="blackwell")
    assert errors(verification) == ["w=int8/channel a=int8/tensor/static: int8 does not run on blackwell"]
    assert verification.weights[0].equal == 21


def test_a_model_of_another_shape(made: Any, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", blocks=2)
    model = open_model(str(other))
    plan = assign(model.fingerprint, model.source_bits, model.sites(), "float")
    with pytest.raises(UserError, match="models of different shapes"):
        verify(made.folder, against=AgainstRun(quantize(model, plan), plan, made.tokens))


SCHEMES = {
    "w=int8/tensor a=int8/tensor/static": 0.0,
    "w=int8/channel a=int8/token": 0.0,
    "w=int4/g16": 0.0,
    "w=int4/g16/asymmetric": 0.0,
    "w=e4m3/channel a=e4m3/tensor/static": 0.0,
    "w=mxfp4 a=mxfp4/mx-even": 0.0,
    "w=mxfp6": 0.0,
    "w=mxfp8 a=mxfp8/mx-even": 0.0,
    "w=mxint4": 0.0,  # as int4, its exponents as bfloat16
    "w=e4m3/channel/scale-e8m0 a=e4m3/tensor/static/scale-e8m0": 0.0,
    "w=nvfp4": 2**-22,  # the file keeps the reciprocal of the tensor scale
}


NO_KERNEL = ("w=mxfp6",)  # vLLM has none


@pytest.mark.parametrize("scheme", SCHEMES)
def test_our_own_exports_pass(made: Any, tmp_path: Path, scheme: str) -> None:
    model = open_model(str(made.float))
    stats = observe(model, made.tokens) if "static" in scheme else None
    hashed = content_hash(stats) if stats else ""
    rules = [("*.1.*.down_proj", "float")]
    plan = assign(model.fingerprint, model.source_bits, model.sites(), scheme, rules, hashed)
    run = quantize(model, plan, stats)
    export_model(run, plan, tmp_path / "out", "compressed-tensors")
    engines = ["transformers"] if scheme in NO_KERNEL else []
    verification = verify(tmp_path / "out", engines, against=AgainstRun(run, plan, made.tokens))
    assert errors(verification) == []
    assert verification.weights[0].largest <= SCHEMES[scheme]
    assert verification.logits[0].relative <= LOGITS_LIMIT


def test_a_folder_of_llm_compressor_s() -> None:
    verification = verify(STRANGER, ["transformers", "vllm", "sglang"])
    assert [f.what for f in verification.findings if f.severity != "note"] == []
    runs = {m.name: {run.scheme for run in m.runs} for m in verification.modules}
    assert runs[DOWN] == {"w=int8/channel a=int8/tensor/static"}
    assert runs["model.layers.1.mlp.down_proj"] == {"float"}
    assert runs["model.layers.2.mlp.down_proj"] == {"w=e4m3/channel a=e4m3/token"}
    assert runs["lm_head"] == {"float"}


def test_autoround_s_negative_scales_are_no_fault() -> None:
    """What AutoRound makes: scales of either sign, so that the lowest code is used."""
    folder = STRANGER.parent / "autoround-int8"
    assert (load_file(folder / "model.safetensors")[f"{DOWN}.weight_scale"] < 0).any()
    verification = verify(folder, ["transformers", "vllm", "sglang"])
    assert [f.what for f in verification.findings if f.severity != "note"] == []
    assert any("scales are negative" in f.what for f in verification.findings)
    runs = {m.name: {run.scheme for run in m.runs} for m in verification.modules}
    assert runs[DOWN] == {"w=int8/channel a=int8/token"}


def test_relative_difference() -> None:
    a = torch.tensor([1.0, -4.0])
    assert relative_difference(a, a) == 0
    assert relative_difference(a + 1, a) == 0.25
    assert relative_difference(a, torch.tensor([torch.nan, 1])) == float("inf")
    assert relative_difference(torch.ones(2), torch.zeros(2)) == float("inf")

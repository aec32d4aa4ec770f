"""Tuning: what is low keeps every byte, what is in float moves, and the model predicts more as the float one does."""

from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.model.model import Model
from qarat.model.native import read_native, write_native
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.model.tokens import TokenSet
from qarat.stages.export.recipes import refuse_transforms
from qarat.stages.measure.divergence import measure_divergence
from qarat.stages.quantize import quantize
from qarat.stages.tuning import check_tuning, tune
from qarat.testing import tiny_checkpoint
from qarat.values.plan_files import decode_plan, encode_plan
from qarat.values.plans import Plan, assign

LOW = "w=int3/g32 a=int8/token"
RULES = [("*.down", "float"), ("0.q", "float")]


def plan_of(model: Model, low: str = LOW, rules: list[tuple[str, str]] = RULES) -> Plan:
    return assign(model.fingerprint, model.source_bits, model.sites(), low, rules)


def token_set(windows: int = 6, length: int = 16) -> TokenSet:
    ids = torch.randint(2, 98, (windows, length), generator=torch.Generator().manual_seed(3))
    sources = tuple(f"text {i}" for i in range(windows))
    return TokenSet("calibration", f"windows-{length}-nobos", ids, sources, ("0" * 64,), ("text",))


def written(folder: Path) -> dict[str, bytes]:
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return {name: t.contiguous().view(torch.uint8).numpy().tobytes() for name, t in tensors.items()}


def test_what_is_low_keeps_every_byte_and_what_is_in_float_moves(tmp_path: Path):
    model = open_model(str(tiny_checkpoint(tmp_path / "tiny", dtype=torch.bfloat16)), Runtime(dtype="float32"))
    plan = plan_of(model)
    small = quantize(model, plan)
    write_native(small, plan, tmp_path / "before")
    tuned = tune(model, small, token_set(), plan, 3)
    write_native(tuned, replace(plan, tuned=3), tmp_path / "after")
    before, after = written(tmp_path / "before"), written(tmp_path / "after")
    assert before.keys() == after.keys()
    moved = {name for name in before if before[name] != after[name]}
    assert moved == {f"{a.site.name}.weight" for a in plan.assignments if a.site.kind == "projection" and a.is_float}
    write_native(quantize(model, plan), plan, tmp_path / "again")  # nothing of the models given was written to
    assert written(tmp_path / "again") == before
    back, plan_back = read_native(tmp_path / "after", Runtime(dtype="float32"))
    assert plan_back.tuned == 3
    ids = token_set().windows
    for index in range(model.blocks):  # what was measured is what is written
        hidden = torch.randn(2, 16, model.config.hidden_size, generator=torch.Generator().manual_seed(index))
        for each in (tuned, back):
            each.embed(ids[:2])
        assert torch.equal(*(m.run_block(index, m.block(index), hidden) for m in (tuned, back)))


def test_it_predicts_more_as_the_float_model_on_text_it_was_not_tuned_on():
    model = open_model("py-64", Runtime(threads=1, dtype="float32"))
    calibration, selection, _ = load_token_sets(model, samples=8, report_samples=1)
    plan = plan_of(model, "w=int3/g32", [("*.down", "float")])
    small = quantize(model, plan)
    tuned = tune(model, small, calibration, plan, 6)
    divergences = [measure_divergence(m, model, selection, label="q").mean[0] for m in (small, tuned)]
    assert divergences[1] < 0.95 * divergences[0]


def test_a_plan_says_that_it_was_tuned_and_what_begins_from_the_float_model_refuses(tmp_path: Path):
    model = open_model(str(tiny_checkpoint(tmp_path / "tiny")))
    plan = replace(plan_of(model), tuned=50)
    assert decode_plan(encode_plan(plan)) == plan
    assert "tuned" not in encode_plan(plan_of(model))
    with pytest.raises(UserError, match="before tuning"):
        refuse_transforms(plan, "it")
    refuse_transforms(plan_of(model), "it")


@pytest.mark.parametrize(
    ("rules", "steps", "why"),
    [
        ([], 5, "leaves nothing"),
        (RULES, 0, "at least 1"),
        ([*RULES, ("1.qk", "l=int8/token r=int8/token")], 5, r"caches: model\.layers\.1\.self_attn\.qk$"),
        ([*RULES, ("0.k_cache", "c=int8/token")], 5, r"caches: model\.layers\.0\.self_attn\.k_cache$"),
    ],
)
def test_what_cannot_be_tuned_is_refused(tmp_path: Path, rules: list[tuple[str, str]], steps: int, why: str):
    plan = plan_of(open_model(str(tiny_checkpoint(tmp_path / "tiny"))), rules=rules)
    with pytest.raises(UserError, match=why):
        check_tuning(plan, steps)


def test_a_prefix_and_another_dtype_are_refused(tmp_path: Path):
    model = open_model(str(tiny_checkpoint(tmp_path / "tiny")), Runtime(dtype="bfloat16"))
    plan = plan_of(model)
    with pytest.raises(UserError, match="through a prefix"):
        check_tuning(replace(plan, prefix=(0,)), 5)
    with pytest.raises(UserError, match="float32, not bfloat16"):
        tune(model, quantize(model, plan), token_set(), plan, 1)

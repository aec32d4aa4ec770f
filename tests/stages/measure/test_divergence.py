"""Divergence from float, against its definition computed with transformers' own logits."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from transformers import AutoModelForCausalLM

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.tokens import NOTHING, TokenSet
from qarat.stages.measure.divergence import WORST, measure_divergence
from qarat.stages.quantize import quantize
from qarat.testing import tiny_checkpoint
from qarat.values.plans import assign
from qarat.values.records.files import decode_record, encode_record
from qarat.values.records.origin import clustered_mean

LENGTH = 24


def token_set(windows: int = 6) -> TokenSet:
    ids = torch.randint(2, 98, (windows, LENGTH), generator=torch.Generator().manual_seed(3))
    sources = tuple(f"text {i // 2}" for i in range(windows))
    return TokenSet("report", f"windows-{LENGTH}-nobos", ids, sources, ("0" * 64,), ("text",))


def low(model: Model, scheme: str = "w=int3/channel") -> Model:
    return quantize(model, assign(model.fingerprint, model.source_bits, model.sites(), scheme))


@torch.no_grad()
def test_it_is_the_definition(tiny_model: Model):
    tokens, quantized = token_set(), low(tiny_model)
    whole: Any = AutoModelForCausalLM.from_pretrained(tiny_model.folder, dtype=torch.float32)
    module: Any = quantized.module()
    p, q = (m(tokens.windows, use_cache=False).logits[:, :-1].double().log_softmax(-1) for m in (whole, module))
    nats = (p.exp() * (p - q)).sum(-1)
    same = p.argmax(-1) == q.argmax(-1)
    found = measure_divergence(quantized, tiny_model, tokens, label="low", plan="abc")
    assert found.nats == pytest.approx(nats.sum(1).tolist(), rel=1e-4)
    assert found.agreeing == tuple(same.sum(1).tolist())
    assert found.mean[0] == pytest.approx(float(nats.mean()), rel=1e-4)
    assert found.mean == clustered_mean(found.nats, found.predicted, found.sources)[:2]
    assert found.agreement[0] == pytest.approx(float(same.double().mean()))
    ordered = nats.flatten().sort().values
    assert found.percentile_99 == pytest.approx(float(ordered[math.ceil(0.99 * len(ordered)) - 1]), rel=1e-4)
    assert found.percentile_99 >= float(ordered[-2])  # of 138 tokens, one or two lie beyond
    for b in found.positions:
        inside = nats[:, b.first - 1 : b.last]
        assert (b.tokens, b.divergence) == (inside.numel(), pytest.approx(float(inside.mean()), rel=1e-4))
        assert b.agreement == pytest.approx(float(same[:, b.first - 1 : b.last].double().mean()))
    assert [b.first for b in found.positions] == [1, 2, 4, 8, 16]
    assert found.positions[-1].last == LENGTH - 1
    assert (found.label, found.plan) == ("low", "abc")
    assert found.provenance == tiny_model.provenance(tokens.fingerprint, tokens.convention)


@torch.no_grad()
def test_the_worst_tokens_are_told_in_words(tiny_model: Model):
    tokens, quantized = token_set(), low(tiny_model)
    found = measure_divergence(quantized, tiny_model, tokens, label="low")
    whole: Any = AutoModelForCausalLM.from_pretrained(tiny_model.folder, dtype=torch.float32)
    decode: Any = tiny_model.tokenizer.decode
    assert len(found.worst) == WORST
    assert [t.divergence for t in found.worst] == sorted((t.divergence for t in found.worst), reverse=True)
    for token in found.worst:
        ids = tokens.windows[token.window]
        assert token.source == tokens.sources[token.window]
        assert token.context == decode(ids[: token.read])
        assert token.token == decode(ids[token.read : token.read + 1])
        held = whole(ids[None]).logits[0, token.read - 1].softmax(-1).max(-1)
        assert token.float_choice == decode([int(held.indices)])
        assert token.float_probability == pytest.approx(float(held.values), rel=1e-4)
        assert 0 < token.probability <= 1


def test_float_does_not_diverge_from_itself(tiny_model: Model):
    for same in (tiny_model, low(tiny_model, "float")):
        found = measure_divergence(same, tiny_model, token_set(), label="same")
        assert set(found.nats) == {0.0}
        assert found.agreement == (1.0, 0.0)


def test_batches_change_nothing(tiny_llama: Path):
    def nats(windows: int) -> tuple[float, ...]:
        model = open_model(str(tiny_llama), Runtime(batch_tokens=windows * LENGTH, memory=1))
        return measure_divergence(low(model), model, token_set(), label="low").nats

    assert nats(1) == pytest.approx(nats(64), rel=1e-4)


def test_only_what_the_convention_predicts_counts(tiny_model: Model):
    tokens = token_set()
    targets = torch.full_like(tokens.windows, NOTHING)
    targets[:, 12:-1] = tokens.windows[:, 13:]
    halves = replace(tokens, targets=targets)
    found = measure_divergence(low(tiny_model), tiny_model, halves, label="low")
    assert found.predicted == (LENGTH - 13,) * len(tokens)
    assert [(b.first, b.last, b.tokens) for b in found.positions] == [(8, 15, 18), (16, 23, 48)]


def test_the_record_survives_its_file(tiny_model: Model, tmp_path: Path):
    found = measure_divergence(low(tiny_model), tiny_model, token_set(), label="low")
    path = tmp_path / "divergence.json"
    path.write_bytes(encode_record(found))
    assert decode_record(path) == found


def test_strangers_are_refused(tiny_model: Model, tmp_path: Path):
    other = open_model(str(tiny_checkpoint(tmp_path, seed=1)))
    with pytest.raises(
        UserError, match=f"made from the model {tiny_model.fingerprint[:12]}….* {other.fingerprint[:12]}"
    ):
        measure_divergence(low(tiny_model), other, token_set(), label="low")
    with pytest.raises(UserError, match="quantized already"):
        measure_divergence(tiny_model, low(tiny_model), token_set(), label="low")
    narrow = open_model(str(tiny_model.folder), Runtime(dtype="bfloat16"))
    with pytest.raises(UserError, match="computed in float32, float in bfloat16"):
        measure_divergence(low(tiny_model), narrow, token_set(), label="low")


def test_progress_ends_at_its_total(tiny_model: Model):
    calls: list[tuple[str, int, int]] = []
    measure_divergence(tiny_model, tiny_model, token_set(2), label="x", progress=lambda *call: calls.append(call))
    assert calls == [("divergence x", done, 3) for done in range(4)]


GROWTH = """
from types import SimpleNamespace

from qarat.stages.measure.divergence import _compare

head = torch.randn(1, 49_152)
model = SimpleNamespace(logits=lambda states: states @ head)
before = peak()
_compare((model, model), (torch.randn(4, 512, 1),) * 2, SimpleNamespace(wanted=torch.ones(4, 512, dtype=torch.long)))
print(peak() - before)
"""


def test_the_logits_of_few_tokens_are_in_memory_at_once(printed_by: Callable[..., list[int]]):
    """All tokens' would be 800 MB in float64; more than that did malloc keep where results lay in between."""
    [grown] = printed_by(GROWTH)
    assert grown < 400

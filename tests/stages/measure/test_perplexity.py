import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.model.attention import transformers_attention
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.tokens import NOTHING, TokenSet
from qarat.stages.measure.perplexity import ROWS, measure_perplexity, window_nats
from qarat.stages.quantize import quantize
from qarat.testing import tiny_checkpoint
from qarat.values.plans import assign
from qarat.values.records.files import encode_record
from qarat.values.records.scores import paired_difference

LENGTH = 24
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied": {"tied": True},
    "mistral-sliding": {"architecture": "mistral", "sliding_window": 8},
    "qwen2": {"architecture": "qwen2"},
    "qwen3": {"architecture": "qwen3"},
    "gemma2": {"architecture": "gemma2", "sliding_window": 8, "attn_logit_softcapping": 2.0},
    "gemma3": {"architecture": "gemma3_text", "sliding_window": 8},
    "opt": {"architecture": "opt"},
}


def token_set(windows: int = 7, length: int = LENGTH, seed: int = 8) -> TokenSet:
    ids = torch.randint(2, 98, (windows, length), generator=torch.Generator().manual_seed(seed))
    sources = tuple(f"text {i // 2}" for i in range(windows))
    return TokenSet("report", f"windows-{length}-nobos", ids, sources, ("0" * 64,), ("text",))


# ---------------------------------------------------------------- what is measured


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_transformers_own_loss(variant: str, tmp_path: Path):
    folder, tokens = tiny_checkpoint(tmp_path, **VARIANTS[variant]), token_set()
    evaluation = measure_perplexity(open_model(str(folder)), tokens, label="float")
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=transformers_attention(AutoConfig.from_pretrained(folder))
    )
    with torch.no_grad():
        losses = [float(model(ids[None], labels=ids[None]).loss) for ids in tokens.windows]
    assert evaluation.predicted == (LENGTH - 1,) * 7
    assert evaluation.nats == pytest.approx([loss * (LENGTH - 1) for loss in losses], rel=1e-6)
    assert evaluation.loss == pytest.approx(sum(losses) / 7, rel=1e-6)
    assert evaluation.perplexity == pytest.approx(math.exp(sum(losses) / 7), rel=1e-5)


def test_it_is_transformers_own_loss_on_a_real_model(stories260k: Path):
    model = open_model(str(stories260k))
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
    tokens = TokenSet("report", "windows-n-bos", ids, ("text",), ("0" * 64,), ("text",))  # type: ignore[arg-type]
    whole: Any = AutoModelForCausalLM.from_pretrained(stories260k, dtype=torch.float32)
    with torch.no_grad():
        expected = float(whole(ids, labels=ids).loss)
    assert measure_perplexity(model, tokens, label="float").loss == pytest.approx(expected, rel=1e-6)
    assert expected < 1.5  # it knows stories


def test_window_nats_by_hand(tiny_model: Model):
    hidden = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    ids = token_set(2, 5).windows
    (targets,) = token_set(2, 5).target_batches(64)
    found = window_nats(tiny_model, hidden, targets)
    assert (found.dtype, found.shape) == (torch.float64, (2,))
    for w in range(2):
        logits = tiny_model.logits(hidden[w]).double()
        by_hand = -sum(float(logits[t].log_softmax(-1)[ids[w, t + 1]]) for t in range(4))
        assert float(found[w]) == pytest.approx(by_hand, rel=1e-6)


def test_a_long_window_is_the_sum_of_its_tokens(tiny_model: Model):
    length = 2 * ROWS + 3
    hidden = torch.randn(1, length, 32, generator=torch.Generator().manual_seed(1))
    targets = token_set(1, length).windows.clone()
    targets[0, ::3] = NOTHING
    scored = targets[0] != NOTHING
    expected = torch.nn.functional.cross_entropy(tiny_model.logits(hidden[0, scored]).double(), targets[0, scored])
    assert float(window_nats(tiny_model, hidden, targets)[0]) == pytest.approx(float(expected) * int(scored.sum()))


GROWTH = """
from types import SimpleNamespace

from qarat.stages.measure.perplexity import window_nats

head = torch.randn(1, 49_152)
model = SimpleNamespace(logits=lambda states: states @ head)
before = peak()
window_nats(model, torch.randn(4, 2048, 1), torch.ones(4, 2048, dtype=torch.long))
print(peak() - before)
"""


def test_the_logits_of_few_tokens_are_in_memory_at_once(printed_by: Callable[..., list[int]]):
    """A window's would be 800 MB, with their logarithms."""
    [grown] = printed_by(GROWTH)
    assert grown < 200


def test_what_the_record_says(tiny_model: Model):
    tokens = token_set(3)
    evaluation = measure_perplexity(tiny_model, tokens, label="naive", plan="abc")
    assert (evaluation.label, evaluation.plan, evaluation.sources) == ("naive", "abc", tokens.sources)
    assert evaluation.provenance == tiny_model.provenance(tokens.fingerprint, tokens.convention)
    assert evaluation.unit == "token"
    assert b"unit" not in encode_record(evaluation)  # records from before there were other units keep their hash


# ---------------------------------------------------------------- what may not change it


def test_batch_size_and_memory_change_nothing(tiny_llama: Path):
    def nats(windows: int, memory: int) -> tuple[float, ...]:
        model = open_model(str(tiny_llama), Runtime(batch_tokens=windows * LENGTH, memory=memory))
        return measure_perplexity(model, token_set(), label="float").nats

    whole = nats(64, 1 << 30)
    assert nats(64, 1) == whole
    for windows in (1, 2, 3):
        assert nats(windows, 1 << 30) == pytest.approx(whole, rel=1e-6)


def test_identical_models_differ_by_exactly_nothing(tiny_llama: Path):
    models = [open_model(str(tiny_llama)) for _ in range(2)]
    plan = assign(models[0].fingerprint, 32, models[0].sites(), "float")
    models.append(quantize(models[0], plan))
    first, *others = (measure_perplexity(m, token_set(), label="x") for m in models)
    for other in others:
        difference = paired_difference(other, first)
        assert (difference.nats, difference.standard_error, difference.clusters) == (0.0, 0.0, 4)


def test_a_quantized_model_differs(tiny_model: Model):
    plan = assign(tiny_model.fingerprint, 32, tiny_model.sites(), "w=int3/channel")
    low = measure_perplexity(quantize(tiny_model, plan), token_set(), label="low")
    float_ = measure_perplexity(tiny_model, token_set(), label="float")
    difference = paired_difference(low, float_)
    assert difference.nats == pytest.approx(low.loss - float_.loss)
    assert difference.nats != 0
    assert difference.standard_error > 0


# ---------------------------------------------------------------- NaN


def test_nan_in_the_weights_is_refused_by_name(tmp_path: Path):
    folder = tiny_checkpoint(tmp_path)
    state = load_file(folder / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.weight: 1 of 2048 values are NaN or Inf"):
        measure_perplexity(open_model(str(folder)), token_set(), label="float")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("batch", [1, 64])
def test_a_loss_that_is_no_number_names_window_and_source(tiny_llama: Path, value: float, batch: int):
    model = open_model(str(tiny_llama), Runtime(batch_tokens=batch * LENGTH))
    windows = token_set().windows
    fifth = model.embed(windows)[5, 3].clone()  # what its token looks like at the entrance

    class Broken(nn.Module):
        def forward(self, hidden: Tensor, **_: object) -> Tensor:
            bad = (hidden == fifth).all(-1, keepdim=True)
            return torch.where(bad, value, hidden)

    elsewhere = (windows == windows[5, 3]).any(1).nonzero().flatten().tolist()
    with pytest.raises(UserError, match=rf"plan: the loss of window {elsewhere[0]} \(text {elsewhere[0] // 2}\) is "):
        measure_perplexity(model.with_blocks(lambda _: Broken()), token_set(), label="plan")


def test_progress_ends_at_its_total(tiny_model: Model):
    calls: list[tuple[str, int, int]] = []
    measure_perplexity(tiny_model, token_set(2), label="float", progress=lambda *call: calls.append(call))
    assert calls == [("evaluate float", done, 3) for done in range(4)]

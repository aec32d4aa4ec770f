"""An FP8 cache of ours in real vLLM on a CPU: that it is taken, under our scales, and what is computed with it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

import vllm

from qarat.bundled import run_engine
from qarat.model.layers import QuantCache
from qarat.model.model import Model
from qarat.stages.read_back.readback import logits_of
from qarat.values.formats import FORMATS
from qarat.values.roles import CACHES

if "avx512f" not in Path("/proc/cpuinfo").read_text():
    pytest.skip("vLLM's FP8 cache needs AVX-512 or AMX on a CPU", allow_module_level=True)

POSITIVE = torch.tensor([v for v in FORMATS["e4m3"].values if v >= 0])


class TowardsZero(QuantCache):
    """A cache that rounds as vLLM's CPU kernel does (0.32): numbers between two of the table take the smaller one."""

    def read(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.scales[name].scale
        index = torch.searchsorted(POSITIVE, (x / scale).abs().contiguous(), right=True) - 1
        low = POSITIVE[index].copysign(x) * scale
        return low, low


def seen_caches(model: Any) -> list[tuple[str, float, float]]:
    modules = (m for _, m in model.named_modules() if hasattr(m, "_k_scale"))
    return [(m.kv_cache_dtype, float(m._k_scale), float(m._v_scale)) for m in modules]


def label_logits(model: Model, ids: Tensor) -> Tensor:
    return logits_of(model, ids).log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)


def test_vllm_takes_the_cache_under_our_scales_and_rounds_towards_zero(exporting: Any) -> None:
    rules = [("*_proj", "float"), ("0.down", "w=int8/channel a=int8/token"), ("*_cache", "c=e4m3/tensor/static")]
    export = exporting("w=int8/channel a=int8/token", *rules)
    llm = run_engine.load_vllm(str(export.folder), 48, "float32")
    caches: list[Any] = [export.model.block(i).get_submodule("self_attn.kv_cache") for i in range(export.model.blocks)]
    ours = [("fp8", *(float(cache.scales[name].scale) for name in CACHES)) for cache in caches]
    assert llm.apply_model(seen_caches)[0] == ours
    ids = export.tokens.windows
    answers = llm.generate(
        [{"prompt_token_ids": window} for window in ids.tolist()],
        vllm.SamplingParams(max_tokens=1, prompt_logprobs=1),
        use_tqdm=False,
    )
    pairs = zip(answers, ids.tolist(), strict=True)
    rows = [zip(answer.prompt_logprobs[1:], window[1:], strict=True) for answer, window in pairs]
    theirs = torch.tensor([[place[token].logprob for place, token in row] for row in rows])
    nearest = label_logits(export.model, ids)
    for index, cache in enumerate(caches):
        export.model.block(index).self_attn.kv_cache = TowardsZero(cache.schemes, cache.scales)
    towards_zero = label_logits(export.model, ids)
    # A last bit of a key now and then ends in another code, in either: so medians are compared.
    assert (theirs - towards_zero).abs().median() < 1e-5
    assert (theirs - nearest).abs().median() > 1e-2

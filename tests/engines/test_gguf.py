"""llama.cpp with the GGUF files we write: the same tokens, the same logits, and losses that the types explain."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from qarat.ground.runtime import Runtime
from qarat.jobs.live import Live
from qarat.jobs.verify import AgainstRun, verify
from qarat.model.layers import QuantLinear
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.model.tokens import TokenSet
from qarat.stages.export.base import export_model
from qarat.stages.export.gguf.types import tensor_name
from qarat.stages.quantize import quantize
from qarat.testing import tiny_checkpoint
from qarat.values.engines import FILE_ENGINES
from qarat.values.parsing import parse_scheme
from qarat.values.plans import assign
from qarat.values.schemes import LinearScheme

llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: make test-engines")

WINDOWS = 8
F32 = 0  # GGML's number: keys and values are kept as they are
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied": {"tied": True},
    "llama-biased": {"attention_bias": True, "mlp_bias": True},
    "llama-rope3": {"rope_parameters": LLAMA3},
    "llama-linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "llama-mha": {"kv_heads": 4},
    "mistral": {"architecture": "mistral", "sliding_window": None},
    "qwen2": {"architecture": "qwen2"},
    "qwen3": {"architecture": "qwen3"},
}


def opened(folder: Path, length: int) -> Any:
    path = str(folder / "model.gguf")
    sizes = dict(n_ctx=length, n_batch=length, n_ubatch=length, n_threads=1, n_threads_batch=1)
    return llama_cpp.Llama(path, logits_all=True, verbose=False, type_k=F32, type_v=F32, **sizes)


def scores(engine: Any, windows: Tensor) -> Tensor:
    """Logits, (windows, length, vocabulary)."""
    found: list[Tensor] = []
    for window in windows.tolist():
        engine.reset()
        engine.eval(window)
        found.append(torch.from_numpy(np.array(engine.scores[: len(window)])))
    return torch.stack(found)


def loss(logits: Tensor, windows: Tensor) -> float:
    return cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten()).item()


def exported(model: Model, folder: Path, low: str, *rules: tuple[str, str]) -> Path:
    plan = assign(model.fingerprint, model.source_bits, model.sites(), low, rules)
    export_model(quantize(model, plan), plan, folder, "gguf")
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_float_file_computes_the_float_model(
    name: str, tmp_path: Path, walked: Callable[..., Tensor], with_merge: Callable[[Path], Path]
) -> None:
    tiny = tiny_checkpoint(tmp_path / "tiny", hidden=64, intermediate=96, **FAMILIES[name])
    model = open_model(str(with_merge(tiny)))
    windows = torch.randint(2, 98, (2, 40), generator=torch.Generator().manual_seed(1))
    engine = opened(exported(model, tmp_path / "out", "w=int8/channel", ("*_proj", "float")), 64)
    expected = walked(model, windows)
    torch.testing.assert_close(scores(engine, windows), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@pytest.fixture(scope="module")
def report() -> tuple[Model, Tensor]:
    """The bundled model and a few windows of the report tokens."""
    model = open_model("py-128")
    _, _, report = load_token_sets(model, report_samples=WINDOWS)
    return model, report.windows


TEXTS = [
    "def f(x):\n    # it's 12345 naïve 🚀 tests\n\treturn x['a'] + 'don''t'   \n\n\nclass A:  pass\n",
    "  leading, trailing  ",
    "1 22 333 4444 55555 x1y2 we'll I'M ΑΒΓ ½ ²³ \u00a0nbsp \u3000wide",
    "\r\n\r\n\t \t<|bos|>",
]


def test_tokens(report: tuple[Model, Tensor], tmp_path: Path) -> None:
    model, windows = report
    engine = opened(exported(model, tmp_path / "out", "w=int8/channel"), 64)
    for text in [*TEXTS, *model.tokenizer.batch_decode(windows[:, 1:])]:
        ours = model.tokenizer(text).input_ids
        assert engine.tokenize(text.encode(), add_bos=True, special=True) == ours, text
    assert engine.token_bos() == model.tokenizer.bos_token_id


@pytest.mark.parametrize("low", ["w=int8/channel", "w=int4/g32"])
def test_loss_is_what_the_types_explain(
    report: tuple[Model, Tensor], low: str, tmp_path: Path, walked: Callable[..., Tensor]
) -> None:
    model, windows = report
    plain = loss(walked(model, windows), windows)
    folder = exported(model, tmp_path / "out", low, ("1.down", "float"), ("0.down", "float"))
    measured = loss(scores(opened(folder, model.length), windows), windows)
    simulated = loss(walked(simulation(model, folder), windows), windows)
    print(f"{low}: float {plain:.4f}, llama.cpp {measured:.4f}, simulated {simulated:.4f}")
    assert abs(measured - simulated) < 2e-3 + 0.1 * abs(simulated - plain)


def test_a_file_in_the_models_own_dtype_loses_next_to_nothing(
    report: tuple[Model, Tensor], tmp_path: Path, walked: Callable[..., Tensor]
) -> None:
    model, windows = report
    plain = loss(walked(model, windows), windows)
    folder = exported(model, tmp_path / "out", "w=int8/channel", ("*_proj", "float"))
    measured = loss(scores(opened(folder, model.length), windows), windows)
    print(f"BF16: float {plain:.5f}, llama.cpp {measured:.5f}")
    assert measured == pytest.approx(plain, abs=2e-3)  # llama.cpp rounds inputs of bfloat16 weights to bfloat16


def simulation(model: Model, folder: Path) -> Model:
    """The model with the file's weights, and inputs rounded as in llama.cpp: blocks of 32, absmax, float16 scales."""
    from gguf import GGUFReader, quants

    tensors = {t.name: quants.dequantize(t.data, t.tensor_type) for t in GGUFReader(folder / "model.gguf").tensors}
    kinds = {t.name: t.tensor_type.name for t in GGUFReader(folder / "model.gguf").tensors}
    inputs = parse_scheme("a=int8/g32/scale-float16")
    assert isinstance(inputs, LinearScheme)
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}

    def block(index: int) -> torch.nn.Module:
        found = model.load_float_block(index)
        for site in model.sites():
            if site.block != index or site.kind != "projection":
                continue
            name = tensor_name(f"{site.name}.weight")
            if kinds[name].startswith("Q"):
                value = torch.tensor(tensors[name])
                if site.leaf in heads:  # back from pairs to halves
                    value = value.unflatten(0, (heads[site.leaf], -1, 2)).transpose(1, 2).reshape(value.shape)
                inner = site.name.removeprefix(f"{model.family.blocks}.{index}.")
                parent, _, leaf = inner.rpartition(".")
                setattr(found.get_submodule(parent), leaf, QuantLinear(value, None, inputs, None))
        return found

    return model.with_blocks(block)


def test_verify_says_what_ran_and_what_it_lost(tmp_path: Path, with_merge: Callable[[Path], Path]) -> None:
    tiny = tiny_checkpoint(tmp_path / "tiny", hidden=64, intermediate=96)
    model = open_model(str(with_merge(tiny)))
    rules = (("0.down", "float"), ("1.o", "w=int4/g32"))
    plan = assign(model.fingerprint, model.source_bits, model.sites(), "w=int8/channel", rules)
    quantized = quantize(model, plan)
    export_model(quantized, plan, tmp_path / "out", "gguf")
    ids = torch.randint(2, 98, (4, 24), generator=torch.Generator().manual_seed(3))
    report = TokenSet("report", "windows-24-nobos", ids, ("a", "b", "c", "d"), ("0" * 64,), ("text",))
    live = Live("llama.cpp", lambda _: report, Runtime())
    [run] = verify(tmp_path / "out", live=live, against=AgainstRun(quantized, plan, report)).live
    assert run.version in FILE_ENGINES["llama.cpp"].ran
    assert Counter((module.scheme, module.kernel) for module in run.modules) == {
        ("Q8_0", "Q8_0, inputs in Q8_0"): 12,
        ("Q4_0", "Q4_0, inputs in Q8_0"): 1,
        ("float", "F32, inputs in F32"): 1,
    }
    assert all(module.agrees and module.expected for module in run.modules)
    assert abs(run.losses[0].nats - run.losses[0].ours) < 0.1  # inputs and one weight are rounded otherwise

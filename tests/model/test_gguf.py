"""GGUF files as input: what is opened is what transformers reads in them, and what was written."""

import gc
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from qarat.ground.errors import UserError
from qarat.model.attention import transformers_attention
from qarat.model.finding import find_checkpoint
from qarat.model.gguf.config import ROPE
from qarat.model.gguf.file import GgufFile
from qarat.model.gguf.tokenizer import build_tokenizer
from qarat.model.model import Model
from qarat.model.native import read_native, write_native
from qarat.model.opening import open_model, read_checkpoint
from qarat.stages.export.base import export_model
from qarat.stages.quantize import quantize
from qarat.testing import tiny_checkpoint
from qarat.values.plans import assign

gguf = pytest.importorskip("gguf", reason="needs gguf: pip install qarat[gguf]")

TOKENS = torch.arange(24).reshape(2, 12) + 3
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def logits(model: Model) -> torch.Tensor:
    hidden = model.embed(TOKENS)
    for index, block in model.walk():
        hidden = model.run_block(index, block, hidden)
    return model.logits(hidden)


@pytest.fixture
def write(tmp_path: Path, with_merge: Callable[[Path], Path]) -> Callable[..., tuple[Model, Path]]:
    """A tiny float model, and the GGUF file that it was exported to."""

    def written(low: str = "float", **config: Any) -> tuple[Model, Path]:
        sizes: dict[str, Any] = dict(hidden=64, intermediate=96) | config
        home = tmp_path / f"written-{len(list(tmp_path.iterdir()))}"
        model = open_model(str(with_merge(tiny_checkpoint(home / "tiny", **sizes))))
        plan = assign(model.fingerprint, model.source_bits, model.sites(), low, ())
        export_model(quantize(model, plan), plan, home / "out", "gguf")
        return model, home / "out" / "model.gguf"

    return written


Tensors = dict[str, tuple[np.ndarray, str]]


def rewrite(
    path: Path, out: Path, changes: dict[str, Any], tensors: Tensors | None = None, *, keep: bool = True
) -> Path:
    """A copy of a file with other metadata (None leaves a key out), and other or further tensors with their types.

    Without ``keep``, the file's own tensors are left out.
    """
    reader = gguf.GGUFReader(path)
    values = {name: (f.contents(), f.types) for name, f in reader.fields.items() if not name.startswith("GGUF.")}
    architecture = changes.pop("general.architecture", values.pop("general.architecture")[0])
    writer = gguf.GGUFWriter(out, architecture)
    kinds = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, str: gguf.GGUFValueType.STRING}
    kinds |= {float: gguf.GGUFValueType.FLOAT32, list: gguf.GGUFValueType.ARRAY}
    for name, (value, types) in values.items():
        if name not in changes:
            writer.add_key_value(name, value, types[0], *types[1:])
    for name, value in changes.items():
        if value is not None:
            inner = [kinds[type(value[0])]] if isinstance(value, list) else []
            writer.add_key_value(name, value, kinds[type(value)], *inner)
    held: Tensors = {tensor.name: (tensor.data, tensor.tensor_type.name) for tensor in reader.tensors if keep}
    for name, (value, kind) in (held | (tensors or {})).items():
        writer.add_tensor(name, value, raw_dtype=None if kind == "F32" else gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_what_was_written_in_float_comes_back(write: Callable[..., Any], architecture: str, tied: bool) -> None:
    model, path = write(architecture=architecture, tied=tied, sliding_window=None)
    opened = open_model(str(path))
    assert logits(opened).equal(logits(model))
    kept = "mistral" if architecture == "mistral" else architecture
    assert opened.config.model_type in (kept, "llama")
    assert getattr(opened.config, "sliding_window", None) is None
    assert opened.config.tie_word_embeddings == tied
    text = "Of the two, the other 12."
    assert opened.tokenizer(text).input_ids == model.tokenizer(text).input_ids
    assert opened.tokenizer.decode(opened.tokenizer(text).input_ids) == model.tokenizer.decode(
        model.tokenizer(text).input_ids
    )


LOW = [f"w={kind}/g32/scale-float16" for kind in ("int8", "int4", "int4/asymmetric", "int5", "int5/asymmetric")]


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_quantized_tensors_are_what_transformers_reads(write: Callable[..., Any], low: str, architecture: str) -> None:
    _, path = write(low, architecture=architecture)
    opened = open_model(str(path))
    theirs: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    state = {
        name: value.bfloat16().float() if "proj.weight" in name else value
        for name, value in theirs.state_dict().items()
    }
    assert opened.checkpoint.dtype == torch.bfloat16
    for name, value in opened.load_float_block(1).state_dict().items():
        assert value.equal(state[f"model.layers.1.{name}"]), name
    whole = AutoModelForCausalLM.from_config(theirs.config).eval()
    whole.load_state_dict(state)
    with torch.no_grad():
        assert logits(opened).equal(whole(TOKENS).logits)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_superblocks_are_what_gguf_says(write: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    _, path = write(hidden=256, intermediate=256, architecture="qwen2")
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    codes = np.random.default_rng(0).integers(0, 100, (256, 256 // elements * size), dtype=np.uint8)
    changed = rewrite(path, tmp_path / "k.gguf", {}, {"blk.0.ffn_down.weight": (codes, kind)})
    opened = open_model(str(changed))
    found = opened.load_float_block(0).state_dict()["mlp.down_proj.weight"]
    expected = gguf.dequantize(codes, gguf.GGMLQuantizationType[kind])
    assert found.equal(torch.tensor(expected).bfloat16().float())
    assert f"{kind} ({8 * size / elements:g} bits) × 1" in opened.checkpoint.source


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text"])
def test_gemma_is_read_as_it_was_written(write: Callable[..., Any], tmp_path: Path, architecture: str) -> None:
    model = open_model(str(tiny_checkpoint(tmp_path / "gemma", architecture=architecture, sliding_window=8, tied=True)))  # type: ignore[arg-type]
    config, name = model.config, architecture.removesuffix("_text")
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[name.upper()], model.blocks)
    weights = load_file(model.folder / "model.safetensors")
    values = {key: value.numpy() + ("norm" in key) for key, value in weights.items()}  # by what they multiply with
    named = {table.get_name(key, (".weight",)): (value, "F32") for key, value in values.items()}
    sizes = {
        "block_count": model.blocks,
        "context_length": model.length,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.sliding_window": 8,
        "rope.freq_base": 1e6 if name == "gemma3" else 1e4,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }
    changes = {"general.architecture": name} | {f"{name}.{key}": value for key, value in sizes.items()}
    path = rewrite(write()[1], tmp_path / "gemma.gguf", changes, named, keep=False)
    opened = open_model(str(path))
    theirs: Any = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation=transformers_attention(config)
    )
    opened.config.query_pre_attn_scalar = theirs.config.query_pre_attn_scalar  # that of 2B, which transformers takes
    assert opened.family.norm_offset == 1
    reopened = Model(opened.checkpoint, opened.runtime)
    with torch.no_grad():
        assert logits(reopened).equal(theirs.eval()(TOKENS).logits)
    assert read_checkpoint(path).config.query_pre_attn_scalar == config.head_dim


def test_llama3_frequencies_are_known_by_their_factors(write: Callable[..., Any], tmp_path: Path) -> None:
    model, path = write(
        rope_parameters=LLAMA3 | {"original_max_position_embeddings": 8192}, length=131072, hidden=256, heads=2
    )
    opened = open_model(str(path))
    assert opened.config.rope_parameters["factor"] == 8
    assert logits(opened).equal(logits(model))
    for factors, message in ((np.linspace(1, 5, 64), "not those of LLaMA 3"), (np.arange(3), "describes no model")):
        held = {ROPE: (factors.astype(np.float32), "F32")}
        other = rewrite(write(hidden=256, heads=2)[1], tmp_path / f"{len(factors)}.gguf", {}, held)
        with pytest.raises(UserError, match=message):
            open_model(str(other))


def test_scaled_positions_are_read_as_they_are_written_here_and_by_llama_cpp(
    write: Callable[..., Any], tmp_path: Path
) -> None:
    model, path = write(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0})
    assert logits(open_model(str(path))).equal(logits(model))
    plain, unscaled = write()
    for number, changes in enumerate(
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, {"llama.rope.scale_linear": 4.0})
    ):
        scaled = open_model(str(rewrite(unscaled, tmp_path / f"scaled-{number}.gguf", changes)))
        assert scaled.config.rope_parameters["factor"] == 4
    for number, changes in enumerate(({"llama.rope.scaling.type": "linear"}, {"llama.rope.scaling.type": "none"})):
        opened = open_model(str(rewrite(unscaled, tmp_path / f"plain-{number}.gguf", changes)))
        assert logits(opened).equal(logits(plain))


def test_sentencepiece_pieces_are_merged_by_their_scores(
    write: Callable[..., Any], tmp_path: Path, stories260k: Path
) -> None:
    theirs = open_model(str(stories260k))
    data: Any = theirs.tokenizer
    description = json.loads(data.backend_tokenizer.to_str())
    tokens = [token for token, _ in sorted(description["model"]["vocab"].items(), key=lambda pair: pair[1])]
    # What was merged first has the highest score.
    first: dict[str, float] = {}
    for rank, pair in enumerate(description["model"]["merges"]):
        first.setdefault("".join(pair), -float(rank + 1))
    scores = [first.get(token, -1e6) for token in tokens]
    kinds = [2 if i == 0 else 3 if i < 3 else 6 if token.startswith("<0x") else 1 for i, token in enumerate(tokens)]
    changes: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }
    opened = open_model(str(rewrite(write(vocabulary=512)[1], tmp_path / "spm.gguf", changes)))
    for text in ("Once upon a time, there was a girl.", "  two  spaces\nand Ünicode — 12", "a"):
        ids = opened.tokenizer(text).input_ids
        assert ids == theirs.tokenizer(text).input_ids
        assert opened.tokenizer.decode(ids) == theirs.tokenizer.decode(ids)


def test_pre_tokenizers_cut_as_their_models_do() -> None:
    def cuts(pre: str, text: str) -> list[str]:
        values = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": False}
        values |= {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.merges": []}
        backend: Tokenizer = build_tokenizer(GgufFile(Path("x.gguf"), values, {}), 8).backend_tokenizer
        return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]

    text = "it's 1234 Big\n\nX"
    assert cuts("gpt-2", text) == ["it", "'s", "Ġ1234", "ĠBig", "Ċ", "Ċ", "X"]
    assert cuts("smollm", text) == ["it", "'s", "Ġ", "1", "2", "3", "4", "ĠBig", "Ċ", "Ċ", "X"]
    assert cuts("llama-bpe", text) == ["it", "'s", "Ġ", "123", "4", "ĠBig", "ĊĊ", "X"]
    assert cuts("qwen2", text) == ["it", "'s", "Ġ", "1", "2", "3", "4", "ĠBig", "ĊĊ", "X"]
    assert cuts("tekken", text) == ["it", "'s", "Ġ", "1", "2", "3", "4", "ĠBig", "ĊĊ", "X"]
    assert cuts("tekken", "CamelCase") == ["Camel", "Case"]


@pytest.mark.parametrize(("pre", "pieces"), [("llama-bpe", ["abc"]), ("gpt-2", ["a", "b", "c"])])
def test_words_of_the_vocabulary_are_whole_where_llama_cpp_takes_them_whole(pre: str, pieces: list[str]) -> None:
    values = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": False}
    values |= {"tokenizer.ggml.tokens": ["a", "b", "c", "abc"], "tokenizer.ggml.merges": []}
    tokenizer = build_tokenizer(GgufFile(Path("x.gguf"), values, {}), 8)
    assert tokenizer.tokenize("abc") == pieces


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"general.architecture": "falcon"},
            "unsupported architecture: falcon; supported: gemma2, gemma3, llama, qwen2, qwen3",
        ),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"split.count": 3}, "one of 3 files of a model; put them together first"),
        ({"llama.block_count": None}, "does not say: block_count"),
        ({"llama.block_count": 10**6}, "describes 1000000 blocks"),
        ({"llama.rope.scaling.type": "yarn"}, "type yarn is not supported"),
        ({"llama.attention.head_count": 0}, "describes no model: ZeroDivisionError"),
        ({"llama.attention.head_count": [4, 4]}, "describes no model: TypeError"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "tokenizer is damaged"),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None}, "tokenizer is damaged"),
        ({"llama.rope.dimension_count": 8}, "a part of every head"),
        ({"tokenizer.ggml.pre": "whale"}, "cuts text as 'whale' does, which is not known here; known: gpt-2"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer of kind bert"),
        ({"tokenizer.ggml.tokens": ["a"]}, "tokenizer is damaged"),
        ({"llama.feed_forward_length": 32}, "config and weights disagree"),
    ],
)
def test_what_cannot_be_read_is_refused(
    write: Callable[..., Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    _, path = write()
    with pytest.raises(UserError, match=message):
        open_model(str(rewrite(path, tmp_path / "changed.gguf", dict(changes))))


def test_a_type_that_is_not_read_is_refused_by_name(write: Callable[..., Any]) -> None:
    _, path = write("w=mxfp4")
    with pytest.raises(UserError, match=r"blk\.0\.attn_q\.weight: MXFP4"):
        open_model(str(path))


@pytest.mark.parametrize("kept", [3, 20, 2000, 0.5, 0.99])
def test_a_file_cut_short_is_refused(write: Callable[..., Any], tmp_path: Path, kept: float) -> None:
    _, path = write()
    whole = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(kept if kept > 1 else kept * len(whole))])
    with pytest.raises(UserError, match=r"cut\.gguf is (no GGUF file|cut short or damaged)"):
        open_model(str(cut))


def test_a_big_endian_file_is_refused(write: Callable[..., Any], tmp_path: Path) -> None:
    big = tmp_path / "big.gguf"
    writer = gguf.GGUFWriter(big, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="big-endian"):
        open_model(str(big))


def test_without_the_package_the_extra_is_named(write: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = write()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'qarat\[gguf\]'"):
        open_model(str(path))


def test_found_in_a_folder(write: Callable[..., Any], tmp_path: Path) -> None:
    _, path = write()
    home = tmp_path / "home"
    home.mkdir()
    with pytest.raises(UserError, match=r"no config\.json.*or a \*\.gguf file"):
        find_checkpoint(str(home))
    shutil.copy(path, home / "one.gguf")
    assert find_checkpoint(str(home)) == home / "one.gguf"
    shutil.copy(path, home / "two.gguf")
    with pytest.raises(UserError, match=r"holds 2 GGUF files; give one: one\.gguf, two\.gguf"):
        find_checkpoint(str(home))
    with pytest.raises(UserError, match=r"no such file: homme/one\.gguf"):
        find_checkpoint("homme/one.gguf")
    with pytest.raises(UserError, match="did you mean smollm2-135m"):
        find_checkpoint("smollm2-135")
    (home / "config.json").write_text("{}")
    (home / "two.gguf").unlink()
    assert find_checkpoint(str(home)) == home / "one.gguf"  # nothing else holds weights
    other = tmp_path / "model.bin"
    other.write_bytes(b"x")
    with pytest.raises(UserError, match="is a file, not a folder"):
        find_checkpoint(str(other))


def test_config_and_tokenizer_go_away_with_the_checkpoint(write: Callable[..., Any]) -> None:
    _, path = write()
    checkpoint = read_checkpoint(path)
    assert checkpoint.path == path
    assert (checkpoint.folder / "config.json").is_file()
    assert (checkpoint.folder / "tokenizer.json").is_file()
    folder = checkpoint.folder
    del checkpoint
    gc.collect()
    assert not folder.exists()


def test_records_say_what_tensors_were_stored_in(write: Callable[..., Any], tmp_path: Path) -> None:
    model, path = write("w=int4/g32/scale-float16")
    changes = {"general.name": "Tiny", "general.license": "mit"}
    named = open_model(str(rewrite(path, tmp_path / "named.gguf", changes)))
    assert named.checkpoint.stored == ("Q4_0", 4.5)
    source = named.provenance("tokens", "windows-8-bos").source
    plan = assign(named.fingerprint, named.source_bits, named.sites(), "w=int8/channel", ())
    for number in range(2):  # written of a model that was read from a GGUF, it has its name, and the same bytes
        export_model(quantize(named, plan), plan, tmp_path / f"again-{number}", "gguf")
    files = [tmp_path / f"again-{number}" / "model.gguf" for number in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()
    write_native(quantize(named, plan), plan, tmp_path / "native")
    assert read_native(tmp_path / "native")[0].checkpoint.source == source
    assert source.startswith("Tiny (mit), tensors of a GGUF: Q4_0 (4.5 bits) × 14, ")
    assert model.checkpoint.stored is None
    assert model.provenance("tokens", "windows-8-bos").source == ""

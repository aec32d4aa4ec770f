"""The tokenizer in a GGUF file, as the ``tokenizers`` library runs it.

llama.cpp knows by name how a byte-level BPE cuts text before it merges bytes; the pattern itself is not in the file. A
wrong one gives other tokens without a word, and losses of another model. So the name must be one of those listed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from qarat.ground.errors import UserError
from qarat.model.gguf.file import GgufFile

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {  # of a Split in front of a ByteLevel without its own pattern, as the models' own tokenizer.json have them
    "llama-bpe": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_REST}",
    "qwen2": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_REST}",
    "tekken": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""Name of a pre-tokenizer to its pattern."""
DIGITS_APART = "smollm"
"""The name of GPT-2's own pattern behind digits that stand alone."""
GPT2 = "gpt-2"
"""The name of GPT-2's own pattern, which the tokenizers library calls ByteLevel with ``use_regex``."""
TAKEN_WHOLE = ("llama-bpe", "tekken")
"""Names of tokenizers that take a word of the vocabulary whole, whatever merges would make of it; and whose texts begin
with BOS where the file does not say."""
_CONTROL, _USER_DEFINED = 3, 4  # gguf.TokenType
_NAMES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def build_tokenizer(file: GgufFile, length: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a file.

    Args:
        file: That has one.
        length: Tokens that the model takes at once.

    Raises:
        UserError: No tokenizer, a damaged one, or one of a kind or pre-tokenizer that is not supported.
    """
    values = {k.removeprefix("tokenizer."): v for k, v in file.values.items() if k.startswith("tokenizer.")}
    kind, pre = values.get("ggml.model"), values.get("ggml.pre", "default")
    tokens: list[str] = list(values.get("ggml.tokens", ()))
    try:
        if kind == "gpt2":
            tokenizer, begin = _byte_level(file, tokens, values["ggml.merges"], pre), pre in TAKEN_WHOLE
        elif kind == "llama":
            # Pieces that stand for themselves meet text as it is written; old converters left low lines for spaces.
            kinds = values["ggml.token_type"]
            tokens = [t.replace("▁", " ") if k == _USER_DEFINED else t for t, k in zip(tokens, kinds, strict=True)]
            tokenizer, begin = _sentencepiece(tokens, values), True
        else:
            raise UserError(
                f"{file.path} has a tokenizer of kind {kind}; supported: gpt2 (byte-level BPE), llama (SPM)"
            )
        named = {
            name: tokens[values[f"ggml.{key}_token_id"]]
            for name, key in _NAMES.items()
            if f"ggml.{key}_token_id" in values
        }
        _add_special(tokenizer, tokens, values.get("ggml.token_type", (1,) * len(tokens)))
        if values.get("ggml.add_bos_token", begin):
            bos = named.setdefault("bos_token", tokens[1]) if kind == "llama" else named["bos_token"]  # as llama.cpp
            ids = [(bos, tokens.index(bos))]
            tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos} $B", ids)
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            model_max_length=length,
            chat_template=values.get("chat_template"),
            clean_up_tokenization_spaces=False,
            **named,
        )
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UserError(f"{file.path}: its tokenizer is damaged: {error!r}; fetch the file again") from error


def _byte_level(file: GgufFile, tokens: Sequence[str], merges: Sequence[str], pre: str) -> Tokenizer:
    """Byte-level BPE behind the pre-tokenizer of that name."""
    pairs = [(first, second) for first, _, second in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, pairs, ignore_merges=pre in TAKEN_WHOLE)
    )
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in PATTERNS)
    if pre in PATTERNS:
        split = pre_tokenizers.Split(Regex(PATTERNS[pre]), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
    elif pre == DIGITS_APART:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    elif pre == GPT2:
        tokenizer.pre_tokenizer = plain
    else:
        known = ", ".join((GPT2, DIGITS_APART, *PATTERNS))
        raise UserError(
            f"{file.path}: its tokenizer cuts text as {pre!r} does, which is not known here; known: {known}"
        )
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()  # llama.cpp leaves it out, Qwen's own tokenizer does not
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(tokens: Sequence[str], values: Mapping[str, Any]) -> Tokenizer:
    """SentencePiece's BPE: pieces with scores, bytes for what no piece holds, and spaces as low lines."""
    kinds, scores = values["ggml.token_type"], values["ggml.scores"]
    ids = {token: i for i, token in enumerate(tokens)}
    pieces = {token: score for token, score, kind in zip(tokens, scores, kinds, strict=True) if kind == 1}
    unknown = tokens[values["ggml.unknown_token_id"]] if "ggml.unknown_token_id" in values else None
    merges = generate_merges(ids, pieces)
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefixed = values.get("ggml.add_space_prefix", True)
    prepend = [normalizers.Prepend("▁")] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefixed else [])])
    return tokenizer


def _add_special(tokenizer: Tokenizer, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    """Tokens that stand for themselves wherever they are written, ahead of all merging."""
    whole = [(token, kind) for token, kind in zip(tokens, kinds, strict=True) if kind in (_CONTROL, _USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=kind == _CONTROL) for token, kind in whole])

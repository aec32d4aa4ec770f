"""The tokenizer in GGUF's words: byte-level BPE, with the name of a pre-tokenizer that llama.cpp implements.

llama.cpp does not run the pattern in tokenizer.json; it knows patterns by name, and a wrong name gives wrong tokens
without a word. So the pattern must be one of those listed here, literally, or the export is refused.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from qarat.ground.errors import UserError
from qarat.model.gguf.tokenizer import DIGITS_APART, GPT2, PATTERNS, TAKEN_WHOLE
from qarat.model.model import Model

if TYPE_CHECKING:
    from gguf import GGUFWriter


_NAMES = {pattern: name for name, pattern in PATTERNS.items()}
"""Pattern of a Split in front of a ByteLevel without its own to the name that llama.cpp has for it."""


def check_tokenizer(model: Model) -> None:
    """Check that llama.cpp can be told this tokenizer.

    Raises:
        UserError: If it is no byte-level BPE, or of a pattern that has no name here.
    """
    _pre_tokenizer(model)


def add_tokenizer(writer: GGUFWriter, model: Model) -> None:
    """Write tokens, kinds, merges and special ids.

    Args:
        writer: Not opened yet.
        model: The model.
    """
    from gguf import TokenType

    data = _description(model)
    pre = _pre_tokenizer(model)
    tokens = {index: token for token, index in data["model"]["vocab"].items()}
    kinds = dict.fromkeys(tokens, TokenType.NORMAL)
    for added in data["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    rows: int = model.config.vocab_size
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([tokens.get(index, f"[PAD{index}]") for index in range(rows)])
    writer.add_token_types([kinds.get(index, TokenType.UNUSED) for index in range(rows)])
    # A merge is a pair, or, in older files, the two with a space between.
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in data["model"]["merges"]])
    _add_special(writer, model)


def _add_special(writer: GGUFWriter, model: Model) -> None:
    """Ids of BOS, EOS, padding, and whether BOS begins a text; what a tokenizer lacks is said to be lacking."""
    tokenizer: Any = model.tokenizer  # whose ids transformers types as anything
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    if bos is not None:
        writer.add_bos_token_id(bos)
    if eos is not None:
        writer.add_eos_token_id(eos)
    if pad is not None:
        writer.add_pad_token_id(pad)
    text = tokenizer("a").input_ids
    writer.add_add_bos_token(bos is not None and text[:1] == [bos])
    writer.add_add_eos_token(eos is not None and text[-1:] == [eos])


def _description(model: Model) -> dict[str, Any]:
    """What tokenizer.json holds, as the tokenizers library read it.

    Raises:
        UserError: If the tokenizer is none of that library.
    """
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"the tokenizer in {model.path} has no tokenizer.json; {_REMEDY}")
    return json.loads(backend.to_str())


_REMEDY = "convert the model with llama.cpp's convert_hf_to_gguf.py and quantize it there (`format` llama-cpp)"


def _pre_tokenizer(model: Model) -> str:
    """Name of the pre-tokenizer.

    Raises:
        UserError: As `check_tokenizer`.
    """
    data = _description(model)
    kind, pre = data["model"]["type"], data.get("pre_tokenizer") or {}
    steps: list[dict[str, Any]] = pre.get("pretokenizers", [pre])
    if kind == "BPE" and not data["model"]["merges"]:
        raise UserError(f"the tokenizer in {model.path} has no merges, which llama.cpp does not load; {_REMEDY}")
    plain = kind == "BPE" and not data["model"].get("byte_fallback") and data.get("normalizer") in (None, _NFC)
    match [step.get("type") for step in steps]:
        case ["ByteLevel"] if plain and steps[0]["use_regex"] and not steps[0]["add_prefix_space"]:
            name = GPT2
        case ["Digits", "ByteLevel"] if plain and steps[0]["individual_digits"] and steps[1]["use_regex"]:
            name = DIGITS_APART
        case ["Split", "ByteLevel"] if plain and not steps[1]["use_regex"]:
            name = _NAMES.get(steps[0]["pattern"].get("Regex", ""), "")
        case _:
            raise UserError(f"the tokenizer in {model.path} is no byte-level BPE; {_REMEDY}")
    if not name:
        raise UserError(f"the tokenizer in {model.path} splits by a pattern without a name here; {_REMEDY}")
    if bool(data["model"].get("ignore_merges")) != (name in TAKEN_WHOLE):
        other = "takes words of its vocabulary whole" if data["model"].get("ignore_merges") else "merges every word"
        raise UserError(f"the tokenizer in {model.path} {other}, which llama.cpp's {name} does not; {_REMEDY}")
    return name


_NFC = {"type": "NFC"}
"""Qwen's normalizer; llama.cpp leaves it out as well."""

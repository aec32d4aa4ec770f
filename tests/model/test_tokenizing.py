"""The tokenizer that a folder has, whether it keeps text, and control tokens in a text."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast

from qarat.ground.errors import UserError
from qarat.model.checkpoints import Checkpoint
from qarat.model.texts import Document
from qarat.model.tokenizing import check_kept, count_controls
from qarat.model.tokens import make_token_set
from qarat.testing import tiny_checkpoint, tiny_tokenizer

CODE = "def f(x):\n    return 'a1' + x\n"
CLASSES = [
    "LlamaTokenizerFast",
    "LlamaTokenizer",
    "Qwen2Tokenizer",
    "GPT2Tokenizer",
    "PreTrainedTokenizerFast",
    "Nosuch",
]


@pytest.mark.parametrize("declared", CLASSES)
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "opt"])
def test_tokenizer_json_decides_whatever_class_is_named(architecture: Any, declared: str, tmp_path: Path):
    folder = tiny_checkpoint(tmp_path / "model", architecture=architecture)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": declared}))
    tokenizer = Checkpoint(folder).tokenizer
    assert tokenizer.encode(CODE) == Tokenizer.from_file(str(folder / "tokenizer.json")).encode(CODE).ids
    assert tokenizer.decode(tokenizer.encode(CODE, add_special_tokens=False)) == CODE
    assert len(tokenizer) == len(tiny_tokenizer())


def test_bos_is_the_configs_where_no_other_file_names_it(tmp_path: Path):
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / "tokenizer_config.json").unlink()
    assert Checkpoint(folder).tokenizer.bos_token == "<s>"


def made(words: list[str], **parts: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of whole characters, or words, without an unknown token."""
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(token_models.BPE(vocab=vocabulary, merges=[]))
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_a_vocabulary_under_the_wrong_splitting_loses_its_spaces():
    """A byte-level vocabulary writes the space as Ġ, SentencePiece looks for ▁."""
    metaspace = {"pre_tokenizer": pre_tokenizers.Metaspace(), "decoder": decoders.Metaspace()}
    with pytest.raises(UserError, match=r"loses text: 'ab ba' comes back as 'abba'; take tokenizer\.json"):
        check_kept(made(["a", "b", "Ġ"], **metaspace), ["ab ba"])
    check_kept(made(["a", "b", "▁"], **metaspace), ["ab ba", " ab ba"])


def test_a_character_that_vanishes_is_lost():
    level = {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False), "decoder": decoders.ByteLevel()}
    with pytest.raises(UserError, match="'abcba' comes back as 'abba'"):
        check_kept(made(["a", "b"], **level), ["abcba"])
    check_kept(made(["a", "b", "c"], **level), ["abcba"])


def test_what_the_tokenizers_own_rules_fold_together_is_not_lost():
    level = {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False), "decoder": decoders.ByteLevel()}
    letters = ["a", "Ã", "¤"]  # the bytes of ä
    check_kept(made(letters, **level, normalizer=normalizers.NFC()), ["a\u0308a"])
    with pytest.raises(UserError, match="loses text"):
        check_kept(made(letters, **level), ["a\u0308a"])
    check_kept(made(["a", "b"], pre_tokenizer=pre_tokenizers.Whitespace()), ["a b\nba"])
    sentencepiece = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    back = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    check_kept(made(["a", "▁"], normalizer=sentencepiece, decoder=back), ["a a", "  a", "a▁a"])


def test_unknown_tokens_are_no_loss_until_most_is_unknown():
    tokenizer = tiny_tokenizer(29)  # lower-case letters and the space
    check_kept(tokenizer, ["Some words, and a number: 12.", "\u00e4 is unknown"])
    with pytest.raises(UserError, match=r"does not know most of the text: 6 of the 9 tokens"):
        check_kept(tokenizer, ["\u4f60\u597d ab"])
    loses = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("b", "")])
    tokenizer.backend_tokenizer.decoder = loses  # type: ignore[assignment]
    with pytest.raises(UserError, match="loses text"):  # what is missing beside an unknown one
        check_kept(tokenizer, ["A ab A ab"])


def test_a_bos_that_a_template_wrote_is_not_doubled():
    tokenizer = tiny_tokenizer()
    plain, written = [Document("a", "abcdefg")], [Document("a", "<s>abcdefg")]
    for bos in ("each", "once"):
        sets = [make_token_set("report", text, tokenizer, length=4, bos=bos) for text in (plain, written)]
        assert sets[0].windows.tolist() == sets[1].windows.tolist()
        assert sets[0].windows.tolist()[0][0] == 0
    assert make_token_set("report", written, tokenizer, length=4, bos="never").windows.tolist()[0][0] == 0


def test_control_tokens_are_counted_where_they_stand_in_the_text():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    documents = [Document("a", "<s>ab<s>cd</s>ef"), Document("b", "abcde\u00e4fg")]
    tokens = make_token_set("report", documents, tokenizer, length=5)
    assert count_controls(tokens, tokenizer) == {"<s>": 1, "</s>": 1}


@pytest.mark.parametrize(("limit", "seed"), [(1_000_000_000, 0), (0, 0), (1, -1), (1, 2**32)])
def test_limits_and_seeds_out_of_range(limit: int, seed: int):
    with pytest.raises(
        UserError, match=r"cannot have .* windows; ask for at least 1 and at most|`seed` .*: give a whole"
    ):
        make_token_set("report", [Document("a", "abcdefg")], tiny_tokenizer(), length=4, limit=limit, seed=seed)

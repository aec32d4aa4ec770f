"""Tokenizers: which one a folder has, whether it keeps what it is given, and control tokens that stand in a text.

``tokenizer.json`` says all of how text is cut. The class that stands beside it, in ``tokenizer_config.json``, is of
another library's making: several rebuild the tokenizer their own way around the same vocabulary (a byte-level
vocabulary under ``LlamaTokenizerFast`` loses every space), so where the file is there, the class is not asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from qarat.ground.errors import UserError

if TYPE_CHECKING:
    from qarat.model.tokens import TokenSet

_SAMPLES, _SAMPLE = 8, 2000  # texts that are looked at, and characters of each
_BLANK = "▁"  # SentencePiece's space


def read_tokenizer(folder: Path, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, as ``tokenizer.json`` has it where there is one.

    Args:
        folder: Where it lies.
        config: Of the model; names the BOS where no other file of the folder does.

    Raises:
        UserError: There is none.
    """
    if not any(any(folder.glob(pattern)) for pattern in ("tokenizer*", "*.model", "vocab.*")):
        raise UserError("there is none")
    kind: Any = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    tokenizer = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    bos = config.bos_token_id
    if bos is not None and tokenizer.bos_token is None and tokenizer("a")["input_ids"][:1] == [bos]:
        tokenizer.bos_token = tokenizer.convert_ids_to_tokens(bos)
    return tokenizer


def check_kept(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Check on a sample that a tokenizer, encoding and decoding, gives back the text.

    Not lost is what its own normalizer folds together (NFC and the like), blank space where its own first splitting
    drops that, where it has no decoder, or at the very beginning, and what an unknown token stands for, up to half of a
    text's tokens.

    Args:
        tokenizer: Of the model.
        texts: A few are taken, evenly spread.

    Raises:
        UserError: Showing the first place where something is lost.
    """
    own = {str(token) for token in _added(tokenizer).values()}
    controls = sorted(filter(str.strip, own), key=len, reverse=True)
    for text in texts[:: max(1, len(texts) // _SAMPLES)][:_SAMPLES]:
        sample = text[:_SAMPLE]
        for control in controls:  # they stand for themselves, but some take the blank space beside them along
            sample = sample.replace(control, "")
        _check_sample(tokenizer, sample)


def _check_sample(tokenizer: Any, sample: str) -> None:
    ids: list[int] = tokenizer(sample, add_special_tokens=False, verbose=False)["input_ids"]
    runs: list[list[int]] = [[]]
    for token in ids:
        if token == tokenizer.unk_token_id:
            runs.append([])
        else:
            runs[-1].append(token)
    if 2 * (len(runs) - 1) > len(ids):
        raise UserError(
            f"the tokenizer does not know most of the text: {len(runs) - 1} of the {len(ids)} tokens of "
            f"{_shown(sample, 0)} are unknown to it; give text in the model's language"
        )
    wanted, drops_blanks = _normalized(tokenizer, sample)
    decoded = [tokenizer.decode(run, clean_up_tokenization_spaces=False).replace(_BLANK, " ") for run in runs]
    if drops_blanks:
        wanted, *decoded = ("".join(piece.split()) for piece in (wanted, *decoded))
    decoded[0] = decoded[0].lstrip(" ")
    lost = _first_missing(wanted.lstrip(" "), decoded)
    if lost is not None:
        raise UserError(
            f"the tokenizer loses text: {_shown(wanted, lost)} comes back as {_shown(''.join(decoded), lost)}; take "
            "tokenizer.json (or tokenizer.model) and tokenizer_config.json from where the model comes from"
        )


def _added(tokenizer: PreTrainedTokenizerBase) -> dict[int, Any]:
    """Tokens that are found in a text before anything else is done to it, by id."""
    return getattr(tokenizer, "added_tokens_decoder", {})


def _normalized(tokenizer: Any, text: str) -> tuple[str, bool]:
    """A text as the tokenizer's normalizer has it, and whether its first splitting drops blank space."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return text, False
    text = backend.normalizer.normalize_str(text) if backend.normalizer else text
    drops = backend.decoder is None  # tokens are then joined by blanks
    if backend.pre_tokenizer is not None and not drops:
        spans = [span for _, span in backend.pre_tokenizer.pre_tokenize_str(text)]
        kept = set().union(*(range(*span) for span in spans))
        drops = any(index not in kept for index, letter in enumerate(text) if letter.isspace())
    return text.replace(_BLANK, " "), drops


def _first_missing(text: str, pieces: Sequence[str]) -> int | None:
    """Where a text departs from pieces that should stand in it in order, unknown tokens between them; None if nowhere.

    Half of a character beside an unknown token decodes to U+FFFD, which is left out.
    """
    *others, last = pieces
    if not others:
        differ = (i for i, (ours, theirs) in enumerate(zip(text, last, strict=False)) if ours != theirs)
        return None if text == last else next(differ, min(len(text), len(last)))
    at = 0
    for number, piece in enumerate(others):
        piece = piece.strip("\ufffd")
        start = text.find(piece, at)
        if start < 0 or (start > 0 and number == 0):
            return at
        at = start + len(piece)
    return None if text[at:].endswith(last.strip("\ufffd")) else at


def _shown(text: str, at: int) -> str:
    return repr(text[max(0, at - 10) : at + 20])


def count_controls(tokens: TokenSet, tokenizer: PreTrainedTokenizerBase) -> Counter[str]:
    """How often each control token stands in the windows of a set, a BOS or EOS in front of a window aside."""
    control = {i: str(token) for i, token in _added(tokenizer).items() if token.special and i != tokenizer.unk_token_id}
    front = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    windows = tokens.windows
    counts = Counter(windows[:, 1:].flatten().tolist()) + Counter(i for i in windows[:, 0].tolist() if i not in front)
    return Counter({word: counts[i] for i, word in control.items() if counts[i]})

"""The tokenizer and the training windows of the reference family, cut from the corpus once and kept."""

from __future__ import annotations

import hashlib
from pathlib import Path

import corpus
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from writing import write_whole

WORK = Path(__file__).parent / "work"
VOCABULARY = 4096
WINDOW = 256  # positions, the first of which is BOS
BOS = "<|bos|>"


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE; BOS is id 0 and the tokenizer puts it in front of every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


def cut_windows(tokenizer: Tokenizer, texts: list[str], packed: bool) -> np.ndarray:
    """All training windows, (windows, WINDOW) uint16, in the order in which they are learnt.

    Not packed: each window is BOS and WINDOW - 1 tokens of one file, a file's tail dropped. Packed: see `Recipe`.
    """
    documents = [np.array(e.ids, np.uint16) for e in tokenizer.encode_batch_fast(texts)]
    if packed:
        stream = np.concatenate(documents)
        windows = stream[: len(stream) // WINDOW * WINDOW].reshape(-1, WINDOW)
    else:
        pieces = []
        for ids in documents:
            body = ids[1:]
            rows = len(body) // (WINDOW - 1)
            piece = np.zeros((rows, WINDOW), np.uint16)
            piece[:, 1:] = body[: rows * (WINDOW - 1)].reshape(rows, WINDOW - 1)
            pieces.append(piece)
        windows = np.concatenate(pieces)
    return windows[np.random.default_rng(corpus.SEED).permutation(len(windows))]


def prepare(packed: bool) -> tuple[Tokenizer, np.ndarray]:
    """The tokenizer and the windows, made once and kept in the work folder."""
    WORK.mkdir(parents=True, exist_ok=True)
    tokenizer_file, kept = WORK / f"tokenizer-{corpus_hash()[:12]}.json", windows_file(packed)
    if not (tokenizer_file.exists() and kept.exists()):
        print("reading the corpus ...", flush=True)
        splits, differences = corpus.build()
        write_whole(differences_file(packed), lambda path: path.write_text("\n".join(differences)))
        texts = [text for _, text in splits["train"]]
        if not tokenizer_file.exists():
            trained = train_tokenizer(texts)
            write_whole(tokenizer_file, lambda path: trained.save(str(path)))
        windows = cut_windows(Tokenizer.from_file(str(tokenizer_file)), texts, packed)
        write_whole(kept, lambda path: save_array(path, windows))
    if differences := known_differences(packed):
        print(
            f"{corpus.describe(differences)}\nDelete {kept} and {tokenizer_file} to read the corpus anew.", flush=True
        )
    return Tokenizer.from_file(str(tokenizer_file)), np.load(kept)


def save_array(path: Path, array: np.ndarray) -> None:
    """As `np.save`, which puts `.npy` behind the name of a path."""
    with path.open("wb") as file:
        np.save(file, array)


def corpus_hash() -> str:
    """SHA-256 of the listing; kept windows are named by it."""
    if not corpus.LISTING.exists():
        raise SystemExit(
            f"{corpus.LISTING} is missing: restore it (git checkout reference/corpus.tsv), or record the corpus of "
            "this machine, whose models may differ from the shipped ones: python reference/corpus.py record"
        )
    return hashlib.sha256(corpus.LISTING.read_bytes()).hexdigest()


def windows_file(packed: bool) -> Path:
    return WORK / f"windows-{corpus_hash()[:12]}-{'packed' if packed else 'bos'}.npy"


def differences_file(packed: bool) -> Path:
    """Beside the windows: how the corpus they were cut from differed from its listing, one file a line."""
    return windows_file(packed).with_suffix(".differences.txt")


def known_differences(packed: bool) -> list[str]:
    return differences_file(packed).read_text().splitlines() if differences_file(packed).exists() else []

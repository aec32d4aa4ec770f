"""Random texts that the tiny tokenizer knows."""

from __future__ import annotations

import random
import string

from qarat.model.texts import Document


def tiny_documents(count: int, seed: int = 0, *, characters: int = 400) -> tuple[Document, ...]:
    """Random words that `tiny_tokenizer` knows; no two documents are alike.

    Args:
        count: How many documents.
        seed: For the words.
        characters: Length of each, which is also its length in tokens.
    """
    generator = random.Random(seed)

    def word() -> str:
        return "".join(generator.choices(string.ascii_lowercase, k=generator.randint(1, 9)))

    def text() -> str:
        words = [word() for _ in range(characters)]
        return " ".join(words)[:characters].strip().ljust(characters, "x")

    return tuple(Document(f"tiny/{seed}/{number}", text()) for number in range(count))

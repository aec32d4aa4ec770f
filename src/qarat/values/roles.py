"""What part a stream plays in its block.

A family says which tensors of its blocks play which part; whoever asks for a stream (a rule on spikes, an observing
pass, a page) asks by its part, and knows no module's name. A part's value is how names and records of streams spell it:
``model.layers.1.down_in``.
"""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """The part that one activation tensor plays in a block."""

    ATTENTION_INPUT = "attn_in"
    QUERIES = "q"
    KEYS = "k"
    PROBABILITIES = "p"
    VALUES = "v"
    KEY_CACHE = "k_cache"  # keys as they are kept for later tokens, the key heads side by side
    VALUE_CACHE = "v_cache"
    ATTENTION_OUTPUT = "o_in"  # what the heads put out, side by side, and the output projection reads
    MLP_INPUT = "mlp_in"
    DOWN_INPUT = "down_in"  # the MLP's inner activation
    DOWN_OUTPUT = "down_out"
    BLOCK_OUTPUT = "block_out"


INPUTS = (Role.ATTENTION_INPUT, Role.ATTENTION_OUTPUT, Role.MLP_INPUT, Role.DOWN_INPUT)
"""What projections read; every block of every family has each of them once."""

OPERANDS: tuple[str, ...] = (Role.QUERIES, Role.KEYS, Role.PROBABILITIES, Role.VALUES)
"""Operands of the products Q·Kᵀ (`qk`) and probabilities·V (`av`)."""

CACHES: tuple[str, ...] = (Role.KEY_CACHE, Role.VALUE_CACHE)
"""What is kept of a token for later ones; streams and the sites that read them are called alike."""

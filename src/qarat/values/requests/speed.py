"""How folders are timed in an engine."""

from __future__ import annotations

from typing import Literal

import msgspec

from qarat.ground.errors import UserError


class SpeedRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is timed: every folder in a process of its own, one after the other, and so in several turns.

    Attributes:
        prompt_tokens: Tokens of a prompt, drawn at random.
        new_tokens: Tokens generated behind the first new one, which prefill counts.
        batches: Numbers of prompts at once.
        turns: How often every folder is loaded and timed.
        dtype: In which the engine computes what is in float.
        eager: Without vLLM's compiled graphs, which take minutes to make on a CPU, and which it decodes faster with.
        clock: What a second is: wall, or cpu, a processor's second spent on the engine, which other work on the machine
            hardly changes (of a CPU, best with one thread).
    """

    prompt_tokens: int = 256
    new_tokens: int = 64
    batches: tuple[int, ...] = (1, 8)
    turns: int = 3
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    eager: bool = False
    clock: Literal["wall", "cpu"] = "wall"

    @property
    def positions(self) -> int:
        """Tokens that a window comes to have."""
        return self.prompt_tokens + 1 + self.new_tokens

    def check(self) -> None:
        """Refuse numbers with which there is nothing to time.

        Raises:
            UserError: Naming the argument.
        """
        for name in ("prompt_tokens", "new_tokens", "turns"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` {getattr(self, name)}: give at least 1")
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            raise UserError(f"`batches` {list(self.batches)}: give numbers of at least 1, each once")

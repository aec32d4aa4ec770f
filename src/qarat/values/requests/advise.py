"""What the whole landscape of schemes is to be seen for."""

from __future__ import annotations

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.values.budgets import parse_loss_budget
from qarat.values.engines import ENGINES, FILE_ENGINES
from qarat.values.parsing import parse_scheme
from qarat.values.requests.protect import PROTECTIONS
from qarat.values.schemes import LOW, Scheme, SchemeError
from qarat.values.spellings import is_of_caches, parse_low

LANDSCAPE = {
    "W8A8 static": LOW,
    "W8A8 token": "w=int8/channel a=int8/token",
    "W8A16": "w=int8/channel",
    "W6A6 static": "w=int6/channel a=int6/tensor/static",
    "W4A8 g128": "w=int4/g128 a=int8/token",
    "W4A8 g32": "w=int4/g32 a=int8/token",
    "W4A16 g128": "w=int4/g128",
    "W4A16 g32": "w=int4/g32",
    "FP8 static": PROTECTIONS["fp8"],
    "FP8 token": "w=e4m3/channel a=e4m3/token",
    # Dynamic MX scales as compressed-tensors rounds them.
    "MXFP8": "w=mxfp8 a=mxfp8/mx-even",
    "MXFP4": "w=mxfp4 a=mxfp4/mx-even",
    "NVFP4": "w=nvfp4 a=nvfp4",
    "NVFP4 weights": "w=nvfp4",
}
"""What is looked at where nothing is named: a short name, and the scheme."""


class AdviseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which schemes are looked at, for which budget and engines.

    Attributes:
        schemes: Schemes to look at instead of the common ones; of the KV cache (c=…) too.
        budget: What may be lost over float: a perplexity (ppl+1%) or nats per token (nats+0.05).
        engine: Only schemes that all of these run: transformers, vllm, vllm-0.26, sglang, sglang-old, onnxruntime,
            openvino, llama.cpp. (default: any)
        measure: So many of the recipes are measured on the selection text as well; 0 for predictions alone.
    """

    schemes: tuple[str, ...] = ()
    budget: str = "ppl+1%"
    engine: tuple[str, ...] = ()
    measure: int = 3

    def check(self) -> None:
        """Check everything that can be checked without a model.

        Raises:
            UserError: Malformed or unknown words.
        """
        parse_loss_budget(self.budget)
        self.named()
        if self.measure < 0:
            raise UserError(f"`measure` {self.measure}: give the number of recipes to measure, 0 for none")
        known = [*ENGINES, *FILE_ENGINES]
        for name in self.engine:
            if name not in known:
                raise UserError(f"unknown engine {name!r}; {nearest_names(name, known)}")

    def named(self) -> dict[str, str]:
        """The spelling of every scheme that is looked at, by a short name where it has one.

        Raises:
            SchemeError: No scheme of a projection's weight, or of a cache.
        """
        names = {str(parse_low(spelling)): name for name, spelling in LANDSCAPE.items()}
        try:
            spelled = [str(_parse(text)) for text in self.schemes or LANDSCAPE.values()]
        except UserError as error:
            raise SchemeError(f"`schemes`: {error}") from None
        return {names.get(spelling, spelling): spelling for spelling in spelled}


def _parse(text: str) -> Scheme:
    if not is_of_caches(text):
        return parse_low(text)
    scheme = parse_scheme(text)
    if scheme.is_float:
        raise UserError(f"{text!r} leaves caches in float, which is what they are compared with")
    return scheme

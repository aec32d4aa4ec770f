"""Kumar et al.'s law of post-training quantization: tokens make a model harder to quantize, size easier."""

import math

from qarat.stages.laws.forms.base import MEAN_BITS, Form, Published, Term

_C_T, _OFFSET, _GAMMA_POST = 0.0598, 1.1277, 0.5907

FORM = Form(
    title="post-training law: size, tokens and bits",
    equation="δ = C · D^γ_D · N^(−γ_N) · e^(−P/γ_post)",
    source="Kumar et al., arXiv 2411.04330, appendix K",
    terms=(
        Term("γ_D", "tokens", "log"),
        Term("γ_N", "size", "log", -1),
        Term("1/γ_post", "bits", "linear", -1),
    ),
    prefactor="C",
    needs={"tokens": 2, "size": 2, "bits": 2},
    points=6,
    mixed=MEAN_BITS,
    transfers="the authors say that the constants do not transfer",
    published=(
        Published(
            values={"C": _C_T * math.exp(_OFFSET), "γ_D": 0.5068, "γ_N": 0.3439, "1/γ_post": 1 / _GAMMA_POST},
            domain={"size": (30e6, 220e6), "tokens": (1.5e9, 26e9)},
            note="GPTQ on OLMo-style models. C is the printed 0.0598 times e to the printed offset 1.1277, "
            "whose sign is inferred from plausible values",
        ),
    ),
)

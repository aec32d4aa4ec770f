"""Law 1 of the first version of the paper: at one loss budget, ln N falls linearly with the high-precision share."""

import math

from qarat.stages.laws.forms.base import Form, Published, Term


def _printed(increase: float, k: float, c: float, largest: float, ratios: tuple[float, float]) -> Published:
    domain = {"size": (0.5e9, largest), "ratio": ratios}
    return Published(values={"c": c, "k": k}, group={"loss": math.log1p(increase)}, domain=domain)


FORM = Form(
    title="Law 1: size against high share at a budget",
    equation="N = exp(k · (1 − Q_r) + c), N in billions, once for each budget",
    source="Cao et al., arXiv 2410.06722v1, section 4.2 and Fig. 6",
    terms=(Term("k", "ratio", "share"),),
    prefactor="c",
    logarithmic=False,
    response="billions",
    by=("loss",),
    needs={"ratio": 3, "size": 3},
    points=4,
    method="ols",
    transfers="printed for Qwen-1.5, MXINT-4 weights and inputs, matmul-wise, perplexity on SlimPajama",
    published=(
        _printed(0.05, -11.68, 4.83, 32e9, (0.56, 0.9)),
        _printed(0.10, -11.27, 3.35, 32e9, (0.67, 0.995)),
        _printed(0.20, -12.84, 1.86, 7e9, (0.8, 0.99)),
    ),
)

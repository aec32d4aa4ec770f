"""Law 2 of the first version of the paper: at one ratio, the perplexity increase is a power of the block size."""

from qarat.stages.laws.forms.base import Form, Published, Term

_SWAPPED = "text and figure swap the 14B coefficients of 0.9 and 0.95; these are the figure's, which its points support"


def _printed(size: float, ratio: float, a: float, k: float, note: str = "") -> Published:
    domain = {"block": (16.0, 3580.0 if ratio > 0.5 else 12.8e6)}
    return Published(values={"A": a, "k": k}, group={"size": size, "ratio": ratio}, domain=domain, note=note)


FORM = Form(
    title="Law 2: power law in block size",
    equation="Δppl [%] = A · Q_b^k, once for each size and ratio",
    source="Cao et al., arXiv 2410.06722v1, section 4.3 and Fig. 8",
    terms=(Term("k", "block", "log"),),
    prefactor="A",
    response="perplexity-increase",
    by=("size", "ratio"),
    needs={"block": 3},
    points=4,
    method="ols",
    transfers="printed for Qwen-1.5, MXINT-4 weights and inputs, perplexity on SlimPajama",
    published=(
        _printed(7e9, 0.5, 0.53, 0.32),
        _printed(7e9, 0.9, 1.65, 0.62),
        _printed(7e9, 0.95, 3.57, 0.61),
        _printed(14e9, 0.5, 0.63, 0.29),
        _printed(14e9, 0.9, 1.0, 0.63, _SWAPPED),
        _printed(14e9, 0.95, 3.3, 0.37, _SWAPPED),
    ),
)

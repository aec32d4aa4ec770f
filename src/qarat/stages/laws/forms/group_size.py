"""Chen et al.'s law of quantization-aware training, with the group size."""

from qarat.stages.laws.forms.base import Form, Published, Term

_DOMAIN = {"size": (74e6, 595e6), "tokens": (10e9, 100e9), "block": (32.0, 256.0)}


def _printed(name: str, k: float, size: float, tokens: float, group: float, note: str = "") -> Published:
    values = {"k": k, "γ_N": size, "γ_D": tokens, "γ_G": group}
    trained = "quantization-aware training, not rounding after training"
    return Published(name=name, values=values, domain=_DOMAIN, note="; ".join(filter(None, (trained, note))))


FORM = Form(
    title="group-size law: size, tokens and group",
    equation="δ = k · D^γ_D · (log2 G)^γ_G / N^γ_N",
    source="Chen et al., arXiv 2505.14302",
    terms=(
        Term("γ_N", "size", "log", -1),
        Term("γ_D", "tokens", "log"),
        Term("γ_G", "block", "log-log2"),
    ),
    prefactor="k",
    needs={"size": 2, "tokens": 2, "block": 2},
    points=6,
    uniform=True,
    transfers="one set of coefficients for each precision of weights and inputs",
    published=(
        _printed("w4a4", 0.1582, 0.2186, 0.0745, 0.7779),
        _printed("w4a16", 0.2522, 0.3589, 0.1610, 0.3533),
        _printed("w16a4", 0.1004, 0.1816, 0.0331, 0.9812),
        _printed("w4a4-down8", 0.3519, 0.2637, 0.0964, 0.3407, "the table's cells were scrambled in the copy read"),
        _printed("w16a4-down8", 0.1273, 0.2347, 0.0827, 0.4471, "γ_G is 0.4471 in the text, 0.4491 in the table"),
    ),
)

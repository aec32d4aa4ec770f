"""The weak law of the paper's later versions: loss increase of the best allocation by size and ratio."""

from qarat.stages.laws.forms.base import Form, Term

FORM = Form(
    title="weak law: size and ratio",
    equation="δ = C · e^(A·Q_r) · N^(−γ_N)",
    source="Cao et al., arXiv 2410.06722v3, as described by others; its coefficients are not known here",
    terms=(Term("A", "ratio", "linear"), Term("γ_N", "size", "log", -1)),
    prefactor="C",
    needs={"size": 2, "ratio": 2},
    points=5,
    transfers="to be fitted anew for every quantization method",
)

"""The strong law of the paper's later versions: the weak law times a shifted power of the block size."""

from qarat.stages.laws.forms import weak
from qarat.stages.laws.forms.base import Form, Term

FORM = Form(
    title="strong law: size, ratio and block size",
    equation="δ = C · e^(A·Q_r) · N^(−γ_N) · (Q_b + d)^γ_c, d ≥ 0",
    source=weak.FORM.source,
    terms=(*weak.FORM.terms, Term("γ_c", "block", "log", offset="d")),
    prefactor="C",
    needs={"size": 2, "ratio": 2, "block": 3},
    points=8,
    transfers=weak.FORM.transfers,
)

"""The weak law times a power of the training tokens: ours, for families where sizes were trained unequally long."""

from qarat.stages.laws.forms import weak
from qarat.stages.laws.forms.base import Form, Term

FORM = Form(
    title="weak law with training tokens",
    equation="δ = C · e^(A·Q_r) · N^(−γ_N) · D^γ_D",
    source="ours: the weak law with the token term that the post-training and undertraining laws share",
    terms=(*weak.FORM.terms, Term("γ_D", "tokens", "log")),
    prefactor="C",
    needs={"size": 2, "ratio": 2, "tokens": 2},
    points=6,
)

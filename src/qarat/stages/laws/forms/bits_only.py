"""A baseline: average bits a weight, whatever the model. A law worth its parameters beats it."""

from qarat.stages.laws.forms.base import Form, Term

FORM = Form(
    title="baseline: bits alone",
    equation="δ = C · e^(−b·P)",
    source="ours, as a baseline",
    terms=(Term("b", "bits", "linear", -1),),
    prefactor="C",
    needs={"bits": 2},
    points=4,
)
